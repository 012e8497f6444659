model Tank "A tank that drains through a valve; the valve is in Valve.mo"
  parameter Real base = 0.5 "m2";
  Real level(start = 1, fixed = true) "m";
  Valve valve;
equation
  valve.level = level;
  base * der(level) = -valve.rate;
end Tank;
