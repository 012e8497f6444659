"""Notifications by real programs: what they are told, that they are bounded, and that nothing of them is left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from process_kit import is_gone, orphans
from solvisor.backends.local import LocalBackend
from solvisor.config import NOTIFY_PLACEHOLDERS, Notify
from solvisor.home import Home
from solvisor.interfaces import AttemptSpec, Handle, Watcher
from solvisor.model import TARGETS, Batch, Cause, Job, JobSpec, Source, State
from solvisor.notifier import LOG_MOST_BYTES, QUEUE_MOST, Notifier, arguments, of_batch, of_job
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

ALL = ("succeeded", "failed", "cancelled", "rejected", "skipped", "batch")
QUICKLY = (0.001, 0.001)

# Writes down its arguments, one file for each run; a rename makes them visible at once.
WRITE = 'n=$(ls | wc -l); printf "%s\\n" "$@" > .part; mv .part "told-$n"'


def tell(*arguments: str, on: tuple[str, ...] = ALL, timeout: float = 30.0, script: str = WRITE) -> Notify:
    return Notify(command=("sh", "-c", script, "sh", *arguments), on=on, timeout=timeout)  # type: ignore[arg-type]


def job(name: str = "beam", state: State = State.FAILED, message: str | None = "no elastic constants") -> Job:
    spec = JobSpec(
        name=name,
        solver="ccx",
        primary="beam.inp",
        inputs=(),
        source=Source("inbox", "beam.inp"),
        user="user1",
        project="riser",
        batch="b1",
    )
    cause = Cause.EXIT if state == State.FAILED else None
    return Job("beam-0001", 1, state, spec, 0, cause=cause, message=message, finished_us=1)


BATCH = Batch("b1", "night run", "user1", "skip", None, 0, closed=True)
COUNTS = {State.SUCCEEDED: 11, State.FAILED: 2, State.SKIPPED: 1}


class Bench:
    """A home, and what notifications leave in it."""

    def __init__(self, root: Path) -> None:
        self.home = Home.at(root)
        self.home.prepare()
        self.folder = self.home.state / "notify"
        self.specs: list[AttemptSpec] = []
        self.trouble: dict[str, str] = {}
        self.environ = {**os.environ, "NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "DISPLAY": ":7"}

    def told(self) -> list[list[str]]:
        found = self.folder.glob("told-*") if self.folder.exists() else []
        return [path.read_text().splitlines() for path in sorted(found, key=lambda path: int(path.name[5:]))]

    @asynccontextmanager
    async def notifier(
        self, settings: Notify | None, *, running: bool = True, retry_seconds: tuple[float, ...] = QUICKLY
    ) -> AsyncIterator[Notifier]:
        async with LocalBackend(kill_wait_seconds=20) as backend, anyio.create_task_group() as tasks:
            notifier = Notifier(
                settings,
                home=self.home,
                home_id="f" * 32,
                backend=Recorded(backend, self.specs),
                environ=self.environ,
                config_dir=self.home.root,
                trouble=self.trouble,
                retry_seconds=retry_seconds,
            )
            if running:
                tasks.start_soon(notifier.run)
            yield notifier
            tasks.cancel_scope.cancel()
        assert orphans() == []


class Recorded:
    """The backend, with a list of what it was asked to start."""

    def __init__(self, backend: LocalBackend, specs: list[AttemptSpec]) -> None:
        self._backend = backend
        self._specs = specs

    async def launch(self, prepare: Callable[[], AttemptSpec]) -> Handle:
        self._specs.append(prepare())
        return await self._backend.launch(lambda: self._specs[-1])

    def start(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
        raise AssertionError("a notification is waited for")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "home")


async def idle(notifier: Notifier) -> None:
    with anyio.fail_after(30):
        await notifier.wait_idle()


# What is told


async def test_a_job_is_told(bench: Bench) -> None:
    async with bench.notifier(tell("{name} {state}: {message}", "{id}", "{folder}")) as notifier:
        with capture_logs() as logs:
            notifier.job(job())
            await idle(notifier)
    folder = bench.home.failed / "beam-0001"
    assert bench.told() == [["beam failed: no elastic constants", "beam-0001", str(folder)]]
    assert [(line["event"], line["id"], line["tries"]) for line in logs] == [("notify.sent", "beam-0001", 1)]


async def test_a_batch_is_told(bench: Bench) -> None:
    async with bench.notifier(tell("{event} {id} {name} {state}: {message}", "{failed} of {total}")) as notifier:
        notifier.batch(BATCH, COUNTS)
        await idle(notifier)
    assert bench.told() == [
        ["batch b1 night run failed: 11 of 14 succeeded, 2 failed, 1 skipped", "2 of 14"],
    ]


def test_every_placeholder_has_a_value_whatever_is_told(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    told = [of_batch(BATCH, COUNTS), *(of_job(job(state=state), home) for state in TARGETS)]
    for news in told:
        assert set(news.values) == set(NOTIFY_PLACEHOLDERS)
    assert [news.event for news in told] == ["batch", *map(str, TARGETS)]
    succeeded = of_job(job(state=State.SUCCEEDED, message=None), home).values
    assert (succeeded["cause"], succeeded["message"], succeeded["total"]) == ("", "", "")
    assert succeeded["manifest"] == str(tmp_path / "done" / "beam-0001" / "manifest.json")
    assert of_job(job(), home).values["cause"] == "exit"


def test_a_batch_without_a_failure_succeeded() -> None:
    assert of_batch(BATCH, {State.SUCCEEDED: 3}).values["state"] == "succeeded"
    stopped = of_batch(replace(BATCH, stopped="beam failed, and the rule is to stop"), COUNTS)
    assert stopped.values["message"].endswith("1 skipped; beam failed, and the rule is to stop")


@pytest.mark.parametrize(
    ("on", "want"),
    [
        (("failed", "batch"), ["failed", "batch"]),
        (("succeeded",), ["succeeded"]),
        (("cancelled", "rejected", "skipped"), ["cancelled", "rejected", "skipped"]),
    ],
)
async def test_only_what_is_asked_for_is_told(bench: Bench, on: tuple[str, ...], want: list[str]) -> None:
    async with bench.notifier(tell("{event}", on=on)) as notifier:
        for state in TARGETS:
            notifier.job(job(state=state))
        notifier.batch(BATCH, COUNTS)
        await idle(notifier)
    assert sorted(line for (line,) in bench.told()) == sorted(want)


async def test_without_a_command_nobody_is_told(bench: Bench) -> None:
    async with bench.notifier(None) as notifier:
        notifier.job(job())
        notifier.batch(BATCH, COUNTS)
        await idle(notifier)
    assert not bench.folder.exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("-o ProxyCommand=x", " -o ProxyCommand=x"),
        ("--help", " --help"),
        ("@/etc/passwd", " @/etc/passwd"),
        ("$(id); `id` | x > y \"'", " $(id); `id` | x > y \"'"),
        ("two\nlines\r\nSubject: x", "two lines Subject: x"),
        ("bell\x07 escape\x1b[31m", "bell escape [31m"),
        ("left \u202eto right", "left to right"),
        ("{message}", " {message}"),
        ("Träger 5°", "Träger 5°"),
        ("\udcff", ""),
        ("x" * 5000, "x" * 1000),
    ],
)
async def test_hostile_words_are_an_argument_and_nothing_else(bench: Bench, name: str, shown: str) -> None:
    async with bench.notifier(tell("{name}", "m={message}", "end")) as notifier:
        notifier.job(job(name, message=name))
        await idle(notifier)
    assert bench.told() == [[shown, f"m={shown}", "end"]]


def test_a_program_beside_the_configuration() -> None:
    here = Path("/etc/solvisor")
    assert arguments(["./tell.sh", "{id}"], {"id": "b1"}, here) == ("/etc/solvisor/tell.sh", "b1")
    assert arguments(["mail", "{{id}}"], {}, here) == ("mail", "{id}")


async def test_the_program_has_the_daemons_environment_but_not_its_line_to_systemd(bench: Bench) -> None:
    script = f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))' > .part; mv .part told-1"
    async with bench.notifier(tell(script=script)) as notifier:
        notifier.job(job())
        await idle(notifier)
    environ = json.loads(bench.told()[0][0])
    assert (environ["DISPLAY"], environ["SOLVISOR_ATTEMPT"]) == (":7", f"{'f' * 32}/notify-1")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(environ)
    assert bench.folder.stat().st_mode & 0o777 == 0o700


# Trouble


async def test_a_failure_is_tried_again_until_it_works(bench: Bench) -> None:
    script = 'if ! test -e second; then touch second; echo "no connection" >&2; exit 7; fi; touch told-1'
    async with bench.notifier(tell(script=script)) as notifier:
        with capture_logs() as logs:
            notifier.job(job())
            await idle(notifier)
    assert [(line["event"], line["tries"]) for line in logs] == [("notify.failed", 1), ("notify.sent", 2)], logs
    assert logs[0]["error"] == "it ended with exit status 7; the last it said: no connection"
    assert logs[0]["retry_seconds"] == QUICKLY[0]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("sh", "-c", "exit 3"), "it ended with exit status 3"),
        (("sh", "-c", "kill -KILL $$"), "signal 9 ended it"),
        (("no-such-program-here",), "of [notify] is not on the PATH"),
        (("./no-such-script",), "of [notify] cannot be found"),
        (("sh", "-c", 'printf "\\033[31mred\\n\\n"; exit 1'), "it ended with exit status 1; the last it said: [31mred"),
    ],
)
async def test_what_never_works_is_given_up_and_does_not_hold_up_the_next(
    bench: Bench, command: tuple[str, ...], why: str
) -> None:
    async with bench.notifier(Notify(command=command)) as notifier:
        with capture_logs() as logs:
            notifier.job(job())
            notifier.job(job())
            await idle(notifier)
    assert [(line["event"], line["tries"]) for line in logs] == [("notify.failed", n) for n in (1, 2, 3)] * 2
    assert all(why in line["error"] for line in logs), logs
    assert [line["retry_seconds"] for line in logs] == [*QUICKLY, None] * 2


async def test_a_program_that_hangs_is_stopped_with_all_it_started(bench: Bench) -> None:
    # One child in a session of its own, and nobody listens to SIGTERM.
    script = "trap '' TERM; echo $$ >> pids; setsid sh -c 'echo $$ >> pids; sleep 1000; :' & sleep 1000; sleep 1000"
    async with bench.notifier(tell(script=script, timeout=0.5), retry_seconds=()) as notifier:
        with capture_logs() as logs:
            notifier.job(job())
            await idle(notifier)
        pids = [int(line) for line in (bench.folder / "pids").read_text().splitlines()]
        assert len(pids) == 2
        assert all(is_gone(pid) for pid in pids)
    (line,) = logs
    assert line["error"] == "it ran longer than 500 ms and was stopped"


async def test_what_runs_is_killed_when_telling_ends(bench: Bench) -> None:
    pids = bench.folder / "pids"
    async with bench.notifier(tell(script="trap '' TERM; echo $$ > pids; sleep 1000; :"), running=False) as notifier:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notifier.run)
            notifier.job(job())
            await eventually(lambda: pids.exists() and pids.read_text().strip(), "the program runs")
            tasks.cancel_scope.cancel()
        await eventually(lambda: is_gone(int(pids.read_text())), "the program is gone")


async def test_what_is_too_much_drops_the_oldest(bench: Bench) -> None:
    async with bench.notifier(tell("{name}"), running=False) as notifier:
        with capture_logs() as logs:
            for n in range(QUEUE_MOST + 2):
                notifier.job(replace(job(f"job {n}"), id=f"job-{n}"))
        assert [(line["event"], line["id"]) for line in logs] == [("notify.dropped", f"job-{n}") for n in (0, 1)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notifier.run)
            await eventually(lambda: bench.told(), "the first")
            tasks.cancel_scope.cancel()
    assert bench.told()[0] == ["job 2"]


async def test_one_runs_at_a_time_in_the_order_of_posting(bench: Bench) -> None:
    script = f"mkdir running || touch overlap; {WRITE}; rmdir running"
    async with bench.notifier(tell("{name}", script=script)) as notifier:
        for name in "abcde":
            notifier.job(job(name))
        await idle(notifier)
        for _ in range(10):  # it has nothing to do, and is still there after that
            await anyio.lowlevel.checkpoint()
        notifier.job(job("f"))
        await idle(notifier)
    assert bench.told() == [[name] for name in "abcdef"]
    assert not (bench.folder / "overlap").exists()
    assert len({spec.token for spec in bench.specs}) == 6


async def test_what_the_last_program_said_is_kept_within_bounds(bench: Bench) -> None:
    said = bench.home.log_dir / "notify.log"
    async with bench.notifier(tell("{name}", script='yes "$1" | head -c "$1"')) as notifier:
        notifier.job(job("1000000"))
        await idle(notifier)
        assert said.stat().st_size <= LOG_MOST_BYTES
        notifier.job(job("4"))
        await idle(notifier)
    assert said.read_text() == "4\n4\n"


async def test_nothing_that_goes_wrong_reaches_the_poster(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Callable[[], None]:
        raise RuntimeError("a defect")

    async with bench.notifier(tell("{name}")) as notifier:
        with capture_logs() as logs:
            with monkeypatch.context() as patch:
                patch.setattr("solvisor.notifier.arguments", broken)
                notifier.job(job())
                await idle(notifier)
            bench.folder.rmdir()
            bench.folder.write_text("in the way")
            notifier.job(job())
            await idle(notifier)
            bench.folder.unlink()
            notifier.job(job())
            await idle(notifier)
    assert [line["event"] for line in logs] == [*["notify.failed"] * 6, "notify.sent"]
    assert logs[0]["error"] == "defect: RuntimeError('a defect')"
    assert "Not a directory" in logs[3]["error"] or "exists" in logs[3]["error"]


async def test_a_program_that_is_missing_is_known_as_trouble_until_one_does_its_work(bench: Bench) -> None:
    missing = Notify(command=("no-such-program",), on=("failed",))
    async with bench.notifier(missing, retry_seconds=()) as notifier:
        notifier.job(job())
        await idle(notifier)
    assert "no-such-program of [notify] is not on the PATH" in bench.trouble["notify"].replace('"', "")
    async with bench.notifier(tell()) as notifier:
        notifier.job(job())
        await idle(notifier)
    assert bench.trouble == {}


async def test_at_the_end_nothing_is_tried_again(bench: Bench) -> None:
    async with bench.notifier(tell(script="exit 3"), retry_seconds=(600.0,)) as notifier:
        notifier.job(job())
        await eventually(lambda: "notify" in bench.trouble, "the first try failed")
        with anyio.fail_after(10):
            await notifier.finish()
    assert len(bench.specs) == 1
