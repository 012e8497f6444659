"""Results brought from the daemon into a folder, each file proven by the hash its manifest names.

Rules: a file appears under its name only whole and right, ``manifest.json`` last; names come from a manifest and are
still not trusted to stay inside the folder; symbolic links are listed in a manifest, never made. It does not know what
is printed, nor which verb asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import msgspec

from solvisor.errors import SolvisorError
from solvisor.manifest import Manifest
from solvisor.model import FileFact
from solvisor.names import unescape_name
from solvisor_service.client import Client, RequestRefused

MANIFEST: Final = "manifest.json"
_CHUNK: Final = 1 << 20
_LONGEST_LINE: Final = 1 << 16


class DownloadFailed(SolvisorError):
    """A file came with other bytes than its manifest names, or it may not be written where it belongs."""

    code = "download"


def results(path: str) -> bool:
    """Outputs and logs, not the inputs: what people mean by the results of a job."""
    return not path.startswith("input/")


def fetch(client: Client, job: str, into: Path, wanted: Callable[[str], bool] = results) -> Manifest:
    """Bring the files of a finished job that are ``wanted`` (by their paths in the manifest) into the folder ``into``.

    Files that are there already are replaced. Raises ``DownloadFailed``, ``NotRunning`` (what is whole by then stays,
    and asking again is safe), ``RequestRefused`` and, where ``into`` cannot be written, ``OSError``.
    """
    try:
        data = client.manifest(job)
    except RequestRefused as refused:
        if refused.problem.code != "no_such_file":
            raise
        raise DownloadFailed(
            f"the results of {job} are gone from the home: somebody removed its folder; submit its inputs again"
        ) from None
    manifest = msgspec.json.decode(data, type=Manifest)
    into.mkdir(parents=True, exist_ok=True)
    (into / MANIFEST).unlink(missing_ok=True)
    for fact in _files(client, manifest, into):
        if fact.link is None and wanted(fact.path):
            _fetch_file(client, manifest.id, fact, into)
    with _appearing(into / MANIFEST, into) as file:
        file.write(data)
    return manifest


def _files(client: Client, manifest: Manifest, into: Path) -> Iterator[FileFact]:
    yield from manifest.inputs
    if manifest.more_outputs is None:
        yield from manifest.outputs
        return
    _fetch_file(client, manifest.id, manifest.more_outputs, into)
    with _inside(into, manifest.more_outputs.path).open("rb") as lines:
        while line := lines.readline(_LONGEST_LINE):
            yield msgspec.json.decode(line, type=FileFact)


def _fetch_file(client: Client, job: str, fact: FileFact, into: Path) -> None:
    target = _inside(into, fact.path)
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    # In this order: an error of the file of ours must not be taken for one of the socket.
    with _appearing(target, into) as file, client.file(job, fact.path) as source:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        if (size, digest.hexdigest()) != (fact.size, fact.sha256):
            raise DownloadFailed(
                f"{fact.path} of {job} is not what its manifest names ({size} bytes came, {fact.size} expected, or "
                "other content): somebody changed it after the job; run the job again: solvisor retry " + job
            )


def _inside(into: Path, path: str) -> Path:
    """Where ``path`` of a manifest belongs. Raises ``DownloadFailed`` if that is not inside ``into``."""
    name = unescape_name(path)
    parts = name.split("/")
    odd = {"", ".", ".."} & set(parts) or "\0" in name
    if odd or (os.name == "nt" and any(mark in name for mark in '\\:<>"|?*')):
        raise DownloadFailed(f"the manifest names the file {path!r}, which cannot be written inside {into}")
    return into.joinpath(*parts)


@contextlib.contextmanager
def _appearing(target: Path, scratch: Path) -> Iterator[IO[bytes]]:
    """A file that gets the name ``target`` when the block ends well, and is gone when it does not."""
    temporary = scratch / f".{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as file:
            yield file
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
