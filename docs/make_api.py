"""Write what the documentation says of the API: ``docs/openapi.json``, and the table of codes in ``docs/socket.md``.

    python docs/make_api.py

Rules: both are made from the tables that are served; nothing of them is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from solvisor_service.api import codes
from solvisor_service.api.routes.description import document

ROOT = Path(__file__).resolve().parent.parent
DESCRIPTION = ROOT / "docs" / "openapi.json"
PAGE = ROOT / "docs" / "socket.md"
TABLE = re.compile(r"(<!-- codes -->\n).*?(<!-- end of codes -->)", re.DOTALL)


def description() -> str:
    """The text of ``openapi.json``."""
    return f"{json.dumps(json.loads(document()), indent=1, ensure_ascii=False)}\n"


def page(text: str) -> str:
    """The page with the codes there are now."""
    return TABLE.sub(lambda found: f"{found[1]}{codes.table()}\n{found[2]}", text)


if __name__ == "__main__":
    DESCRIPTION.write_text(description(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
