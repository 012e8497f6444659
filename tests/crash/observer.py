"""Who remembers everything a user could have seen of a home, and tells which promise was broken.

Rules: it only looks, and may look at any moment, also from within a daemon that is about to be crashed; what it saw
once must be there for ever. It must not know why a daemon was crashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGETS = ("done", "failed", "rejected")
PROBE = ".solvisor-probe-"


class Observer:
    """Of one home, over all its lives. ``problems`` are the promises found broken so far."""

    def __init__(self, home: Path, seen: dict[str, str] | None = None) -> None:
        self.home = home
        self.seen: dict[str, str] = dict(seen or {})
        """By ``target/id``, the SHA-256 of its manifest."""
        self.problems: list[str] = []

    def look(self) -> None:
        """Take in what lies in the places of results now. What is new there is checked, to the last byte."""
        for name in visible(self.home):
            try:
                data = (self.home / name / "manifest.json").read_bytes()
            except OSError as error:
                self._tell(f"{name} is half-published: {error.strerror}")
                continue
            digest = hashlib.sha256(data).hexdigest()
            if name not in self.seen:
                self.problems += wrong_files(self.home, name, data)
            elif self.seen[name] != digest:
                self._tell(f"{name}: its manifest changed")
            self.seen[name] = digest

    def remember(self, seen: dict[str, str], problems: list[str]) -> None:
        """Take over what was seen from within the daemon."""
        for name, digest in seen.items():
            if self.seen.setdefault(name, digest) != digest:
                self._tell(f"{name}: its manifest changed")
        for problem in problems:
            self._tell(problem)

    def look_again(self) -> dict[str, dict[str, Any]]:
        """After the last life: everything once more. Returns all manifests by id."""
        before = set(self.seen)
        self.look()
        there = set(visible(self.home))
        self.problems += [f"{name} was seen and is gone" for name in sorted(before - there)]
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(there):
            with contextlib.suppress(OSError):  # told by look
                data = (self.home / name / "manifest.json").read_bytes()
                self.problems += [text for text in wrong_files(self.home, name, data) if text not in self.problems]
                job_id = name.partition("/")[2]
                if job_id in found:
                    self._tell(f"{job_id} has two manifests")
                manifest = _read(data)
                if manifest is not None:
                    found[job_id] = manifest
        return found

    def _tell(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def visible(home: Path) -> list[str]:
    """What lies in the places of results, as ``target/name``."""
    found = []
    for target in TARGETS:
        with contextlib.suppress(FileNotFoundError):  # before the first life made it
            found += [f"{target}/{name}" for name in os.listdir(home / target) if not name.startswith(PROBE)]
    return found


def _read(data: bytes) -> dict[str, Any] | None:
    """The manifest, if it is one."""
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    return manifest if isinstance(manifest, dict) and {"inputs", "outputs", "source"} <= manifest.keys() else None


def wrong_files(home: Path, name: str, data: bytes) -> Iterator[str]:
    """Files that are not as the manifest says, or that it cannot be read."""
    manifest = _read(data)
    if manifest is None:
        yield f"{name}: its manifest is torn: {data[:200]!r}"
        return
    folder = home / name
    named = [*manifest["inputs"], *manifest["outputs"]]
    more = manifest.get("more_outputs")
    if more is not None:
        named.append(more)
    for fact in named:
        path = folder / fact["path"]
        try:
            content = path.read_bytes()
        except OSError as error:
            yield f"{name}: {fact['path']} cannot be read: {error.strerror}"
            continue
        if (len(content), hashlib.sha256(content).hexdigest()) != (fact["size"], fact["sha256"]):
            yield f"{name}: {fact['path']} has not the bytes that its manifest names"
        elif fact is more:
            yield from _wrong_more(folder, name, content, len(manifest["outputs"]))


def _wrong_more(folder: Path, name: str, lines: bytes, inline: int) -> Iterator[str]:
    for line in lines.splitlines()[inline:]:
        fact = json.loads(line)
        content = (folder / fact["path"]).read_bytes()
        if (len(content), hashlib.sha256(content).hexdigest()) != (fact["size"], fact["sha256"]):
            yield f"{name}: {fact['path']} has not the bytes that outputs.jsonl names"
