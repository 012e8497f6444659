"""Raise: Python exits with 1, and its last line says why."""

raise FileNotFoundError("no measurements in this folder")
