"""How a solver is driven: one file per kind."""
