"""The command line, and the mesh on one machine."""
