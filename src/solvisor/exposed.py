"""Whether any user of this machine could put something else in the place of a file or folder.

Rules: only what everybody may do counts; whom the operator lets into a group, or makes the owner of a folder on the
way, he trusts. Nothing is changed here.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path


def open_to_all(path: Path) -> Path | None:
    """The first folder on the way to ``path`` in which everybody may rename what others made; ``None`` if none is.

    ``path`` itself need not exist. Its links are followed, and the folders they lie in looked at as well.
    """
    if sys.platform == "win32":
        return None
    ways = [Path(os.path.abspath(path)), path.resolve()]
    for folder in dict.fromkeys(parent for way in ways for parent in reversed(way.parents)):
        try:
            mode = folder.stat().st_mode
        except OSError:  # not there yet, and then made by us; or not ours to see, and then nobody's mistake
            continue
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return folder
    return None
