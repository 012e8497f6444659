% The area under a parabola, and the curve as a table.
x = linspace (0, 1, 101);
y = x .^ 2;
csvwrite ("parabola.csv", [x', y']);
printf ("area %.4f\n", trapz (x, y));
