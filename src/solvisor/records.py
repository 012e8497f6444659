"""Reading plain values as records, from any thread.

msgspec works out what a record looks like when it first meets it; two threads that make it do so at the same time
crash the process (seen with 0.22). So every reader of records is made here, or as a ``msgspec.json.Decoder``, while the
module that needs it is loaded: then it is worked out before there is a second thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


def converter(kind: Any) -> Callable[[Any], Any]:
    """``msgspec.convert`` to ``kind``. Call it where a module is loaded."""
    msgspec.json.Decoder(kind)

    def convert(value: Any) -> Any:
        return msgspec.convert(value, kind)

    return convert
