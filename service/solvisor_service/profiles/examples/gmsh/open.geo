// The outline is not closed: gmsh exits with 1, and leaves a file that looks like a mesh.
Point(1) = {0, 0, 0, 1};
Point(2) = {1, 0, 0, 1};
Point(3) = {0, 1, 0, 1};
Line(1) = {1, 2};
Line(2) = {2, 3};
Line Loop(1) = {1, 2};
Plane Surface(1) = {1};
