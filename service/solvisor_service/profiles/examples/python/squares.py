"""Write a table; any program text is an input of the solver "python"."""

from pathlib import Path

Path("squares.csv").write_text("".join(f"{n},{n * n}\n" for n in range(10)))
