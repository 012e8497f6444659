% Sizes that do not fit: Octave exits with 1.
A = [1, 2; 3, 4];
b = A * [1, 2, 3];
