"""A warm Python worker: it imports a function once and calls it for job after job.

Rules: one file, nothing but the standard library, any Python from 3.8 on: the interpreter that runs it need not contain
Solvisor, and it must know nothing of it. One connection and one request at a time; the function runs in the main
thread. Only when the function was imported does it listen: listening means ready.

    python worker.py --call post.py:process --folder CONFIGDIR --socket worker.sock
    python worker.py --call package.module:process --folder CONFIGDIR --port 0 --token-file FILE

The first makes a Unix socket, mode 0600. The second is for systems without such: it listens on 127.0.0.1 and, once it
does, writes FILE: ``{"port": 50123, "token": "6f0c..."}``; the first line of each connection must be
``{"token": "6f0c..."}``, which is answered like a ping. Exit status: 0 asked to quit, 1 the import or the socket failed
(stderr says why), 2 there is no such function.

**The protocol**, which any other server may speak too: UTF-8, one JSON object per line each way, at most 16 MiB each;
every request is answered before the next is sent.

``{"ping": 1}`` is answered with ``{"ok": true}``; so is ``{"quit": 1}``, and then the server ends. All else is a job:

    {"id": "beam-0a1b2c", "name": "beam", "attempt": 1, "input": "/.../output/beam.csv",
     "inputs": ["/.../output/beam.csv", "/.../output/mesh.csv"], "output": "/.../output", "job_dir": "/...",
     "stdout": "/.../stdout.log", "stderr": "/.../stderr.log", "params": {"load": 3.5}, "cpus": 1}

Paths are absolute. ``output`` is the folder to leave results in and holds copies of all ``inputs``; the first of them
is ``input``. ``stdout`` and ``stderr`` are files to append to. The answer of a good and of a failed job:

    {"ok": true, "result": {"peak": 17.25}}
    {"ok": false, "code": "ValueError", "message": "ValueError: bad rows", "traceback": "..."}

``result`` is any JSON value, or left out; ``code`` is one word for programs, ``message`` is for people; ``traceback``
may be left out. Both may hold
``"usage": {"cpu_user_seconds": 0.5, "cpu_system_seconds": 0.1, "max_rss_bytes": 1048576}``, each figure of the job
alone, and left out where it is not known.

**The function** takes one argument, ``job`` (see ``Job``), and returns something that JSON can hold, or None. Tuples,
paths, and what has ``tolist()`` or ``item()`` (numpy) are converted; NaN and infinity are refused. It runs in the
output folder. What it, its C code and its child processes print goes to the job's logs; stdin is empty. Whatever it
raises, ``SystemExit`` and ``KeyboardInterrupt`` too, fails the job and leaves the worker alive.

What one job leaves in the process is there for the next: modules and their variables, environment variables, signal
handlers, threads, open files. Child processes that still run when the function returned live until the worker ends.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__" and sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
    # Python puts the folder of a program first, and Solvisor's modules have names that others have too.
    del sys.path[0]

import argparse
import contextlib
import faulthandler
import hmac
import importlib
import importlib.machinery
import importlib.util
import json
import math
import secrets
import socket
import traceback
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Callable, Iterator, TextIO  # noqa: UP035  Callable[...] is evaluated, and must be in 3.8

try:
    import ctypes

    _flush_c: Any = ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush
except (ImportError, OSError):  # a Python built without it
    _flush_c = None

LINE_MAX = 16 << 20  # bytes of a request and of an answer
MESSAGE_MAX = 4_000  # characters
TRACEBACK_MAX = 16_000  # characters; the whole of it is in the job's stderr.log
DEPTH_MAX = 100  # lists and dicts within each other in a result
INTEGER_BITS_MAX = 13_000  # Python itself reads no integer of more than 4,300 digits
TOKEN_SECONDS = 5.0  # for a connection over TCP to bring the token


class Job:
    """What the function gets.

    ``id``, ``name``, ``attempt`` (1 for the first try), ``input`` (the main input), ``inputs`` (all of them),
    ``output`` (the folder for results, in which the inputs lie), ``job_dir``, ``params`` (a dict) and ``cpus``. Places
    are absolute ``pathlib.Path``.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.id: str = request["id"]
        self.name: str = request["name"]
        self.attempt: int = request["attempt"]
        self.input = Path(request["input"])
        self.inputs = tuple(map(Path, request["inputs"]))
        self.output = Path(request["output"])
        self.job_dir = Path(request["job_dir"])
        self.params: dict[str, Any] = request["params"]
        self.cpus: int = request["cpus"]

    def __repr__(self) -> str:
        return f"<job {self.id}>"


class NoFunction(Exception):
    """The function is not there; the text is for people."""


class NotJson(Exception):
    """A result that JSON cannot hold; the text says where in it and what."""


# --- the function -----------------------------------------------------------------------------------------------------


def find(call: str, folder: str) -> Callable[[Job], Any]:
    """Import ``FILE.py:name`` or ``package.module:name``. Raises ``NoFunction``, or whatever the import raises.

    A file is meant relative to ``folder``, and its own folder is searched for modules first. ``folder`` itself is
    searched last, so that nothing there stands in for what is installed.
    """
    source, colon, name = call.rpartition(":")
    if not (source and colon and name):
        raise NoFunction(f'call = "{call}" is not of the form FILE.py:function or package.module:function')
    folder = os.path.abspath(folder)
    if source.endswith(".py"):
        source = os.path.join(folder, os.path.expanduser(source))
        module = _import_file(source)
    else:
        sys.path.append(folder)
        module = importlib.import_module(source)
    return _attribute(module, source, name)


class _Source(importlib.machinery.SourceFileLoader):
    """Reads the file itself: Python's cache cannot tell two versions of one size and second apart."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise NoFunction(f"the file {path} is not there")
    sys.path.insert(0, os.path.dirname(path))
    name = os.path.splitext(os.path.basename(path))[0]
    if name in sys.modules:
        name += "_of_solvisor"  # a file named like a module that is needed for itself
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, path))
    if spec is None or spec.loader is None:
        raise NoFunction(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what is pickled is looked for there
    spec.loader.exec_module(module)
    return module


def _attribute(module: ModuleType, source: str, name: str) -> Callable[[Job], Any]:
    found: Any = module
    for part in name.split("."):
        holder = found
        try:
            found = getattr(holder, part)
        except AttributeError:
            raise NoFunction(f"{source} has no function {name}; {_listing(module)}") from None
    if not callable(found):
        raise NoFunction(f"{name} in {source} is {_kind(found)} and cannot be called; {_listing(module)}")
    return found  # type: ignore[no-any-return]  # any callable; what it takes shows when it is called


def _listing(module: ModuleType) -> str:
    """The functions that a module itself defines, in words."""
    names = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return _cut("it has: " + ", ".join(names), MESSAGE_MAX) if names else "it has no functions"


# --- results ----------------------------------------------------------------------------------------------------------


def plain(value: Any, place: str = "result", depth: int = 0) -> Any:
    """``value`` as JSON can hold it. Raises ``NotJson`` with the place in it that JSON cannot hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _plain_text(value, place)
    if isinstance(value, int):
        if value.bit_length() > INTEGER_BITS_MAX:
            raise NotJson(f"{place} is an integer of {value.bit_length()} bits; return it as text")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson(f"{place} is {float(value)}, which JSON cannot hold; return None instead, or text")
        return float(value)
    if isinstance(value, (dict, list, tuple)) and depth == DEPTH_MAX:
        raise NotJson(f"the result holds more than {DEPTH_MAX} lists and dicts within each other, at {place[:80]}...")
    if isinstance(value, dict):
        return _plain_dict(value, place, depth)
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{place}[{at}]", depth + 1) for at, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return plain(os.fspath(value), place, depth)
    if not isinstance(value, type):
        for method in ("tolist", "item"):  # numpy and its like: arrays and their elements
            if hasattr(value, method):
                return _converted(value, method, place, depth)
    raise NotJson(f"{place} is {_kind(value)}, which JSON cannot hold")


def _plain_text(value: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise NotJson(f"{place} is text with bytes that are not UTF-8: {ascii(str(value))[:80]}") from None
    return str.__str__(value)


def _plain_dict(value: dict[Any, Any], place: str, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, item in value.items():
        name = plain(key, f"a key of {place}", depth + 1) if not isinstance(key, (bool, tuple)) else None
        if isinstance(name, int):
            name = str(name)
        if not isinstance(name, str):
            raise NotJson(f"{place} has the key {ascii(key)[:80]}, {_kind(key)}; the keys of JSON are text")
        if name in made:
            raise NotJson(f'{place} has the key "{name}" twice: as text and as a number')
        made[name] = plain(item, f"{place}[{json.dumps(name)}]", depth + 1)
    return made


def _converted(value: Any, method: str, place: str, depth: int) -> Any:
    try:
        made = getattr(value, method)()
    except Exception as error:  # noqa: BLE001  somebody else's method; the job fails either way
        raise NotJson(f"{place} is {_kind(value)}, and its {method}() fails: {error}") from None
    if type(made) is type(value):
        raise NotJson(f"{place} is {_kind(value)}, which JSON cannot hold")
    return plain(made, place, depth)


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# --- one job ----------------------------------------------------------------------------------------------------------


class Worker:
    """Answers requests with a function. Made once, before the first job."""

    def __init__(self, function: Callable[[Job], Any]) -> None:
        self._function = function
        self._home = os.getcwd()
        self._pid = os.getpid()
        self._own_logs = (os.dup(1), os.dup(2))
        self._streams = (sys.stdin, sys.stdout, sys.stderr)

    def answer(self, request: Any) -> dict[str, Any]:
        """What is to be sent back. ``request`` is a JSON value, or why it is none."""
        if isinstance(request, dict) and ("ping" in request or "quit" in request):
            return {"ok": True}
        try:
            job, logs = Job(request), (request["stdout"], request["stderr"])
        except (KeyError, TypeError) as error:
            what = request if isinstance(request, Exception) else error
            return {"ok": False, "code": "bad_request", "message": f"not a job: {type(what).__name__}: {what}"}
        before = _used()
        try:
            with self._surroundings(job, logs):
                answer = self._call(job)
        except OSError as error:
            answer = _failure(error)
        answer["usage"] = _usage(before)
        return answer

    def _call(self, job: Job) -> dict[str, Any]:
        try:
            answer = {"ok": True, "result": plain(self._function(job))}
        except NotJson as error:
            answer = {"ok": False, "code": "result_not_json", "message": _cut(_text(error), MESSAGE_MAX)}
        except BaseException as error:  # noqa: BLE001  the function may end as it likes, the worker goes on
            answer = _failure(error)
            told = _traceback(error)
            _flush()
            with contextlib.suppress(OSError), _stream(2) as log:
                log.write(told)
            answer["traceback"] = told[-TRACEBACK_MAX:]
        if os.getpid() != self._pid:  # the function forked, and this is the child: nobody waits for its answer
            _flush()
            os._exit(0 if answer["ok"] else 1)
        return answer

    @contextlib.contextmanager
    def _surroundings(self, job: Job, logs: tuple[str, str]) -> Iterator[None]:
        """Standard streams and working folder as the function is to find them, and back. Raises ``OSError``."""
        os.chdir(job.output)
        try:
            _flush()
            for fd, path in enumerate(logs, 1):
                _lead(fd, path)
            yield
        finally:
            _flush()
            for fd, log in enumerate(self._own_logs, 1):
                os.dup2(log, fd)
            sys.stdin, sys.stdout, sys.stderr = self._streams
            _open_streams()
            self._streams = (sys.stdin, sys.stdout, sys.stderr)
            os.chdir(self._home)


def _lead(fd: int, path: str) -> None:
    """Let ``fd`` append to a file, and children inherit it."""
    system = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | system, 0o640)
    os.dup2(log, fd)
    os.close(log)


def _open_streams() -> None:
    """Open those of the standard streams anew that are missing or were closed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, _stream(fd))


def _stream(fd: int) -> TextIO:
    # By lines, so that a crash loses nothing that was said; and nothing that is printed may be the end of a job.
    return open(fd, "w" if fd else "r", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush() -> None:
    """Write out what was printed and waits in a buffer: Python's, and that of C."""
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    for stream in streams:
        with contextlib.suppress(Exception):  # closed, replaced by anything, or a full disk
            stream.flush()
    if _flush_c is not None:
        _flush_c(None)


def _failure(error: BaseException) -> dict[str, Any]:
    name, text = type(error).__name__, _text(error)
    if isinstance(error, SystemExit) and error.code in (None, 0):
        text = f"{error.code}; a function that is done returns"
    message = f"{name}: {text}" if text else name
    return {"ok": False, "code": name, "message": _cut(message, MESSAGE_MAX)}


def _text(error: BaseException) -> str:
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001  an exception of somebody else whose text cannot be had
        return "(its text cannot be had)"


def _traceback(error: BaseException) -> str:
    """The traceback from where the function begins, without what lies before it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename in _BEFORE:
        trace = trace.tb_next
    text = "".join(traceback.format_exception(type(error), error, trace))
    return text.encode(errors="backslashreplace").decode()


_BEFORE = (__file__, importlib.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _used() -> tuple[float, float, int]:
    """CPU seconds in user and system mode, of children that were waited for too; and the worker's peak in bytes."""
    if sys.platform == "win32":
        return 0.0, 0.0, 0
    import resource

    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = own.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return own.ru_utime + children.ru_utime, own.ru_stime + children.ru_stime, peak


def _usage(before: tuple[float, float, int]) -> dict[str, Any]:
    """What was used since; a peak that was there before is not this job's."""
    if sys.platform == "win32":
        return {}
    user, system, peak = _used()
    usage: dict[str, Any] = {"cpu_user_seconds": user - before[0], "cpu_system_seconds": system - before[1]}
    return {**usage, "max_rss_bytes": peak} if peak > before[2] else usage


# --- the wire ---------------------------------------------------------------------------------------------------------


class Connection:
    """One client. That it hung up is not worth a word: the next one may come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""

    def admits(self, token: str) -> bool:
        """Whether the client knows the token; it has a few seconds to show it."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.settimeout(TOKEN_SECONDS)
        try:
            brought = json.loads(self.receive() or b"")["token"]
            known = hmac.compare_digest(str(brought).encode(), token.encode())
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        self._sock.settimeout(None)
        if known:
            self.send({"ok": True})
        return known

    def receive(self) -> bytes | None:
        """The next line; ``None`` once the client hung up, or sends a line without end."""
        chunks = [self._rest]
        size = len(self._rest)
        while b"\n" not in chunks[-1]:
            try:
                chunk = self._sock.recv(1 << 16)
            except OSError:
                return None
            size += len(chunk)
            if not chunk or size > LINE_MAX:
                return None
            chunks.append(chunk)
        line, _, self._rest = b"".join(chunks).partition(b"\n")
        return line

    def send(self, answer: dict[str, Any]) -> None:
        """Send an answer; one that is too long becomes a failed job."""
        line = json.dumps(answer).encode() + b"\n"
        if len(line) > LINE_MAX:
            text = f"the result is {len(line) >> 20} MiB long; write it to a file in job.output and return its name"
            line = json.dumps({"ok": False, "code": "result_too_large", "message": text}).encode() + b"\n"
        with contextlib.suppress(OSError):
            self._sock.sendall(line)


def serve(listener: socket.socket, worker: Worker, token: str | None) -> None:
    """Answer one client after the other, until one says quit."""
    while True:
        sock, _ = listener.accept()
        with sock:
            connection = Connection(sock)
            if (token is None or connection.admits(token)) and _converse(connection, worker):
                return


def _converse(connection: Connection, worker: Worker) -> bool:
    """Answer a client until it hangs up; whether it said quit."""
    while True:
        line = connection.receive()
        if line is None:
            return False
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            request = error
        connection.send(worker.answer(request))
        if isinstance(request, dict) and "quit" in request:
            return True


def listen_unix(path: str) -> socket.socket:
    """A Unix socket at ``path``, which may be relative; only its owner may connect. Raises ``OSError``."""
    if sys.platform == "win32":
        raise OSError("there are no Unix sockets; use --token-file")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    part = f"{path}.part"
    listener.bind(part)
    os.chmod(part, 0o600)
    listener.listen()
    try:
        os.link(part, path)  # whoever sees its name is let in; nothing that has it already goes
    finally:
        os.unlink(part)
    return listener


def listen_tcp(port: int, token_file: str) -> tuple[socket.socket, str]:
    """A socket on 127.0.0.1, and the token that opens it; both are told in ``token_file``. Raises ``OSError``."""
    listener = socket.create_server(("127.0.0.1", port))
    token = secrets.token_hex(16)
    part = f"{token_file}.part"
    told = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(told, "w", encoding="utf-8") as file:
        json.dump({"port": listener.getsockname()[1], "token": token}, file)
    os.replace(part, token_file)
    return listener, token


def main() -> int:
    """Import, listen, serve; the exit status."""
    options = _options()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    _open_streams()
    streams: tuple[Any, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # as in _stream
    faulthandler.enable()  # a crash in C code says in the job's stderr.log where in Python it was
    try:
        function = find(options.call, options.folder)
    except NoFunction as error:
        print(f"worker: {error}", file=sys.stderr)
        return 2
    except BaseException as error:  # noqa: BLE001  a module may end as it likes
        sys.stderr.write(_traceback(error))
        return 1
    try:
        if options.socket is not None:
            listener, token = listen_unix(options.socket), None
        else:
            listener, token = listen_tcp(options.port, options.token_file)
    except OSError as error:
        print(f"worker: it cannot listen on {options.socket or options.token_file}: {error}", file=sys.stderr)
        return 1
    with listener:
        serve(listener, Worker(function), token)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Imports a function once and calls it for each job.")
    parser.add_argument("--call", required=True, help="FILE.py:function or package.module:function")
    parser.add_argument("--folder", required=True, help="where FILE.py lies")
    parser.add_argument("--socket", help="the Unix socket to make")
    parser.add_argument("--port", type=int, default=0, help="without --socket: the port on 127.0.0.1; 0: any")
    parser.add_argument("--token-file", help="without --socket: the file that will tell the port and the token")
    options = parser.parse_args()
    if (options.socket is None) == (options.token_file is None):
        parser.error("give --socket or --token-file")
    return options


if __name__ == "__main__":
    sys.exit(main())
