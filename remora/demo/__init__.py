"""`remora demo`: a whole mesh on one machine, and what it lets through and what it refuses."""
