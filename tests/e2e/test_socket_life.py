"""The status socket through the lives of a daemon: who may use it, what lies in its way, crashes, stops, full disks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from daemon import Daemon
from socket_kit import BOUNDARY, MULTIPART, Answer, Http, connected, file
from solvisor.submission import SHORT_BYTES
from solvisor_service import client
from solvisor_service.client import Client, NotRunning, Upload
from solvisor_service.wire import Connection
from waiting import wait_until

Make = Callable[..., Daemon]

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user, mounts")


def in_work(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.home / "work").iterdir())


def started(daemon: Daemon) -> Http:
    daemon.start()
    http = Http(daemon.home)
    wait_until(http.path.exists, "the socket is there")
    return http


class Asking(threading.Thread):
    """A question whose answer takes its time."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        super().__init__()
        self._ask = ask
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except Exception as error:
            self.error = error

    def get(self) -> Answer:
        self.join(30)
        assert self.error is None, self.error
        assert self.answer is not None, "no answer"
        return self.answer


# --- who may use it -------------------------------------------------------------------------------------------------


def test_the_socket_has_its_mode_and_goes_with_the_daemon(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    http = started(daemon)
    assert stat.S_IMODE(http.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(http.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in http.path.parent.iterdir()] == ["solvisor.sock"]
    assert daemon.stop() == 0
    assert list(http.path.parent.iterdir()) == []
    with pytest.raises(NotRunning, match="no daemon is running"):
        Client(daemon.home).status()


def test_fault_86_a_home_with_a_path_too_long_for_a_socket(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG, "/".join(["n" * 60] * 3))
    daemon.start()
    path = daemon.home / "run" / "solvisor.sock"
    assert len(bytes(path)) > 107
    asking = Client(daemon.home)
    script = daemon.home / "a.sh"
    script.write_text("echo from afar\n")
    sent = asking.submit([Upload("a.sh", script)])
    assert asking.job(sent.id, wait=30).state == "succeeded"
    assert asking.log(sent.id, "stdout")[0] == b"from afar\n"
    if shutil.which("curl"):
        command = ["curl", "-sS", "--unix-socket", "solvisor.sock", "http://localhost/v1/status"]
        assert subprocess.run(command, cwd=path.parent, capture_output=True, check=True, timeout=30).stdout
    assert daemon.stop() == 0
    assert not path.exists()


def test_a_client_asks_again_on_the_connection_it_has_and_finds_the_next_daemon(
    make_daemon: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Connection] = []

    def make(path: Path, seconds: float) -> Connection:
        made.append(Connection(path, seconds))
        return made[-1]

    monkeypatch.setattr(client, "Connection", make)
    daemon = make_daemon(CONFIG)
    daemon.start()
    script = daemon.home / "a.sh"
    asking = Client(daemon.home)
    for size in (10, 2 * client.CHUNK):  # sent as one piece, and as several
        script.write_bytes(b"exit 0\n" + b"#" * size)
        sent = asking.submit([Upload("a.sh", script)])
        assert asking.job(sent.id).id == sent.id
    assert len(made) == 1
    daemon.kill()
    with pytest.raises(NotRunning, match="no daemon is running"):
        asking.status()
    daemon.start()
    assert asking.status().pid == daemon.running.pid
    assert len(made) == 2
    asking.status()
    assert len(made) == 2
    assert daemon.stop() == 0, "who keeps a connection keeps no daemon from its end"


# --- what lies in its way -------------------------------------------------------------------------------------------


def test_fault_80_a_socket_that_a_dead_daemon_left_is_replaced(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    http = started(daemon)
    daemon.kill()
    assert http.path.exists()
    with pytest.raises(ConnectionRefusedError):
        connected(http.path)
    with pytest.raises(NotRunning):
        Client(daemon.home).status()
    (http.path.parent / ".solvisor.sock.new").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as half:  # it died between the two steps
        half.bind(str(http.path.parent / ".solvisor.sock.new"))
    daemon.start()
    assert Client(daemon.home).status().pid == daemon.running.pid
    assert [path.name for path in http.path.parent.iterdir()] == ["solvisor.sock"]


@pytest.mark.parametrize(
    "put",
    [lambda path: path.write_text("mine"), lambda path: path.symlink_to("/etc/passwd"), Path.mkdir],
    ids=["file", "link", "folder"],
)
def test_fault_80_what_is_no_socket_is_never_removed(make_daemon: Make, put: Callable[[Path], object]) -> None:
    daemon = make_daemon(CONFIG)
    path = daemon.home / "run" / "solvisor.sock"
    path.parent.mkdir(mode=0o750)
    put(path)
    before = path.lstat()
    daemon.start(ready=False)
    assert daemon.running.wait(60) == 2
    assert f"{path} is in the way of the status socket and is no socket; remove it" in daemon.console()
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)


# --- crashes and stops ----------------------------------------------------------------------------------------------


def test_kill_9_amid_submissions_loses_no_answer_and_doubles_no_job(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG.replace("[daemon]", "[daemon]\ninterruptions_max = 100"))
    http = started(daemon)
    keys = [f"key {n}" for n in range(40)]
    answered: dict[str, str] = {}

    def send(some: list[str]) -> None:
        for key in some:
            with contextlib.suppress(OSError):  # the daemon is gone: sent again later
                answer = http.send(file("a.sh", f"echo {key}\n".encode()), file("mesh.inc", b"m" * 100_000), key=key)
                if answer.status in (200, 201):
                    assert answered.setdefault(key, answer.json["id"]) == answer.json["id"]

    def there_are(count: int) -> bool:
        return len(answered) >= count

    for life in range(4):
        left = [key for key in keys if key not in answered]
        senders = [threading.Thread(target=send, args=(left[n::4],)) for n in range(4)]
        for sender in senders:
            sender.start()
        if life < 3:
            wanted = min(len(answered) + 5, len(keys))
            wait_until(partial(there_are, wanted), f"{wanted} answers")
            daemon.kill()
        for sender in senders:
            sender.join()
        if life < 3:
            daemon.start()
    assert sorted(answered) == sorted(keys)
    send(keys)  # once more, all of them
    for key, job_id in answered.items():
        view = http.get(f"/v1/jobs/{job_id}?wait=30").json
        assert (view["state"], view["key"]) == ("succeeded", key)
    found = daemon.manifests("done", "failed")
    assert sorted(found) == sorted(answered.values())
    assert sorted(manifest["key"] for manifest in found.values()) == sorted(keys)
    # A repeated submission that a crash met after its claim can only be refused, visibly: its job is there already.
    assert {manifest["code"] for manifest in daemon.manifests("rejected").values()} <= {"key"}
    wait_until(lambda: not in_work(daemon), "nothing is left on its way")


def test_sigterm_answers_who_waits_and_ends_the_daemon(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    http = started(daemon)
    http.post("/v1/pause")
    job_id = http.send(file("a.sh", b"exit 0\n")).json["id"]
    batch_id = http.post("/v1/batches", {}).json["id"]
    http.send(file("b.sh"), query=f"?batch={batch_id}")
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART['Content-Type']}\r\n"
    begun = f"--{BOUNDARY}\r\n".encode() + file("c.sh", b"#" * 2 * SHORT_BYTES)
    half = head.encode() + f"Content-Length: {len(begun) + 99}\r\n\r\n".encode() + begun
    with connected(http.path) as idle, connected(http.path) as uploading:
        uploading.sendall(half)
        wait_until(lambda: any(name.endswith(".upload") for name in in_work(daemon)), "an upload is under way")
        polls = [
            Asking(lambda: http.get(f"/v1/jobs/{job_id}?wait=60")),
            Asking(lambda: http.get(f"/v1/batches/{batch_id}?wait=60")),
        ]
        answer = http.get(f"/v1/jobs/{job_id}?wait=0.1")  # by now the others are asked, too
        assert answer.json["state"] == "queued"
        assert daemon.stop() == 0
        job, batch = (poll.get() for poll in polls)
        assert idle.recv(1) == b""
    assert (job.status, job.json["state"]) == (200, "queued")
    assert (batch.status, batch.json["queued"]) == (200, 1)
    http = started(daemon)
    assert not [name for name in in_work(daemon) if name.endswith(".upload")]
    http.post("/v1/resume")
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    assert len(daemon.wait_for(2)) == 2


def test_a_daemon_that_stops_says_so_and_takes_nothing_in(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    http = started(daemon)
    gate = daemon.home / "gate"
    job_id = http.send(file("a.sh", f"until [ -e {gate} ]; do sleep 0.05; done\n".encode())).json["id"]
    daemon.wait_event("attempt.started")
    daemon.signal(signal.SIGTERM)
    wait_until(lambda: http.get("/v1/status").json["health"] == "stopping", "it is stopping")
    refused = [http.send(file("b.sh")), http.post("/v1/batches", {}), http.post(f"/v1/jobs/{job_id}/retry")]
    assert [(answer.status, answer.code) for answer in refused] == [(503, "unavailable")] * 3
    assert in_work(daemon) == [job_id]
    poll = Asking(lambda: http.get(f"/v1/jobs/{job_id}?wait=60"))
    gate.touch()
    assert poll.get().json["state"] == "succeeded"
    assert daemon.running.wait(30) == 0


# --- a full disk ----------------------------------------------------------------------------------------------------


@needs_root
def test_fault_26_a_full_disk_is_answered_with_507_and_nothing_is_left(make_daemon: Make, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        daemon = make_daemon(CONFIG, str(disk / "home"))
        http = started(daemon)
        block = b"x" * (1 << 20)

        def large() -> Iterator[bytes]:
            yield f"--{BOUNDARY}\r\n".encode() + file("big")
            yield from [block] * 60

        answer = http.ask("POST", "/v1/jobs", large(), MULTIPART)
        assert (answer.status, answer.code) == (507, "unavailable")
        assert in_work(daemon) == []
        answer = http.send(file("a.sh", b"exit 0\n"))
        assert answer.status == 201, answer
        assert http.get(f"/v1/jobs/{answer.json['id']}?wait=30").json["state"] == "succeeded"
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        subprocess.run(["umount", "-l", str(disk)], check=True)
