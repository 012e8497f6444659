"""The report of a period, for people: as text in a terminal, and as one HTML file that needs nothing else."""
