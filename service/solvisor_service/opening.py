"""A home on its way to a daemon: prepared, locked, its log begun, its database proven whole.

Rules: whatever is opened here is closed in the reverse order; a home that cannot be used is refused, one whose disk is
full is waited for. This module must not know what the daemon does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import structlog

from solvisor import failpoint
from solvisor import home as homes
from solvisor import log as logs
from solvisor.diskwatch import look
from solvisor.errors import HomeError, StoreError
from solvisor.history import History
from solvisor.home import Home
from solvisor.spool import removal
from solvisor.store import Migration, Store
from solvisor.trouble import RETRY_SECONDS

from .notify import EXTEND_SECONDS, notify

FULL_BYTES = 1 << 20
FULL_FILES = 16
"""With less free a start that fails is put down to that."""

log = structlog.get_logger()


class Opened(NamedTuple):
    """A home, held for this daemon: where its lines go, its rows, its past for the desk and for retention."""

    home: Home
    lines: logs.Log
    store: Store
    history: History
    old: History


@contextmanager
def opened(home: Home) -> Iterator[Opened]:
    """Hold the home. Raises ``HomeError``, ``AlreadyRunning``, ``StoreError``."""
    home.prepare()
    with ExitStack() as stack:
        failpoint.reach("start.prepared")
        stack.callback(homes.lock(home).close)
        failpoint.reach("start.locked")
        lines = logs.configure(sys.stderr, file=home.log_dir / "solvisor.jsonl")
        stack.callback(lines.close)
        store = Store.open(home.db, expected=removal.holds_results(home))
        stack.callback(store.close)
        if store.migrated is not None:
            log.warning("store.migrated", version=store.migrated.version, text=_way_back(home.db, store.migrated))
        history = History.open(home.db)
        stack.callback(history.close)
        old = History.open(home.db)
        stack.callback(old.close)
        yield Opened(home, lines, store, history, old)


@contextmanager
def opened_patiently(home: Home) -> Iterator[Opened]:
    """The same; a disk so full that nothing can begin is waited out, as it is by a daemon that runs."""
    told = False
    with ExitStack() as stack:
        while True:
            try:
                found = stack.enter_context(opened(home))
                break
            except (OSError, HomeError, StoreError) as error:
                if not _is_full(home.root):
                    raise
                if not told:
                    with suppress(OSError):  # it may be the same disk
                        print(f"solvisor: {error}\nThe disk is full; it starts once there is room.", file=sys.stderr)
                told = True
                notify(f"EXTEND_TIMEOUT_USEC={round(EXTEND_SECONDS * 1e6)}")
                time.sleep(RETRY_SECONDS)
        yield found


def _is_full(folder: Path) -> bool:
    try:
        disk = look(folder, 0)
    except OSError:
        return False
    return disk.free_bytes < FULL_BYTES or (disk.total_files > 0 and disk.free_files < FULL_FILES)


def _way_back(db: Path, migrated: Migration) -> str:
    return (
        f"the database was brought up to date from schema version {migrated.version}; the way back: stop the daemon, "
        f"install the Solvisor of before, then: mv {db} {db}.newer && cp {migrated.backup} {db}"
    )
