model Pump "A flow that settles to its set point"
  parameter Real k = 0.5;
  parameter Real setpoint = 3;
  Real flow(start = 0, fixed = true);
equation
  der(flow) = k * (setpoint - flow);
end Pump;
