"""Write the shipped schemas anew: ``python -m solvisor.schemas``."""

from __future__ import annotations

from . import SCHEMAS, path, text

for name in SCHEMAS:
    path(name).write_text(text(name), encoding="utf-8")
