// No geometry at all: gmsh exits with 0, and writes a mesh file without a mesh.
h = 0.3;
