model Valve "Outflow through an opening, after Torricelli"
  parameter Real area = 0.02 "m2";
  Real level "m";
  Real rate "m3/s";
equation
  rate = area * sqrt(2 * 9.81 * max(level, 0));
end Valve;
