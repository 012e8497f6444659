"""``solvisor get``: bring the results of a finished job here."""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

from solvisor_service.cli.shared import (
    FILES,
    FOLDERS,
    Verbs,
    add_verb,
    completed,
    given,
    path_given,
    print_json,
    reader_of,
    text_given,
)

_EXAMPLES = """\
  solvisor get last                        all outputs and logs, into ./ID/
  solvisor get beam-1 '*.frd' stdout.log   some of them
  solvisor get last --out results --inputs"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "get",
        _get,
        help="bring the results of a finished job here, each file checked against the manifest",
        examples=_EXAMPLES,
        with_json=True,
    )
    verb.add_argument("job", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")
    files = "only these: names in the manifest (output/beam.frd, or beam.frd for short), or patterns"
    completed(verb.add_argument("files", nargs="*", metavar="FILE", type=given, help=files), FILES)
    out = "where its folder is made (default: here)"
    completed(verb.add_argument("--out", metavar="DIR", type=path_given, default=Path(), help=out), FOLDERS)
    verb.add_argument("--inputs", action="store_true", help="the inputs as well")


def _get(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.text import clean
    from solvisor_service.download import DownloadFailed, fetch, results

    client = reader_of(arguments)
    job_id = client.job(arguments.job).id
    unmatched = set(arguments.files)
    brought: list[str] = []

    def wanted(path: str) -> bool:
        if arguments.files:
            matching = {pattern for pattern in arguments.files if _matches(path, pattern)}
            unmatched.difference_update(matching)
            chosen = bool(matching)
        else:
            chosen = arguments.inputs or results(path)
        if chosen:
            brought.append(path)
        return chosen

    folder = arguments.out / job_id
    try:
        manifest = fetch(client, job_id, folder, wanted)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DownloadFailed(f"{error.filename or folder} cannot be written: {reason}; choose another --out") from None
    if arguments.json:
        print_json({"id": job_id, "folder": str(folder), "state": manifest.state, "files": brought})
    else:
        count = "1 file" if len(brought) == 1 else f"{len(brought)} files"
        print(f"{clean(str(folder))}/  {count} and manifest.json ({manifest.state})")
    if unmatched:
        names = ", ".join(sorted(unmatched))
        raise DownloadFailed(f"{job_id} has no file {names}; its files: solvisor show {job_id}")
    return 0


def _matches(path: str, pattern: str) -> bool:
    short = path.removeprefix("output/")
    return pattern in (path, short) or fnmatchcase(path, pattern) or fnmatchcase(short, pattern)
