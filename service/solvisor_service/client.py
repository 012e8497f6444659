"""The client of the status socket: one blocking request at a time, HTTP over a Unix socket.

Rules: only the standard library and msgspec, for every client verb pays for what is imported here. What the daemon
refuses comes back as the error that ends the command line with the right status. It knows routes, not what is printed.

One file, if a long one: a method for each route, and what all of them share.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from solvisor.errors import HomeError, SolvisorError
from solvisor.views import (
    BatchRule,
    BatchView,
    Explanation,
    JobPage,
    JobView,
    Licenses,
    Limits,
    Me,
    Pass,
    Pools,
    PoolView,
    Problem,
    RoleName,
    Solvers,
    Status,
    Submitted,
)

from .wire import Answer, Connection, Kept

if TYPE_CHECKING:
    from solvisor.figures import Report, Usage
    from solvisor_service.told import Events

T = TypeVar("T")

CHUNK = 1 << 16
SAFE_SECONDS = 1800.0
"""How long files that were sent may take to be safe on the disk: a job that was made must not look like none."""

ANSWER_SECONDS = 30.0
"""How long the daemon may take to begin an answer, beside what it was asked to wait."""
REPORT_SECONDS = 600.0
"""How long a report of very many jobs may take beside that."""
QUIET_SECONDS = 3.0
"""How long an answer may be late until it is tried whether the daemon answers anything."""
PROBE_SECONDS = 2.0


class NotRunning(SolvisorError):
    """No daemon answers for this home."""

    code = "not_running"
    exit_status = 3


class Busy(NotRunning):
    """The home is held, but nobody listens: its daemon is starting or ending, or it is rebuilt."""

    code = "busy"
    exit_status = 75


class BrokenOff(NotRunning):
    """The daemon was there, and then it was not, or it spoke of things this client does not know."""

    code = "broken_off"


class Silent(BrokenOff):
    """The daemon is there and does not answer in time."""

    code = "silent"
    exit_status = 75


class NotPermitted(SolvisorError):
    """This user may not use the socket."""

    code = "not_permitted"
    exit_status = 77


class RequestRefused(SolvisorError):
    """The daemon refused a request. ``problem`` holds its code and what to do."""

    code = "refused"
    _STATUS: ClassVar[Mapping[str, int]] = {
        "no_such_job": 4,
        "no_such_batch": 4,
        "no_such_server": 4,
        "ambiguous_job": 2,
        "usage": 2,
        "unavailable": 75,
        "not_permitted": 77,
        "no_page": 2,
    }

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.detail)

    @property
    def exit_status(self) -> int:  # type: ignore[override]  # it depends on the code of the answer
        """As the command line documents it: 4 no such job or server, 2 usage, 75 try again later, else 1."""
        return self._STATUS.get(self.problem.code, 1)


def changed_configuration(status: Status) -> str | None:
    """The daemon's sentence about a configuration that was changed since it read it, if it says so."""
    return next((problem for problem in status.problems if problem.startswith("the configuration")), None)


class Followed(NamedTuple):
    """A log as it is written: of which try (0: of one that was not begun), from which offset on, and the pieces."""

    attempt: int
    offset: int
    pieces: Iterator[bytes]


class Asked(NamedTuple):
    """One request: method, path with query, body, headers, and how many seconds its answer may take to begin."""

    method: str
    target: str
    body: bytes | Iterable[bytes] | None
    headers: Mapping[str, str]
    seconds: float


class Upload(msgspec.Struct, frozen=True):
    """One file of a submission: the name it gets beside the others (``mesh/part.inc`` too), and where it lies."""

    name: str
    path: Path


class Client:
    """Talks to the daemon of one home.

    ``tell`` gets a sentence for the user, from another thread, once the daemon is found not to answer anything.
    """

    of_daemon: ClassVar[bool] = True
    """Whether it is a daemon that answers."""

    def __init__(self, home: Path, tell: Callable[[str], None] | None = None) -> None:
        self._home = home
        self._tell = tell
        self._socket = home / "run" / "solvisor.sock"
        self._kept = Kept()
        weakref.finalize(self, self._kept.close)

    def must_run(self) -> None:
        """Raises ``NotRunning`` if there is no daemon to talk to, ``NotPermitted`` if this user may not."""
        self._connected(ANSWER_SECONDS).close()

    # --- questions --------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """The daemon at this moment."""
        return self._get("/v1/status", Status)

    def me(self) -> Me:
        """Who asks, as the daemon sees it, and what that lets them do."""
        return self._get("/v1/me", Me)

    def jobs(self, *, limit: int = 100, cursor: str | None = None, **filters: str | Sequence[str] | None) -> JobPage:
        """A page of jobs, newest first; it may hold few or none and have a ``next``.

        Filters: state and cause (several each), solver, user, project, batch, since, until, q.
        """
        query: dict[str, object] = {"limit": limit, "cursor": cursor, **filters}
        return self._get("/v1/jobs", JobPage, query)

    def job(self, job: str, *, wait: float | None = None) -> JobView:
        """One job, named by its id, a unique prefix, or ``last``; with ``wait`` up to so many seconds for its end."""
        return self._get(_route(job), JobView, {"wait": wait}, patience=wait or 0.0)

    def manifest(self, job: str) -> bytes:
        """The bytes of ``manifest.json`` of a finished job."""
        return self._bytes(_route(job, "manifest"))

    def usage(self, *, since: str | None = None, until: str | None = None, points: int | None = None) -> Usage:
        """How busy it was between two times (RFC 3339), in so many steps; without any, the last 24 h in 96."""
        from solvisor.figures import Usage

        return self._get("/v1/usage", Usage, {"since": since, "until": until, "points": points})

    def report(self, *, since: str | None = None, until: str | None = None) -> Report:
        """What became of the jobs of a period (RFC 3339 times; default: 7 days), and how busy it was."""
        from solvisor.figures import Report

        return self._get("/v1/report", Report, {"since": since, "until": until}, patience=REPORT_SECONDS)

    def explain(self, job: str) -> Explanation:
        """Why a job is where it is."""
        return self._get(_route(job, "explain"), Explanation)

    def log(
        self, job: str, which: str, *, offset: int | None = None, tail: int | None = None, attempt: int | None = None
    ) -> tuple[bytes, int]:
        """A piece of ``stdout`` or ``stderr`` (at most 1 MiB) and the offset after it.

        ``offset`` is where to begin, ``tail`` how many of the last bytes; ``attempt`` an earlier try.
        """
        path = _route(job, f"logs/{which}")
        with self._request("GET", path, {"offset": offset, "tail": tail, "try": attempt}) as answer:
            return answer.read(), int(answer.headers["solvisor-offset"])

    @contextlib.contextmanager
    def follow(
        self, job: str, which: str, *, offset: int | None = None, tail: int | None = None, attempt: int | None = None
    ) -> Iterator[Followed]:
        """A log from there on until its try has ended; that of a try which was not begun is waited for."""
        query = {"follow": "true", "offset": offset, "tail": tail, "try": attempt}
        with self._request("GET", _route(job, f"logs/{which}"), query) as answer:
            answer.may_rest(None)
            headers = answer.headers
            pieces = iter(lambda: answer.read1(CHUNK), b"")
            yield Followed(int(headers["solvisor-try"]), int(headers["solvisor-offset"]), pieces)

    def events(self, since: str | None = None, *, job: str | None = None, batch: str | None = None) -> Events:
        """What happens, from now on or behind the cursor ``since``; only to ``job``, or to jobs of ``batch``."""
        from solvisor_service.told import Events

        def connect(cursor: str | None) -> contextlib.AbstractContextManager[Answer]:
            return self._request("GET", "/v1/events", {"since": cursor, "job": job, "batch": batch})

        return Events(connect, since)

    @contextlib.contextmanager
    def file(self, job: str, path: str) -> Iterator[Answer]:
        """A file that the manifest of a finished job names, to be read."""
        with self._request("GET", _route(job, f"files/{quote(path)}")) as answer:
            yield answer

    def batch(self, batch: str, *, wait: float | None = None) -> BatchView:
        """A batch; with ``wait`` up to so many seconds until another of its jobs is finished."""
        return self._get(f"/v1/batches/{quote(batch, safe='')}", BatchView, {"wait": wait}, patience=wait or 0.0)

    def servers(self) -> Pools:
        """All warm servers, by their solvers."""
        return self._get("/v1/servers", Pools)

    def limits(self) -> Limits:
        """All limits: in force, configured, in use."""
        return self._get("/v1/limits", Limits)

    def solvers(self) -> Solvers:
        """The solvers of the configuration, and how they are."""
        return self._get("/v1/solvers", Solvers)

    def licenses(self) -> Licenses:
        """The licenses, who has them and who waits."""
        return self._get("/v1/licenses", Licenses)

    # --- orders -----------------------------------------------------------------------------------------------------

    def submit(
        self,
        uploads: Sequence[Upload],
        job: Mapping[str, Any] | bytes | None = None,
        *,
        batch: str | None = None,
        key: str | None = None,
    ) -> Submitted:
        """Send files and wishes; returns when the job is durable.

        ``job`` are the keys of a job file as a mapping, or the bytes of a job file (TOML); without ``inputs`` in it the
        files are the inputs, in their order. With a ``key`` the same submission sent again is the same job.
        """
        boundary = os.urandom(16).hex()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        if key is not None:
            headers["Idempotency-Key"] = key
        body = _whole_if_short(_multipart(boundary, uploads, job))
        with self._request("POST", "/v1/jobs", {"batch": batch}, body, headers, patience=SAFE_SECONDS) as answer:
            return msgspec.json.decode(answer.read(), type=Submitted)

    def cancel(self, job: str) -> JobView:
        """End a job."""
        return self._post(_route(job, "cancel"), JobView)

    def retry(self, job: str) -> Submitted:
        """Make a new job of a finished one."""
        return self._post(_route(job, "retry"), Submitted)

    def pause(self, solver: str | None, note: str | None = None) -> Status:
        """Start nothing more of ``solver``, or of any."""
        return self._post("/v1/pause", Status, {"solver": solver, "note": note})

    def resume(self, solver: str | None) -> Status:
        """Take a pause back; ``None`` takes back the pause of everything."""
        return self._post("/v1/resume", Status, {"solver": solver})

    def prioritize(self, job: str, priority: int) -> JobView:
        """Move a queued job in the order: a higher priority starts first."""
        return self._post(_route(job, "priority"), JobView, {"priority": priority})

    def limit(self, name: str, value: int | None, note: str | None = None) -> Limits:
        """Have a limit be ``value`` until that is taken back (``None``): as configured."""
        return self._post("/v1/limits", Limits, {"name": name, "value": value, "note": note})

    def scale(self, solver: str, count: int | None) -> PoolView:
        """Have exactly so many warm servers of ``solver`` until the daemon ends; ``None``: as configured."""
        return self._post(_server_route(solver, "scale"), PoolView, {"count": count})

    def recycle(self, target: str) -> PoolView:
        """Replace the warm servers of a solver, or one by its name, each once it has no job."""
        return self._post(_server_route(target, "recycle"), PoolView)

    def restart(self, target: str) -> PoolView:
        """The same, and what went wrong with them is forgotten."""
        return self._post(_server_route(target, "restart"), PoolView)

    def give_pass(self, seconds: int | None = None, role: RoleName | None = None) -> Pass:
        """A bearer token for the page, with this user's own role or less; good for so many seconds, else a week."""
        wanted = {"seconds": seconds, "role": role}
        return self._post("/v1/passes", Pass, {key: value for key, value in wanted.items() if value is not None})

    def open_batch(self, rule: BatchRule) -> BatchView:
        """A new batch, to submit jobs into."""
        return self._post("/v1/batches", BatchView, rule)

    def close_batch(self, batch: str) -> BatchView:
        """No more jobs come."""
        return self._post(f"/v1/batches/{quote(batch, safe='')}/close", BatchView)

    def cancel_batch(self, batch: str, *, running: bool) -> BatchView:
        """Cancel what is queued, with ``running`` also what runs; nothing more of it is started."""
        return self._post(f"/v1/batches/{quote(batch, safe='')}/cancel", BatchView, {"running": running})

    # --- HTTP -------------------------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[T], query: Mapping[str, object] | None = None, *, patience: float = 0.0) -> T:
        with self._request("GET", path, query, patience=patience) as answer:
            return msgspec.json.decode(answer.read(), type=kind)

    def _bytes(self, path: str) -> bytes:
        with self._request("GET", path) as answer:
            return answer.read()

    def _post(self, path: str, kind: type[T], body: object = None, *, patience: float = 0.0) -> T:
        data = b"" if body is None else msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        with self._request("POST", path, body=data, headers=headers, patience=patience) as answer:
            return msgspec.json.decode(answer.read(), type=kind)

    def _not_running(self) -> NotRunning:
        import shlex

        option = f"--home {shlex.quote(os.fspath(self._home))}"
        if not os.path.isdir(self._home):
            return NotRunning(f"there is no home {self._home}; make one with: solvisor init {option}")
        holder = self._holder()
        if holder is not None:
            what = "a daemon is starting or ending, or a rebuild is at work"
            return Busy(f"pid {holder} holds {self._home} and does not answer yet: {what}; try again soon")
        return NotRunning(f"no daemon is running on {self._home}; start it with: solvisor serve {option}")

    def _holder(self) -> int | None:
        """The pid of who holds the home, if one does and this user may know."""
        if sys.platform == "win32":
            return None
        from solvisor_service.holder import holder_of

        try:
            holder = holder_of(self._home)
        except OSError:
            return None
        return None if holder is None else holder.pid

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        patience: float = 0.0,
    ) -> Iterator[Answer]:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(given, doseq=True, errors='replace')}" if given else path
        asked = Asked(method, target, body, headers or {}, ANSWER_SECONDS + patience)
        with self._answered(asked) as answer:
            if answer.status >= 400:
                raise _refusal(answer.status, answer.read())
            yield answer

    @contextlib.contextmanager
    def _answered(self, asked: Asked) -> Iterator[Answer]:
        """The answer of the daemon. Raises ``NotRunning``, ``NotPermitted``."""
        connection = self._kept.take(asked.seconds) or self._connected(asked.seconds)
        is_sent = may_stay = False
        try:
            # A daemon that refuses early hangs up while the body is still on its way; its answer is there all the same.
            with self._noticing_silence(asked):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.send(asked.method, asked.target, asked.headers, asked.body)
                    is_sent = True
                answer = connection.answer()
            yield answer
            may_stay = is_sent and answer.leaves_connection
        except TimeoutError as error:
            raise Silent(
                f"{self._daemon()} has not answered within {asked.seconds:g} s: it hangs or is stopped; "
                "read state/log/solvisor.jsonl; restart the daemon, which loses nothing"
            ) from error
        except (ConnectionError, msgspec.DecodeError) as error:
            raise BrokenOff(
                f"the daemon on {self._home} gave no good answer ({str(error) or type(error).__name__}); "
                "it may have been stopped, or be of another version: solvisor status, and its log"
            ) from error
        finally:
            if may_stay:
                self._kept.put(connection)
            else:
                connection.close()

    @contextlib.contextmanager
    def _noticing_silence(self, asked: Asked) -> Iterator[None]:
        """Tell the user if the daemon answers neither ``asked`` nor a question that it could answer at once."""
        if self._tell is None:
            yield
            return
        tell, answered = self._tell, threading.Event()

        def probe() -> None:
            try:
                with Client(self._home)._answered(Asked("GET", "/v1/status", None, {}, PROBE_SECONDS)):
                    return
            except Silent:
                text = f"{self._daemon()} has not answered for {QUIET_SECONDS + PROBE_SECONDS:g} s"
                if not answered.is_set():
                    tell(f"{text}: it hangs or is stopped; waiting up to {asked.seconds:g} s, Ctrl-C gives up")
            except SolvisorError:  # whoever asked meets it too
                return

        # An answer to a question is late from the end of the wait that was asked for, one to files from now on.
        wait = asked.seconds - ANSWER_SECONDS if asked.method == "GET" else 0.0
        timer = threading.Timer(wait + QUIET_SECONDS, probe)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            answered.set()
            timer.cancel()

    def _daemon(self) -> str:
        holder = self._holder()
        return f"the daemon{'' if holder is None else f' (pid {holder})'} on {self._home}"

    def _connected(self, seconds: float) -> Connection:
        """A connection to the daemon. Raises ``NotRunning``, ``NotPermitted``, ``HomeError``."""
        try:
            return Connection(self._socket, seconds)
        except NotImplementedError as error:
            raise NotRunning(str(error)) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise self._not_running() from None
        except NotADirectoryError:
            place = self._socket.parent if os.path.isdir(self._home) else self._home
            raise HomeError(f"{place} is not a folder, and cannot be one; name another home: --home DIR") from None
        except PermissionError:
            raise NotPermitted(
                f"you may not use {self._socket}: it is open to the daemon's user, and to the group in [api] of "
                "its configuration; ask its operator to add you to that group"
            ) from None


def _route(job: str, below: str = "") -> str:
    """The route of a job; a name that no id can begin with is refused here: it would be taken for another route."""
    if not job or not job.isascii() or "/" in job:
        text = f"no job's id begins with {job!r}; solvisor list shows them, solvisor status what waits in the inbox"
        raise RequestRefused(Problem(title="not found", status=404, detail=text, code="no_such_job"))
    return f"/v1/jobs/{quote(job, safe='')}{below and '/'}{below}"


def _server_route(name: str, below: str) -> str:
    """The route of a solver's servers or of one; a name that would be taken for another route is refused here."""
    if not name or "/" in name:
        text = f"no solver and no warm server is called {name!r}; solvisor servers shows them"
        raise RequestRefused(Problem(title="not found", status=404, detail=text, code="no_such_server"))
    return f"/v1/servers/{quote(name, safe='')}/{below}"


def _refusal(status: int, body: bytes) -> RequestRefused:
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace").strip()
        problem = Problem(title="refused", status=status, detail=f"the daemon answered {status}: {text}", code="http")
    return RequestRefused(problem)


def _multipart(boundary: str, uploads: Sequence[Upload], job: Mapping[str, Any] | bytes | None) -> Iterator[bytes]:
    """The parts of a submission; of a file no more is held in memory than one chunk."""
    if job is not None:
        kind, data = ("toml", job) if isinstance(job, bytes) else ("json", msgspec.json.encode(job))
        yield f'--{boundary}\r\nContent-Disposition: form-data; name="job"\r\n'.encode()
        yield f"Content-Type: application/{kind}\r\n\r\n".encode() + data + b"\r\n"
    for upload in uploads:
        with upload.path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise IsADirectoryError(f"{upload.path} is not a regular file")
            yield f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="'.encode()
            yield _quoted(upload.name) + b'"\r\n\r\n'
            while chunk := file.read(CHUNK):
                yield chunk
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _whole_if_short(pieces: Iterator[bytes]) -> bytes | Iterator[bytes]:
    """All of it where that is short: it goes out, and comes in, as one."""
    whole = bytearray()
    for piece in pieces:
        whole += piece
        if len(whole) > CHUNK:
            return chain([bytes(whole)], pieces)
    return bytes(whole)


def _quoted(name: str) -> bytes:
    """A file name as it stands between quotes; as browsers send it: what would end the line as ``%0A``."""
    plain = name.replace("\r", "%0D").replace("\n", "%0A").replace("\\", "\\\\").replace('"', '\\"')
    return os.fsencode(plain)
