"""A daemon whose inbox is abused or unwatched, as its operator meets it: manifests, log, status, lists."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from cli_kit import Run, command_line
from daemon import Daemon, Manifest

CONFIG = """
[inbox]
settle = "0.1s"
rescan = "0.3s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
[solver.sh.success]
error_pattern = "ERROR.*"
"""

if sys.platform != "linux":
    pytest.skip("names of bytes, user namespaces", allow_module_level=True)

EVIL = "\x1b[31m\x1b]0;owned\x07<script>alert(1)</script>\u2028\r\n"
NAMES = {
    b"bad\xff\xfe.sh": "rejected",
    b"two\nlines.sh": "rejected",
    ("esc" + EVIL.replace("/", "|") + ".sh").encode(): "rejected",
    b"<script>alert(1)<|script>.sh": "done",
    b"-rf --no-preserve-root ;$(reboot).sh": "done",
    b"n" * 252 + b".sh": "done",
    "e\u0301\U0001f600.sh".encode(): "done",
}


@pytest.fixture
def cli(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(tmp_path, capfdbinary, monkeypatch)


def new_manifests(daemon: Daemon, before: Collection[str], count: int) -> dict[str, Manifest]:
    """Of what was dropped since ``before`` was seen, once there are so many."""
    found = daemon.wait_for(len(before) + count)
    return {job_id: manifest for job_id, manifest in found.items() if job_id not in before}


def texts(value: object) -> Iterator[str]:
    """Every text in a manifest."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from texts([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def is_harmless(text: str) -> bool:
    """Nothing a terminal would obey, no line that a user's bytes began."""
    return all(char.isprintable() or char in "\n\t" for char in text)


def test_fault_45_hostile_names_become_plain_ids_and_are_shown_escaped(
    daemon: Daemon, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLVISOR_HOME", str(daemon.home))
    before = daemon.manifests()
    inbox = os.fsencode(daemon.home / "inbox")
    aside = os.fsencode(tmp_path / "aside")
    for name in NAMES:
        Path(os.fsdecode(aside)).write_bytes(b"echo solved > out.txt\n")
        os.rename(aside, inbox + b"/" + name)
    manifests = new_manifests(daemon, before, len(NAMES))
    for job_id, manifest in manifests.items():
        assert job_id.isascii()
        assert len(job_id) <= 48
        assert set(job_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert is_harmless("".join(texts(manifest)))
        source = manifest["source"]["path"]
        raw = b"".join(
            bytes.fromhex(p[:2]) + p[2:].encode() if i else p.encode() for i, p in enumerate(source.split("\\x"))
        )
        assert (daemon.home / NAMES[raw] / job_id / "manifest.json").is_file()
        kept = daemon.home / NAMES[raw] / job_id / "input" / os.fsdecode(raw)
        assert hashlib.sha256(kept.read_bytes()).hexdigest() == manifest["inputs"][0]["sha256"]
        for verb in ("show", "explain"):
            assert is_harmless(cli(verb, job_id).out)
    shown = "".join(cli(*words).out for words in (["list"], ["status"], ["list", "--json"]))
    assert is_harmless(shown)
    assert "<script>alert(1)<|script>.sh" in shown
    assert r"two\x0alines.sh" in shown
    assert not any(cli(*words).status for words in (["list"], ["status"], ["list", "--json"]))


@pytest.mark.parametrize("data", [b"", b"{not TOML", b"\xff\xfe", b"inputs = [" + b"\n" * 60_000])
def test_fault_46_a_job_file_that_is_none_is_one_rejected_manifest_and_kept(daemon: Daemon, data: bytes) -> None:
    before = daemon.manifests()
    daemon.drop("empty.job.toml", data)
    ((job_id, manifest),) = new_manifests(daemon, before, 1).items()
    assert manifest["state"] == "rejected"
    assert (daemon.home / "rejected" / job_id / "input" / "empty.job.toml").read_bytes() == data
    assert manifest["inputs"][0]["sha256"] == hashlib.sha256(data).hexdigest()


def test_fault_76_what_a_job_file_says_reaches_no_sink_unescaped(
    daemon: Daemon, cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name, the project and the key of a job, the words of a refusal, and what the solver prints."""
    monkeypatch.setenv("SOLVISOR_HOME", str(daemon.home))
    before = daemon.manifests()
    daemon.drop("a.sh", f"printf '%s' 'ERROR {EVIL}' >&2; exit 3\n")
    daemon.drop("b.sh", "true\n")
    for key in ("name", "project", "key", "sovler"):
        daemon.drop(f"{key}.job.toml", f'inputs = ["{key}.sh"]\n"{key}" = {json.dumps(EVIL)}\n')
        daemon.drop(f"{key}.sh", "true\n")
    manifests = new_manifests(daemon, before, 6)
    assert is_harmless("".join(text for manifest in manifests.values() for text in texts(manifest)))
    shown = "".join(cli("show", job_id).out for job_id in manifests) + cli("list").out + cli("status").out
    assert is_harmless(shown)
    assert "script" in shown
    for line in daemon.log.read_text().splitlines():
        assert is_harmless(line)
        assert set(json.loads(line)["event"]) <= set("abcdefghijklmnopqrstuvwxyz_.")
    assert is_harmless(daemon.console())


def test_fault_40_without_inotify_files_are_found_and_status_says_what_to_do(
    make_daemon: Callable[[str], Daemon], cli: Run
) -> None:
    none_left = ["unshare", "-Ur", "sh", "-c", 'echo 0 >/proc/sys/user/max_inotify_instances && exec "$@"', "sh"]
    possible = subprocess.run([*none_left, "true"], capture_output=True, text=True)
    if possible.returncode:
        pytest.skip(f"no user namespace with limits of its own: {possible.stderr.strip()}")
    daemon = make_daemon(CONFIG)
    daemon.start(through=none_left)
    (warning,) = daemon.wait_event("inbox.no_inotify")
    assert warning["raise_limit"] == "fs.inotify.max_user_instances"
    for n in range(3):
        daemon.drop(f"{n}.sh", "true\n")
    assert {manifest["state"] for manifest in daemon.wait_for(3).values()} == {"succeeded"}
    assert "raise fs.inotify.max_user_instances" in cli("status").out
    assert daemon.stop() == 0
