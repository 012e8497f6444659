"""The life of a batch against a daemon that plays: sent and watched side by side, refused, away, interrupted, left."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from fake_daemon import Request, explanation, fake_daemon, status
from fake_daemon import row as job_row
from solvisor.errors import SolvisorError
from solvisor.views import (
    BatchRule,
    BatchView,
    Explanation,
    JobPage,
    JobRow,
    Level,
    PoolRow,
    Problem,
    Status,
    Submitted,
)
from solvisor_service.batch import conduct as conducting
from solvisor_service.batch import idle as idling
from solvisor_service.batch import life as living
from solvisor_service.batch import link as linking
from solvisor_service.batch.conduct import conduct
from solvisor_service.batch.idle import Idle
from solvisor_service.batch.ledger import Item, Ledger
from solvisor_service.batch.life import Life, ServersFailed, stem_of
from solvisor_service.batch.link import Link
from solvisor_service.batch.mail import Mailbox, Said, signals_into
from solvisor_service.batch.progress import Meter
from solvisor_service.batch.summary import Summary
from solvisor_service.client import Upload
from solvisor_service.targets import Prepared
from waiting import wait_until

PATIENCE = 30.0
BATCH = "b-1"
PATH = f"/v1/batches/{BATCH}"
PAGE_OF_TWO = 2


class Daemon:
    """Jobs of one batch. A poll of the batch ends ``per_poll`` jobs; hooks run at what they are named for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.states: dict[str, str] = {}  # by key, in the order of acceptance
        self.rule: dict[str, Any] = {}
        self.closed = False
        self.stopped: str | None = None
        self.per_poll = 1
        self.on_submit: Callable[[str], Any] = lambda key: None
        self.on_poll: Callable[[], Any] = lambda: None
        self.cancelled: list[bool] = []
        self.why = "paused"
        self.problems: tuple[str, ...] = ()
        self.servers: tuple[PoolRow, ...] = ()
        self.log: list[str] = []
        self._lock = threading.Lock()
        self._life = ExitStack()

    def start(self) -> None:
        fake = self._life.enter_context(fake_daemon(self.home))
        fake.answers.update(
            {
                ("GET", "/v1/status"): self._status,
                **{("GET", f"/v1/jobs/job-{n}/explain"): self._explain for n in range(1, 10)},
                ("POST", "/v1/batches"): self._open,
                ("POST", "/v1/jobs"): self._submit,
                ("GET", "/v1/jobs"): self._jobs,
                ("GET", PATH): self._poll,
                ("POST", f"{PATH}/close"): self._close,
                ("POST", f"{PATH}/cancel"): self._cancel,
            }
        )

    def stop(self) -> None:
        self._life.close()

    def _open(self, request: Request) -> BatchView:
        self.rule = json.loads(request.body)
        return self._view()

    def _status(self, _: Request) -> Status:
        return status(jobs=Level(0, 4), problems=self.problems, servers=self.servers)

    def _explain(self, request: Request) -> Explanation:
        job_id = request.path.split("/")[3]
        self.log.append(f"explain {job_id}")
        return explanation(
            "waits because it was paused.",
            job=job_row(id=job_id, state="queued"),
            findings=[{"reason": "paused", "label": self.why, "holds": True, "text": f"{self.why} for now"}],
        )

    def _submit(self, request: Request) -> Any:
        key = request.headers["Idempotency-Key"]
        assert request.query["batch"] == [BATCH]
        self.log.append(f"submit {key}")
        hooked = self.on_submit(key)
        if hooked is not None:
            return hooked
        with self._lock:
            existing = key in self.states
            self.states.setdefault(key, "skipped" if self.cancelled else "queued")
        return Submitted(id_of(key), key, "ccx", existing)

    def _poll(self, request: Request) -> BatchView:
        self.on_poll()
        with self._lock:
            for key in [key for key, state in self.states.items() if state in ("queued", "running")][: self.per_poll]:
                self.states[key] = "succeeded"
            return self._view()

    def _close(self, request: Request) -> BatchView:
        self.log.append("close")
        self.closed = True
        return self._view()

    def _cancel(self, request: Request) -> BatchView:
        running = json.loads(request.body)["running"]
        self.cancelled.append(running)
        doomed = ("queued", "running") if running else ("queued",)
        with self._lock:
            self.states = {k: "cancelled" if state in doomed else state for k, state in self.states.items()}
        return self._view()

    def _jobs(self, request: Request) -> JobPage:
        with self._lock:
            rows = [job(key, state) for key, state in reversed(self.states.items())]
        begin = int(request.query.get("cursor", ["0"])[0])
        end = begin + PAGE_OF_TWO
        return JobPage(tuple(rows[begin:end]), str(end) if end < len(rows) else None)

    def _view(self) -> BatchView:
        counts = {state: list(self.states.values()).count(state) for state in STATES}
        over = self.closed and not any(counts[state] for state in ("queued", "running", "collecting"))
        return BatchView(
            id=BATCH,
            name="",
            user=None,
            on_error="skip",
            max_jobs=None,
            closed=self.closed,
            over=over,
            stopped=self.stopped,
            **counts,
        )


STATES = ("queued", "running", "collecting", "succeeded", "failed", "cancelled", "rejected", "skipped")


def id_of(key: str) -> str:
    return f"job-{key.rpartition('/')[2]}"


def job(key: str, state: str) -> JobRow:
    return job_row(id=id_of(key), state=state, tries=1, run_seconds=1.0)


class Run:
    """One ``solvisor run`` without its command line."""

    def __init__(
        self,
        home: Path,
        inputs: int = 4,
        on_error: str = "skip",
        patience: float = PATIENCE,
        *,
        chosen: bool = False,
    ) -> None:
        items = []
        for n in range(1, inputs + 1):
            path = home / f"case-{n}.inp"
            path.write_text("data")
            items.append(Item(n, str(path), Prepared((Upload(path.name, path),), {"solver": "ccx"})))
        self.ledger = Ledger("ccx", BatchRule(on_error=on_error), items)  # type: ignore[arg-type]
        self.mailbox: Mailbox = SimpleQueue()
        self.console = io.StringIO()
        config = home / "solvisor.toml"
        self.link = Link(home, config, lambda text: self.mailbox.put(Said(text)), patience, chosen=chosen)

    def go(self) -> Summary:
        life = Life(self.ledger, self.link, self.mailbox, None)
        meter = Meter(self.console, lambda: 0.0)
        error = conduct(life, self.ledger, self.link, self.mailbox, meter)
        self.link.close()
        if error is not None:
            raise error
        return self.ledger.summary()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self.mailbox.put(number)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path)
    made.start()
    yield made
    made.stop()


def states(summary: Summary) -> list[str]:
    return [row.state for row in summary.rows]


def test_every_input_becomes_a_job_and_a_row_in_order(daemon: Daemon) -> None:
    run = Run(daemon.home, inputs=5)
    summary = run.go()
    assert states(summary) == ["succeeded"] * 5
    assert [row.id for row in summary.rows] == [f"job-{n}" for n in range(1, 6)]
    assert daemon.log == [*(f"submit {BATCH}/{n}" for n in range(1, 6)), "close"]
    assert daemon.cancelled == []
    assert run.console.getvalue() == "Processing: 5/5 [0 active, 0 failed]\n"
    assert (summary.batch, summary.interrupted, summary.stopped_early) == (BATCH, False, False)


def test_jobs_run_while_later_inputs_are_still_being_sent(daemon: Daemon) -> None:
    seen = threading.Event()
    daemon.on_poll = lambda: seen.set() if "succeeded" in daemon.states.values() else None
    daemon.on_submit = lambda key: None if not key.endswith("/3") or seen.wait(20) else pytest.fail("sent first")
    assert states(Run(daemon.home).go()) == ["succeeded"] * 4
    assert seen.is_set()


def test_a_refused_input_is_a_row_and_the_others_go_on(daemon: Daemon) -> None:
    refusal = Problem(title="refused", status=422, detail="params.loat: no such parameter", code="param")
    daemon.on_submit = lambda key: refusal if key.endswith("/2") else None
    run = Run(daemon.home)
    summary = run.go()
    assert states(summary) == ["succeeded", "rejected", "succeeded", "succeeded"]
    assert summary.rows[1].message == "params.loat: no such parameter"
    assert "4/4 [0 active, 1 failed]" in run.console.getvalue()


def test_with_on_error_fail_a_refused_input_is_the_last_that_is_sent(daemon: Daemon) -> None:
    refusal = Problem(title="refused", status=422, detail="no", code="param")
    daemon.on_submit = lambda key: refusal if key.endswith("/2") else None
    daemon.per_poll = 0
    summary = Run(daemon.home, on_error="fail").go()
    assert states(summary) == ["cancelled", "rejected", "skipped", "skipped"]
    assert daemon.rule["on_error"] == "fail"
    assert daemon.log == [f"submit {BATCH}/1", f"submit {BATCH}/2", "close"]
    assert daemon.cancelled == [False]
    assert summary.stopped_early


def test_a_batch_that_the_daemon_stopped_gets_no_more_inputs(daemon: Daemon) -> None:
    polled = threading.Event()

    def submit(key: str) -> None:
        if key.endswith("/2"):
            daemon.stopped = "job-1 was failed, and its batch stops at the first failure"
            polled.clear()
        if key.endswith("/3"):
            pytest.fail("nothing more may be sent")
        if key.endswith("/2"):
            assert polled.wait(20)
            assert polled.wait(20)

    daemon.on_submit = submit
    run = Run(daemon.home, on_error="fail")
    daemon.on_poll = lambda: polled.set() if run.ledger.stopped is not None else None
    summary = run.go()
    assert states(summary) == ["succeeded", "succeeded", "skipped", "skipped"]
    assert summary.rows[3].message == f"not sent: {daemon.stopped}"
    assert summary.stopped_early


def test_a_file_that_went_away_is_refused_and_not_taken_for_a_daemon_that_went_away(daemon: Daemon) -> None:
    run = Run(daemon.home)
    Path(run.ledger.items[1].given).unlink()
    summary = run.go()
    assert states(summary) == ["succeeded", "rejected", "succeeded", "succeeded"]
    assert "case-2.inp cannot be read any more" in (summary.rows[1].message or "")


def test_the_key_of_a_job_file_is_that_of_its_job(daemon: Daemon) -> None:
    run = Run(daemon.home, inputs=2)
    own = run.ledger.items[1]
    assert own.prepared is not None
    own.prepared = own.prepared._replace(key="Ω-1")
    assert states(run.go()) == ["succeeded"] * 2
    assert [line.encode("latin-1").decode() for line in daemon.log[:2]] == [f"submit {BATCH}/1", "submit Ω-1"]


def test_a_batch_of_which_nothing_runs_says_why_once_a_reason(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idling, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(living, "_ROWS_EVERY_SECONDS", 0.0)
    run = Run(daemon.home, inputs=2)
    daemon.per_poll = 0

    def poll() -> None:
        asked = sum(line.startswith("explain") for line in daemon.log)
        daemon.why = "paused" if asked < 3 else "license"
        daemon.per_poll = 1 if asked > 5 else 0

    daemon.on_poll = poll
    assert states(run.go()) == ["succeeded"] * 2
    said = [line for line in run.console.getvalue().splitlines() if "nothing of the batch" in line]
    told = "solvisor: nothing of the batch runs; job-1 waits because it was paused"
    assert said == [f"{told} ({why} for now); see: solvisor explain job-1" for why in ("paused", "license")]


def test_a_batch_that_runs_or_waits_a_moment_is_not_explained() -> None:
    idle = Idle()
    queued = batch_of(queued=2)
    assert [idle.is_due(queued, now) for now in (10.0, 11.0, 12.9, 13.0, 13.1, 15.9, 16.1)] == [
        *(False, False, False, True, False, False, True)
    ]
    for busy in (batch_of(queued=2, running=1), batch_of(queued=2, collecting=1), batch_of(succeeded=2)):
        assert not idle.is_due(busy, 30.0)
        assert [idle.is_due(queued, now) for now in (40.0, 42.0)] == [False, False], "it begins anew"


def test_a_job_that_waits_no_more_is_not_explained() -> None:
    idle = Idle()
    holds = {"reason": "license", "label": "license", "holds": True, "text": "ccx: needs 1", "what": "ccx"}
    assert idle.words(explanation("runs.", job=job_row(state="running"), findings=[holds])) is None
    assert idle.words(explanation("starts now.", job=job_row(state="queued"))) is None
    waits = explanation("waits.", job=job_row(state="queued"), findings=[holds | {"holds": False}, holds])
    assert " waits (ccx: needs 1); see: solvisor explain" in (idle.words(waits) or "")
    assert idle.words(waits) is None, "once a reason"
    other = explanation("waits.", job=job_row(state="queued"), findings=[holds | {"what": "other"}])
    assert idle.words(other) is not None


def test_a_reason_that_becomes_worse_is_told_again() -> None:
    idle = Idle()
    holds = {"reason": "server", "label": "server", "holds": True, "text": "no server of f is up", "what": "f"}
    waits = explanation("waits for a warm server. Nothing is wrong.", job=job_row(state="queued"), findings=[holds])
    assert "waits for a warm server (no server of f is up). Nothing is wrong; see: " in (idle.words(waits) or "")
    assert idle.words(waits) is None
    failed = replace(waits, headline="waits for a warm server, and none is started any more.")
    assert "none is started any more (no server of f is up); see: " in (idle.words(failed) or "")


def pool_row(**changes: Any) -> PoolRow:
    row = PoolRow(
        solver="ccx", state="failed", wanted=1, starting=0, up=0, ready=0, busy=0, most=1, waiting=2, failures=6,
        error="no such file",
    )  # fmt: skip
    return replace(row, **changes)


def test_servers_that_nobody_starts_again_end_the_batch(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idling, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(linking, "ends_with_its_client", lambda pid: True)
    daemon.servers = (pool_row(solver="other"), pool_row())
    daemon.per_poll = 0
    run = Run(daemon.home, inputs=2)
    with pytest.raises(ServersFailed, match="the servers of ccx failed 6 times in a row: no such file; what waited"):
        run.go()
    summary = run.ledger.summary()
    assert (states(summary), summary.stopped_early, daemon.cancelled) == (["cancelled"] * 2, True, [False])


@pytest.mark.parametrize("servers", [(), (pool_row(state="backoff"),), (pool_row(ready=1),), (pool_row(solver="x"),)])
def test_servers_that_may_still_come_do_not(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, servers: tuple[PoolRow, ...]
) -> None:
    monkeypatch.setattr(linking, "ends_with_its_client", lambda pid: True)
    keeps_waiting(daemon, monkeypatch, servers)


def test_with_a_daemon_that_somebody_runs_they_are_waited_for(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    keeps_waiting(daemon, monkeypatch, (pool_row(),))


def keeps_waiting(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, servers: tuple[PoolRow, ...]) -> None:
    """It explains, again and again, and ends well once the jobs do."""
    monkeypatch.setattr(idling, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(living, "_ROWS_EVERY_SECONDS", 0.0)
    daemon.servers = servers

    def poll() -> None:
        daemon.per_poll = 1 if sum(line.startswith("explain") for line in daemon.log) > 2 else 0

    daemon.on_poll = poll
    assert states(Run(daemon.home, inputs=1).go()) == ["succeeded"]
    assert daemon.cancelled == []


# --- a daemon that goes away ------------------------------------------------------------------------------------------


def test_a_daemon_that_comes_back_finds_the_batch_going_on(daemon: Daemon) -> None:
    gone = threading.Event()

    def submit(key: str) -> None:
        if key.endswith("/3") and not gone.is_set():
            gone.set()
            threading.Thread(target=restart).start()
            raise ConnectionError("it ends before it answers")

    def restart() -> None:
        daemon.stop()
        daemon.start()
        daemon.per_poll = 1

    daemon.on_submit = submit
    daemon.per_poll = 0
    run = Run(daemon.home)
    assert states(run.go()) == ["succeeded"] * 4
    assert run.console.getvalue().count("does not answer; asking again for up to 30 s") == 1
    assert run.console.getvalue().count("answers again") == 1


def test_a_job_whose_answer_was_lost_is_the_same_job_when_it_is_sent_again(daemon: Daemon) -> None:
    lost: list[str] = []

    def submit(key: str) -> None:
        if key.endswith("/2") and not lost:
            lost.append(key)
            daemon.states[key] = "queued"
            raise ConnectionError("accepted, not answered")

    daemon.on_submit = submit
    summary = Run(daemon.home).go()
    assert [row.id for row in summary.rows] == ["job-1", "job-2", "job-3", "job-4"]
    assert daemon.log.count(f"submit {BATCH}/2") == 2
    assert list(daemon.states) == [f"{BATCH}/{n}" for n in range(1, 5)]


def test_a_daemon_that_cannot_accept_just_now_is_asked_again(daemon: Daemon) -> None:
    full = Problem(title="disk full", status=503, detail="the disk is full", code="unavailable")
    tried: list[str] = []
    daemon.on_submit = lambda key: full if tried.append(key) is None and tried.count(key) < 3 else None  # type: ignore[func-returns-value]
    run = Run(daemon.home, inputs=2)
    assert states(run.go()) == ["succeeded"] * 2
    assert "the disk is full; asking again" in run.console.getvalue()


def test_a_daemon_that_does_not_come_back_ends_it_with_what_is_known(daemon: Daemon) -> None:
    def submit(key: str) -> None:
        if key.endswith("/3"):
            threading.Thread(target=daemon.stop).start()
            raise ConnectionError("it ends")

    daemon.on_submit = submit
    run = Run(daemon.home, patience=0.3)
    with pytest.raises(SolvisorError, match="solvisor status") as caught:
        run.go()
    assert caught.value.exit_status == 3
    summary = run.ledger.summary()
    assert summary.rows[2].state == "unknown"
    assert (summary.rows[3].state, summary.rows[3].message) == ("cancelled", "not sent: the daemon did not answer")
    assert [row.id for row in summary.rows] == ["job-1", "job-2", None, None]


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_one_interrupt_cancels_what_is_queued_and_waits_for_what_runs(daemon: Daemon) -> None:
    run = Run(daemon.home)

    def submit(key: str) -> None:
        if key.endswith("/3"):
            daemon.states[f"{BATCH}/1"] = "running"
            run.interrupt()
            wait_until(lambda: daemon.cancelled, "the daemon heard of it while this one was on its way")

    daemon.on_submit = submit
    daemon.per_poll = 0

    def poll() -> None:
        if daemon.closed and False in daemon.cancelled:
            daemon.per_poll = 1

    daemon.on_poll = poll
    summary = run.go()
    assert states(summary) == ["succeeded", "cancelled", "skipped", "cancelled"]
    assert summary.rows[3].message == "not sent: the batch was interrupted"
    assert set(daemon.cancelled) == {False}
    assert daemon.log[-1] == "close"
    assert "Ctrl-C again stops it" in run.console.getvalue()
    assert summary.interrupted


@pytest.mark.parametrize("signals", [[signal.SIGINT, signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]])
def test_two_interrupts_or_a_termination_stop_what_runs(daemon: Daemon, signals: list[signal.Signals]) -> None:
    run = Run(daemon.home)

    def submit(key: str) -> None:
        if key.endswith("/2"):
            daemon.states[f"{BATCH}/1"] = "running"
            for number in signals:
                run.interrupt(number)
            assert wished(run, 2)

    daemon.on_submit = submit
    daemon.per_poll = 0
    summary = run.go()
    assert states(summary) == ["cancelled"] * 4
    assert daemon.cancelled[-1] is True


def test_only_signals_that_are_not_ignored_become_mail() -> None:
    mailbox: Mailbox = SimpleQueue()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with signals_into(mailbox):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGINT)
            assert mailbox.get(timeout=20) is signal.SIGINT
        assert mailbox.empty()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_third_interrupt_leaves_at_once_whatever_the_daemon_does(daemon: Daemon) -> None:
    run = Run(daemon.home)
    hang = threading.Event()

    def submit(key: str) -> None:
        if key.endswith("/2"):
            for _ in range(3):
                run.interrupt()
            hang.wait(30)

    daemon.on_submit = submit
    try:
        summary = run.go()
        assert not hang.is_set()
        assert states(summary)[1:] == ["unknown", "cancelled", "cancelled"]
        assert summary.rows[0].id == "job-1"
    finally:
        hang.set()


def test_what_was_stopped_and_does_not_end_is_left(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conducting, "STOP_SECONDS", 0.2)
    run = Run(daemon.home, inputs=1)
    daemon.per_poll = 0
    daemon.on_submit = lambda key: run.interrupt(signal.SIGTERM)

    def undead() -> None:
        daemon.states = dict.fromkeys(daemon.states, "collecting")

    daemon.on_poll = undead
    monkeypatch.setattr(daemon, "_cancel", lambda request: daemon._view())
    summary = run.go()
    assert "has not ended; left" in run.console.getvalue()
    assert summary.unfinished == 1


# --- before anything is sent ------------------------------------------------------------------------------------------


def test_an_unknown_solver_is_told_with_those_there_are(daemon: Daemon) -> None:
    run = Run(daemon.home)
    run.ledger.solver = "cxx"
    with pytest.raises(SolvisorError, match=r"there is no solver cxx .* there are: ccx, orcaflex") as caught:
        run.go()
    assert caught.value.exit_status == 2
    assert daemon.rule == {}


def test_an_unknown_solver_may_be_one_of_a_configuration_that_was_not_read_yet(daemon: Daemon) -> None:
    daemon.problems = ("the disk is full", "the configuration was changed since; restart the daemon")
    run = Run(daemon.home)
    run.ledger.solver = "cxx"
    with pytest.raises(SolvisorError, match=r"orcaflex; the configuration was changed since; restart the daemon$"):
        run.go()


@pytest.mark.parametrize("chosen", [True, False])
def test_a_configuration_that_is_not_used_is_told(daemon: Daemon, chosen: bool) -> None:
    run = Run(daemon.home, chosen=chosen)
    run.go()
    told = f"--config {daemon.home}/solvisor.toml is not used"
    assert run.console.getvalue().count(told) == chosen


def test_more_jobs_than_the_daemon_runs_at_once_are_told(daemon: Daemon) -> None:
    run = Run(daemon.home)
    run.ledger.rule = BatchRule(max_jobs=9)
    run.go()
    assert "--max-jobs 9: the daemon runs at most 4 jobs at once" in run.console.getvalue()
    assert daemon.rule["max_jobs"] == 9


def test_without_daemon_and_configuration_it_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SolvisorError, match=f"solvisor init --home {tmp_path}") as caught:
        Run(tmp_path).go()
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("given", "stem"),
    [
        ("cases/beam.inp", "beam"),
        ("a b/beam.v2.inp", "beam.v2"),
        ("case.job.toml", "case"),
        ("CASE.JOB.TOML", "CASE"),
        ("folder/", "folder"),
        ("\u202e\x1b[2J.inp", "2J"),
        ("..", "job"),
        ("ü.inp", "job"),
        ("x" * 300 + ".inp", "x" * 64),
    ],
)
def test_the_folder_of_a_result_is_named_like_its_input(given: str, stem: str) -> None:
    assert stem_of(given) == stem


def batch_of(**counts: int) -> BatchView:
    """A batch with so many jobs in each state."""
    facts = {"id": BATCH, "name": "", "user": None, "on_error": "skip", "max_jobs": None, "stopped": None}
    return msgspec.convert(facts | {"closed": True, "over": False} | dict.fromkeys(STATES, 0) | counts, BatchView)


def wished(run: Run, wish: int) -> bool:
    """Whether the main thread took the interrupt; it waits for that."""
    return wait_until(lambda: run.ledger.wish >= wish, "the interrupt is taken")
