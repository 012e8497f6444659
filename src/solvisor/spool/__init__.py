"""Files on their way in and out: claims, staging, collecting, publishing.

SQLite is the truth; folders are intake and projection. This package does the file half of that order: every function
is synchronous, blocks, may be repeated after a crash at any point, and returns only when what it promises is on the
disk. Callers run it in bounded threads. It must not know jobs' states, the store, solvers, or what a job file says.
"""

from __future__ import annotations

from solvisor.names import escape_name, unescape_name

from .claims import Claims, NotYet, Taken
from .drops import Take
from .files import NotDurable, Syncs, ignore_lease_breaks
from .move import is_original
from .remains import Remains, Survey, TooMuch
from .results import Publication, Results
from .uploads import Upload, discard_unfinished

__all__ = [
    "Claims",
    "NotDurable",
    "NotYet",
    "Publication",
    "Remains",
    "Results",
    "Survey",
    "Syncs",
    "Take",
    "Taken",
    "TooMuch",
    "Upload",
    "discard_unfinished",
    "escape_name",
    "ignore_lease_breaks",
    "is_original",
    "unescape_name",
]
