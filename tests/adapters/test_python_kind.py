"""The kind ``python``: real workers, started as a pool starts them and reached as it reaches them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from builders import make_settings, make_spec
from solvisor.errors import NotReady, ServerBroken, SpawnError, Unreached
from solvisor.interfaces import Channel, Handle, Program, Site, Up, WarmKind
from solvisor.kinds import PythonSolver, Servers, WarmSolver
from solvisor.model import Attempt, ExitFacts, FileFact, Job, Report, State
from solvisor.params import Param
from solvisor.solvers import python
from solvisor.solvers.environment import server_environment
from solvisor.solvers.python import PythonKind
from waiting import eventually
from worker_kit import PROGRAMS, pythons

LOOPS = "both"

PARAMS = {name: Param(type="str") for name in ("who", "text", "how")} | {"lines": Param(type="int")}


class Task:
    """A job as the kind of a server sees it, staged."""

    def __init__(self, folder: Path, **params: Any) -> None:
        output = folder / "output"
        output.mkdir(parents=True)
        (output / "rows.csv").write_text("1,2\n")
        spec = make_spec("rows", primary="rows.csv", inputs=(FileFact("input/rows.csv", 4, ""),), params=params)
        attempt = Attempt(1, "token", "host", 0, make_settings())
        self.job = Job(folder.name, 1, State.RUNNING, spec, 0, (attempt,))
        self.folder = folder

    async def launch(self, program: Program, cwd: Path | None = None) -> Handle:
        raise NotImplementedError

    def log(self, name: str = "stdout.log") -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


class Pool:
    """Starts workers of one function, each in a folder of its own, and makes jobs for them."""

    def __init__(self, home: Path, function: str = "process", **settings: Any) -> None:
        self.home = home
        given = {"call": f"worker_functions.py:{function}", "python": sys.executable, "params": PARAMS}
        self.solver = PythonSolver(**{**given, **settings})
        self.kind: WarmKind = PythonKind(
            self.solver, "post", PROGRAMS, {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, {}
        )
        self.notes: list[str] = []
        self.process: subprocess.Popen[bytes]
        self.channels: list[Channel] = []
        self._started: list[subprocess.Popen[bytes]] = []
        self._jobs = 0

    def start(self) -> Up:
        folder = self.home / f"post-{len(self._started)}"
        place = Site(folder.name, str(folder), str(folder / "tmp"), None)
        os.makedirs(place.tmp)
        program = self.kind.program(place)
        up = Up(place, "home/token", 0, str(folder / "stdout.log"), str(folder / "stderr.log"))
        with open(up.stdout, "ab") as stdout, open(up.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                program.argv, cwd=folder, env=program.env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
        self._started.append(self.process)
        return msgspec.structs.replace(up, pid=self.process.pid)

    async def ready(self) -> Channel:
        with anyio.fail_after(20):
            self.channels.append(await self.kind.connect(self.start(), self.notes.append))
        return self.channels[-1]

    def job(self, **params: Any) -> Task:
        self._jobs += 1
        return Task(self.home / f"job-{self._jobs}", **params)

    async def close(self) -> None:
        for channel in self.channels:
            channel.close()
        for process in self._started:
            process.kill()
            await asyncio.to_thread(process.wait)  # and the loop lets go of the connections


NewPool = Callable[..., Pool]


@pytest.fixture
async def new_pool(tmp_path: Path) -> AsyncIterator[NewPool]:
    made: list[Pool] = []

    def new_pool(function: str = "process", home: Path = tmp_path, **settings: Any) -> Pool:
        made.append(Pool(home, function, **settings))
        return made[-1]

    yield new_pool
    for pool in made:
        await pool.close()


@pytest.fixture(params=["unix", "tcp"])
def door(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to reach a worker; the second is for systems without Unix sockets."""
    monkeypatch.setattr(python, "UNIX_SOCKETS", request.param == "unix")
    return str(request.param)


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpreter", pythons().values(), ids=pythons().keys())
async def test_a_worker_serves_job_after_job_and_quits(interpreter: str, door: str, new_pool: NewPool) -> None:
    pool = new_pool(python=interpreter)
    channel = await pool.ready()
    assert (channel.port is None) == (door == "unix")
    await channel.check()
    for served in (1, 2):
        work = pool.job()
        facts = await channel.run(work)
        assert (facts.exit_code, facts.signal, facts.log_cut_bytes) == (0, None, 0)
        assert facts.report is not None
        assert facts.report.result["served"] == served
        assert facts.report.result["input"] == "1,2\n"
        assert facts.report.result["output"] == str(work.folder / "output")
        assert facts.usage.cpu_user_seconds is not None
        await channel.check()
    assert await channel.quit()
    assert await asyncio.to_thread(pool.process.wait, 20) == 0


async def test_what_a_function_raises_is_the_report_of_its_job(new_pool: NewPool) -> None:
    pool = new_pool("execute")
    channel = await pool.ready()
    work = pool.job(text="raise ValueError('bad rows')")
    facts = await channel.run(work)
    assert facts.exit_code == 1
    version = f"sha256:{hashlib.sha256((PROGRAMS / 'worker_functions.py').read_bytes()).hexdigest()}"
    assert facts.report == Report(code="ValueError", message="ValueError: bad rows", version=version)
    assert work.log("stderr.log").endswith("ValueError: bad rows\n")
    assert (await channel.run(pool.job(text="pass"))).exit_code == 0


async def test_what_is_printed_after_a_job_is_in_the_log_of_the_server(new_pool: NewPool) -> None:
    pool = new_pool("execute")
    channel = await pool.ready()
    assert (await channel.run(pool.job(text="import atexit; atexit.register(print, 'bye')"))).exit_code == 0
    assert await channel.quit()
    assert await asyncio.to_thread(pool.process.wait, 20) == 0
    server = pool.home / "post-0"
    assert (server / "stdout.log").read_text() == "imported\nbye\n"
    assert (server / "stderr.log").read_text() == ""


@pytest.mark.parametrize("how", ["exit", "signal"])
async def test_a_crash_breaks_the_server(how: str, door: str, new_pool: NewPool) -> None:
    pool = new_pool("crash")
    channel = await pool.ready()
    work = pool.job(how=how)
    with pytest.raises(ServerBroken, match="the server hung up before it answered"):
        await channel.run(work)
    assert work.log() == "crashing\n"
    with pytest.raises(NotReady, match="the server had hung up"):
        await channel.check()
    with pytest.raises(Unreached, match="the server had hung up"):
        await channel.run(pool.job(how=how))


async def test_a_worker_killed_while_idle_was_not_reached(new_pool: NewPool) -> None:
    pool = new_pool()
    channel = await pool.ready()
    pool.process.kill()
    pool.process.wait()  # the loop does not see it before the job is sent
    work = pool.job()
    with pytest.raises(Unreached):
        await channel.run(work)
    assert work.log() == ""


async def test_a_job_that_hangs_can_be_given_up(new_pool: NewPool) -> None:
    pool = new_pool("hang")
    channel = await pool.ready()
    work = pool.job()
    task = asyncio.ensure_future(channel.run(work))
    await eventually(lambda: work.log() == "hanging\n", "the function hangs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(NotReady, match="an earlier question to the server was given up"):
        await channel.check()


async def test_a_log_over_its_cap_loses_its_middle_while_it_grows_and_at_the_end(new_pool: NewPool) -> None:
    pool = new_pool("shout", log_max=100_000)
    channel = await pool.ready()
    work = pool.job(lines=100_000)
    log = work.folder / "stdout.log"
    task = asyncio.ensure_future(channel.run(work))
    await eventually(lambda: log.exists() and log.stat().st_size == 5_000_000, "half of the lines are there")
    await eventually(lambda: log.stat().st_blocks * 512 < 200_000, "their middle is cut")
    (work.folder / "go on").touch()
    facts: ExitFacts = await task
    lines = log.read_bytes().splitlines()
    assert log.stat().st_size <= 100_000
    assert facts.log_cut_bytes > 9_800_000
    assert f"[solvisor: {facts.log_cut_bytes} bytes cut here, the log was longer than its cap]".encode() in lines
    assert lines[0].strip() == b"0"
    assert lines[-1].strip() == b"99999"
    short = pool.job(lines=1)
    (short.folder / "go on").touch()
    assert (await channel.run(short)).log_cut_bytes == 0


# --- a file that is edited --------------------------------------------------------------------------------------------


def write(path: Path, version: int) -> None:
    # Of each its own size: Python's cache cannot tell versions of one size and second apart.
    path.write_text(f"def process(job):\n    return {version}  {'#' * version}\n")


def at_second_zero(path: Path) -> None:
    """The same time for every version of a file."""
    os.utime(path, ns=(0, 0))


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A file with a function that returns 1."""
    path = tmp_path / "post.py"
    write(path, 1)
    return path


def spent(channel: Channel) -> str | None:
    """Whether it is known to be spent, after a look."""
    if channel.look is not None:
        channel.look()
    return channel.spent


async def result(pool: Pool, channel: Channel) -> Any:
    facts = await channel.run(pool.job())
    assert facts.report is not None
    return facts.report.result


async def test_a_worker_is_spent_once_its_file_was_changed(code: Path, new_pool: NewPool) -> None:
    pool = new_pool(call=f"{code}:process")
    old = await pool.ready()
    assert [await result(pool, old), spent(old)] == [1, None]
    write(code, 2)
    with capture_logs() as logs:
        assert [spent(old), spent(old)] == [f"{code} was changed"] * 2
    (told,) = logs
    assert (told["event"], told["server"], told["file"]) == ("server.outdated", "post-0", str(code))
    assert await result(pool, old) == 1, "it has what it imported"
    new = await pool.ready()
    assert [await result(pool, new), spent(new)] == [2, None]
    code.unlink()
    assert spent(old) is not None, "once is for ever"


@pytest.mark.parametrize("how", ["size", "time", "inode"])
async def test_each_trace_of_a_change_counts(how: str, code: Path, new_pool: NewPool) -> None:
    at_second_zero(code)
    pool = new_pool(call=f"{code}:process")
    channel = await pool.ready()
    if how == "size":
        write(code, 10)
        at_second_zero(code)
    elif how == "time":
        os.utime(code, ns=(1, 1))
    else:
        other = code.with_name("other")
        write(other, 1)
        at_second_zero(other)
        other.rename(code)
    assert spent(channel) == f"{code} was changed"


async def test_a_change_during_the_import_is_not_missed(code: Path, new_pool: NewPool, tmp_path: Path) -> None:
    imports, goes_on = tmp_path / "imports", tmp_path / "go on"
    code.write_text(
        f"import os, time\nopen({str(imports)!r}, 'w').close()\n"
        f"while not os.path.exists({str(goes_on)!r}): time.sleep(0.01)\ndef process(job): return 1\n"
    )
    pool = new_pool(call=f"{code}:process")
    up = pool.start()
    await eventually(imports.exists, "the old code is being imported")
    write(code, 2)
    goes_on.touch()
    with anyio.fail_after(20):
        pool.channels.append(await pool.kind.connect(up, pool.notes.append))
    assert spent(pool.channels[0]) == f"{code} was changed"


async def test_a_link_is_as_new_as_what_it_leads_to(code: Path, new_pool: NewPool, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(code)
    pool = new_pool(call=f"{link}:process")
    channel = await pool.ready()
    report = (await channel.run(pool.job())).report
    assert report is not None
    assert report.version == f"sha256:{hashlib.sha256(code.read_bytes()).hexdigest()}"
    assert spent(channel) is None
    write(code, 2)
    assert spent(channel) == f"{link} was changed"


async def test_a_file_in_the_home_of_the_user_is_watched_there(
    code: Path, new_pool: NewPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(code.parent))
    pool = new_pool(call="~/post.py:process")
    channel = await pool.ready()
    assert [await result(pool, channel), spent(channel)] == [1, None]
    write(code, 2)
    assert spent(channel) == "~/post.py was changed"


async def test_a_file_that_is_gone_leaves_what_was_imported(code: Path, new_pool: NewPool) -> None:
    pool = new_pool(call=f"{code}:process")
    channel = await pool.ready()
    code.unlink()
    assert [spent(channel), await result(pool, channel)] == [None, 1]
    write(code, 2)
    assert spent(channel) == f"{code} was changed"


async def test_an_installed_module_is_not_watched(new_pool: NewPool) -> None:
    pool = new_pool(call="json:dumps")
    channel = await pool.ready()
    assert spent(channel) is None
    report = (await channel.run(pool.job())).report
    assert report is not None
    assert (report.version, report.code) == (None, "TypeError")


# --- starting ---------------------------------------------------------------------------------------------------------


async def test_a_home_may_be_as_deep_as_it_likes(tmp_path: Path, new_pool: NewPool) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    pool = new_pool(home=deep)
    channel = await pool.ready()
    assert (await channel.run(pool.job())).exit_code == 0


async def test_a_worker_that_imports_is_waited_for_until_the_caller_gives_up(
    door: str, new_pool: NewPool, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\ndef process(job): return 1\n"
    )
    pool = new_pool(call=str(tmp_path / "slow.py") + ":process")
    up = pool.start()
    waiting = asyncio.ensure_future(pool.kind.connect(up, pool.notes.append))
    await eventually(lambda: pool.notes, "it is tried")
    assert pool.notes == [f"{tmp_path}/slow.py:process is still being imported"]
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    waiting = asyncio.ensure_future(pool.kind.connect(up, pool.notes.append))
    gate.touch()
    with anyio.fail_after(20):
        pool.channels.append(await waiting)
    assert (await pool.channels[0].run(pool.job())).exit_code == 0


async def test_a_worker_that_listens_and_is_mute_is_told_apart(door: str, new_pool: NewPool) -> None:
    pool = new_pool()
    up = pool.start()
    name = "worker.sock" if door == "unix" else "worker.token"
    await eventually(lambda: os.path.exists(os.path.join(up.place.folder, name)), "it listens")
    os.kill(up.pid, signal.SIGSTOP)
    waiting = asyncio.ensure_future(pool.kind.connect(up, pool.notes.append))
    if door == "unix":
        await eventually(lambda: len(pool.notes) > 1, "it is connected")
        assert pool.notes[-1] == "worker_functions.py:process was imported, but its worker does not answer"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.kill(up.pid, signal.SIGCONT)
    with anyio.fail_after(20):
        pool.channels.append(await pool.kind.connect(up, pool.notes.append))


async def test_a_stranger_on_the_port_is_not_taken_for_the_worker(
    monkeypatch: pytest.MonkeyPatch, new_pool: NewPool
) -> None:
    monkeypatch.setattr(python, "UNIX_SOCKETS", False)
    pool = new_pool()
    up = pool.start()
    told = Path(up.place.folder, "worker.token")
    await eventually(told.exists, "it listens")
    told.write_text(told.read_text().replace('"token": "', '"token": "x'))
    with pytest.raises(NotReady, match="somebody else listens on port"):
        await pool.kind.connect(up, pool.notes.append)


def test_the_program_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = tmp_path / "envs" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    solver = PythonSolver(call="post.py:process", python="~/envs/python", cpus=3, env={"THREADS": "{cpus}"})
    kind = PythonKind(solver, "post", tmp_path / "conf", {"PATH": "/bin", "SECRET": "x"}, {})
    assert (kind.wants_port, kind.host) == (False, "127.0.0.1")
    program = kind.program(Site("post-1", "/server", "/server/tmp", None))
    worker = Path(python.__file__).parents[1] / "worker.py"
    call = ("--call=post.py:process", f"--folder={tmp_path}/conf", "--socket", "worker.sock")
    assert program.argv == (str(interpreter), str(worker), *call)
    assert program.env == {"PATH": "/bin", "TMPDIR": "/server/tmp", "THREADS": "3"}
    interpreter.unlink()
    with pytest.raises(SpawnError, match="of solver post cannot be found"):
        kind.program(Site("post-1", "/server", "/server/tmp", None))


# --- the environment of a server --------------------------------------------------------------------------------------


class AnyServer(WarmSolver, frozen=True, kw_only=True):
    """A solver with warm servers of no particular kind."""

    servers: Servers = Servers()


PLACE = Site("x-1", "/server", "/server/tmp", 5000)


def environment(
    environ: dict[str, str] | None = None, script_env: dict[str, str] | None = None, **settings: Any
) -> dict[str, str]:
    values = {"cpus": "2", "port": "5000"}
    return server_environment(AnyServer(**settings), PLACE, values, environ or {}, script_env or {})


def test_fault_81_a_server_gets_what_was_listed_and_nothing_else() -> None:
    environ = {"PATH": "/bin", "HOME": "/root", "SECRET": "x", "TMPDIR": "/tmp", "A_LICENSE_FILE": "a"}
    base = {"PATH": "/bin", "HOME": "/root", "TMPDIR": "/server/tmp"}
    assert environment(environ) == base
    assert environment(environ, pass_env=("*_LICENSE_FILE",)) == base | {"A_LICENSE_FILE": "a"}
    assert environment(environ, pass_env=("*",)) == environ | {"TMPDIR": "/server/tmp"}


def test_of_two_values_of_a_variable_the_later_counts() -> None:
    environ = {"PATH": "/bin", "V": "passed", "W": "passed", "X": "passed"}
    script = {"PATH": "/script", "V": "script", "TMPDIR": "/script"}
    env = environment(environ, script, pass_env=("V", "W"), env={"W": "own", "P": "{port}/{cpus}/{{x}}"})
    assert env == {"PATH": "/script", "TMPDIR": "/server/tmp", "V": "passed", "W": "own", "P": "5000/2/{x}"}
    assert environment(env={"TMPDIR": "/fast"})["TMPDIR"] == "/fast"


def test_a_placeholder_that_no_server_has_is_refused() -> None:
    with pytest.raises(SpawnError, match=r"env.A of a warm server cannot hold {stem}; there are {cpus}, {port}"):
        environment(env={"A": "{stem}"})


async def test_a_change_within_a_second_that_keeps_the_size_is_seen(new_pool: NewPool, tmp_path: Path) -> None:
    """Python's own cache would take the one for the other."""
    code = tmp_path / "post.py"
    pool = new_pool(call=f"{code}:process")
    for n in (1, 2):
        code.write_text(f"def process(job): return {n}\n")
        os.utime(code, ns=(10**9 + n, 10**9 + n))
        assert await result(pool, await pool.ready()) == n
