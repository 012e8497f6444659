"""The demo: the real daemon on a throw-away home, and about twenty real inputs, good and bad. Run by `make demo`.

Rules: the daemon is started as a user would start it and is given its inputs by plain file copy; everything shown is
read from the home, as a user could. Each input has the end that is expected of it, and the status is 0 only if every
one got it, every file has the bytes its manifest names, and no process is left. The solver tables are those of
``examples/solvers.toml``: CBC (carried by the PuLP wheel) and rumoca are on every machine, ccx, glpsol and ngspice
take part where they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pulp  # type: ignore[import-untyped]
import tomli_w

if sys.platform == "win32":
    sys.exit("demo: the daemon does not run on Windows yet")
import fcntl

EXAMPLES = Path(__file__).resolve().parent.parent
INPUTS = (EXAMPLES / "inputs", EXAMPLES.parent / "service" / "solvisor_service" / "profiles" / "examples")
MARKER = ".made-by-the-demo"
RESULTS = ("done", "failed", "rejected")

READY_SECONDS = 20.0
WORK_SECONDS = 90.0
STOP_SECONDS = 30.0


class Drop(NamedTuple):
    """What is copied into ``inbox/<folder>``, and how it must end.

    ``files`` lie below one of ``INPUTS``; the first is what the job is known by. ``says`` must be part of the
    manifest's message.
    """

    solver: str
    folder: str
    files: tuple[str, ...]
    state: str
    cause: str | None = None
    says: str = ""


DROPS = (
    Drop("cbc", "cbc", ("cbc/hard.job.toml", "cbc/hard.lp"), "failed", "timeout"),
    Drop("cbc", "cbc", ("cbc/knapsack.lp",), "succeeded"),
    Drop("cbc", "", ("cbc/transport",), "succeeded"),
    Drop("cbc", "cbc", ("cbc/infeasible.lp",), "failed", "check", "infeasible"),
    Drop("cbc", "cbc", ("cbc/broken.lp",), "failed", "check", "Unable to read objective function"),
    Drop("cbc", "cbc", ("cbc/unbounded.lp",), "failed", "check", "unbounded"),
    Drop("rumoca", "", ("modelica/Ball.mo",), "succeeded"),
    Drop("rumoca", "", ("modelica/Decay.mo",), "succeeded"),
    Drop("rumoca", "", ("modelica/Bad.mo",), "failed", "exit", "unexpected `end`"),
    Drop("rumoca", "", ("modelica/tank.job.toml", "modelica/Tank.mo", "modelica/Valve.mo"), "succeeded"),
    Drop("rumoca", "rumoca", ("modelica/Tank.mo",), "failed", "exit", "'valve.level'"),  # without Valve.mo
    Drop("rumoca", "", ("modelica/pump.job.toml", "modelica/Pump.mo"), "rejected", None, "priority"),
    Drop("ccx", "", ("ccx/beam.inp",), "succeeded"),
    Drop("ccx", "", ("ccx/beam_bad.inp",), "failed", "exit", "no elastic constants"),
    Drop("ccx", "", ("ccx/beam_garbage.inp",), "failed", "check", "unknown element type"),
    Drop("glpsol", "", ("glpsol/diet.mod",), "succeeded"),
    Drop("glpsol", "", ("glpsol/bad.mod",), "failed", "exit", "syntax error"),
    Drop("glpsol-lp", "glpsol-lp", ("glpsol-lp/infeasible.lp",), "failed", "check", "NO PRIMAL FEASIBLE SOLUTION"),
    Drop("glpsol-lp", "", ("cbc/knapsack.lp",), "rejected", None, "inbox/cbc"),  # it fits cbc as well
    Drop("ngspice", "", ("ngspice/rc_batch.cir",), "succeeded"),
    Drop("ngspice", "", ("ngspice/bad.cir",), "failed", "exit", "Error on line 3"),
)

Manifest = dict[str, Any]


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


def main() -> int:
    """Run the demo; the exit status is 0 if everything was as expected, else 1, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description="Run the Solvisor demo.")
    parser.add_argument("--home", type=Path, default=Path("demo-home"), metavar="DIR", help="where (./demo-home)")
    home: Path = parser.parse_args().home
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        problems = run(home)
    except DemoFailed as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; the daemon was stopped", file=sys.stderr)
        return 130
    for problem in problems:
        print(f"NOT AS EXPECTED  {problem}")
    return 1 if problems else 0


def run(home: Path) -> list[str]:
    """The demo from an empty home to a stopped daemon; returns what was not as expected."""
    make_home(home)
    solvers = available_solvers()
    with (home / "solvisor.toml").open("wb") as file:
        tomli_w.dump({"solver": solvers}, file)
    drops = [drop for drop in DROPS if drop.solver in solvers]
    print(f"Solvers on this machine: {', '.join(solvers)}   (configuration: {home}/solvisor.toml)")

    with daemon(home) as process:
        wait_ready(home, process)
        print(f"The daemon is ready (pid {process.pid}). Copying {len(drops)} inputs into {home}/inbox")
        for drop in drops:
            put(home, drop)
        watch(home, process, len(drops))
        manifests = read_manifests(home)
        show_table(manifests)
        show_places(home)
        print("Stopping the daemon (SIGTERM) ...", flush=True)

    problems = [f"the daemon ended with status {process.returncode}"] if process.returncode else []
    problems += compare(drops, manifests)
    problems += [f"still in the inbox: {path}" for path in (home / "inbox").rglob("*") if path.is_file()]
    problems += [text for folder, manifest in manifests for text in changed_files(folder, manifest)]
    problems += left_processes(home)
    if not problems:
        print(f"{len(drops)} inputs, {len(drops)} ends as expected, every file as its manifest says, no process left.")
    return problems


def make_home(home: Path) -> None:
    """An empty home; one of an earlier demo is removed, anything else is not touched."""
    if home.exists() and any(home.iterdir()):
        if not (home / MARKER).exists():
            raise DemoFailed(f"{home} exists and was not made by the demo; choose another place: --home DIR")
        if is_held(home):
            raise DemoFailed(f"a daemon still runs on {home}; its pid is in {home}/state/lock")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARKER).touch()


def is_held(home: Path) -> bool:
    """Whether a daemon holds the lock of this home: one that outlived an earlier demo."""
    try:
        with (home / "state" / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def available_solvers() -> dict[str, Any]:
    """The tables of ``examples/solvers.toml`` whose program is on this machine, with the commands made absolute."""
    tables: dict[str, Any] = tomllib.loads((EXAMPLES / "solvers.toml").read_text())["solver"]
    tables["cbc"]["command"][0] = str(Path(pulp.apis.PULP_CBC_CMD().path).resolve())
    tables["rumoca"]["command"][:2] = [sys.executable, str(EXAMPLES / "modelica" / "simulate.py")]
    used = {drop.solver for drop in DROPS}
    return {name: table for name, table in tables.items() if name in used and shutil.which(table["command"][0])}


@contextlib.contextmanager
def daemon(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``solvisor serve`` for this home; stopped on the way out, whatever happened.

    In a session of its own: Ctrl-C reaches the demo alone, which then stops the daemon in its own way.
    """
    command = [str(Path(sys.executable).with_name("solvisor")), "serve", "--home", str(home)]
    with (home / "daemon.stderr").open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        for stop in (process.terminate, process.terminate, process.kill):
            if process.poll() is None:
                stop()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)


def wait_ready(home: Path, process: subprocess.Popen[bytes]) -> None:
    """Return once the daemon's log says ``daemon.ready``."""
    log = home / "state" / "log" / "solvisor.jsonl"
    deadline = time.monotonic() + READY_SECONDS
    while not (log.exists() and '"daemon.ready"' in log.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            ended = "did not become ready" if process.returncode is None else f"ended with {process.returncode}"
            said = (home / "daemon.stderr").read_text(errors="replace")[-2000:]
            raise DemoFailed(f"the daemon {ended}; it said:\n{said}")
        time.sleep(0.02)


def put(home: Path, drop: Drop) -> None:
    """Copy the files of a drop into the inbox, as anyone would."""
    folder = home / "inbox" / drop.folder
    folder.mkdir(exist_ok=True)
    for name in drop.files:
        source = next(root / name for root in INPUTS if (root / name).exists())
        if source.is_dir():
            shutil.copytree(source, folder / source.name)
        else:
            shutil.copyfile(source, folder / source.name)


def watch(home: Path, process: subprocess.Popen[bytes], expected: int) -> None:
    """Show progress until there are ``expected`` manifests: one line on a terminal, else a line per change."""
    live = sys.stdout.isatty()
    started = time.monotonic()
    shown = ""
    while True:
        finished = Counter({name: len(list((home / name).glob("*/manifest.json"))) for name in RESULTS})
        total = finished.total()
        text = "  ".join(f"{name} {finished[name]}" for name in RESULTS)
        text = f"{total:2} of {expected}  {text}  in work {len(list((home / 'work').iterdir()))}"
        if live:
            bar = "#" * (24 * total // expected)
            print(f"\r[{bar:24}] {text}  {time.monotonic() - started:4.1f} s ", end="", flush=True)
        elif text != shown:
            print(f"{time.monotonic() - started:5.1f} s  {text}", flush=True)
            shown = text
        if total >= expected:
            break
        if process.poll() is not None:
            raise DemoFailed(f"the daemon ended with {process.returncode}; see {home}/daemon.stderr")
        if time.monotonic() - started > WORK_SECONDS:
            raise DemoFailed(f"not finished within {WORK_SECONDS:g} s; see {home}/work and {home}/inbox")
        time.sleep(0.1)
    if live:
        print()


def read_manifests(home: Path) -> list[tuple[Path, Manifest]]:
    """All results with their folders, by solver and name, the rejected ones last."""
    found = [(path.parent, json.loads(path.read_bytes())) for path in home.glob("*/*/manifest.json")]
    return sorted(found, key=lambda item: (item[1]["solver"]["name"] or "~", item[1]["name"]))


def show_table(manifests: list[tuple[Path, Manifest]]) -> None:
    """One row per job, at most 100 columns wide."""
    row = "{:18.18}  {:9.9}  {:9}  {:41}  {:>6}  {:>7}".format
    print("\n" + row("job", "solver", "state", "why", "s", "memory"))
    for _, manifest in manifests:
        why = textwrap.wrap(manifest["message"] or "", 41, max_lines=3, placeholder=" …") or [""]
        seconds = manifest["run_seconds"]
        memory = max((attempt["max_rss_bytes"] or 0 for attempt in manifest["attempts"]), default=0)
        print(
            row(
                manifest["name"],
                manifest["solver"]["name"] or "-",
                manifest["state"],
                why[0],
                "" if seconds is None else f"{seconds:.2f}",
                f"{memory / 2**20:.0f} MiB" if memory else "",
            )
        )
        for line in why[1:]:
            print(" " * 42 + line)


def show_places(home: Path) -> None:
    """Where everything is, and one manifest."""
    print(f"\nWhere everything is (kept until the next demo):\n  {home}/state/log/solvisor.jsonl  the daemon's log")
    for name in RESULTS:
        folders = sorted(path.name for path in (home / name).iterdir())
        if folders:
            print(f"  {home}/{name}/  {len(folders)} jobs, such as {folders[0]}")
    show_manifest(min((home / "failed").glob("infeasible-*/manifest.json")))


def show_manifest(path: Path) -> None:
    """A manifest fit for a screen: without its empty fields, lines wrapped, the tail of the log cut."""
    print(f"\n{path}, without its empty fields:")
    for key, value in json.loads(path.read_bytes()).items():
        if key == "log_tail":
            show_json(f'"{key}": {json.dumps(value[:60])} ...', 2)
        elif isinstance(value, list) and value:
            print(f'  "{key}":')
            for item in value:
                show_json(json.dumps(item, ensure_ascii=False), 4)
        elif value not in (None, "", [], {}):
            show_json(f'"{key}": {json.dumps(value, ensure_ascii=False)}', 2)
    print()


def show_json(text: str, indent: int) -> None:
    """One value, wrapped at 98 columns."""
    margin = " " * indent
    print(textwrap.fill(text, 98, initial_indent=margin, subsequent_indent=margin + "  ", break_long_words=False))


def compare(drops: list[Drop], manifests: list[tuple[Path, Manifest]]) -> list[str]:
    """Where the ends differ from what each drop was to become; each manifest answers to exactly one drop."""
    ends: dict[str, list[Manifest]] = {}
    for _, manifest in manifests:
        ends.setdefault(manifest["source"]["path"], []).append(manifest)
    problems = []
    for drop in drops:
        dropped = str(Path(drop.folder, Path(drop.files[0]).name))
        found = ends.pop(dropped, [])
        wanted = f"{dropped}: wanted {drop.state} {drop.cause or ''} {drop.says!r}"
        if len(found) != 1:
            problems.append(f"{wanted}, got {len(found)} manifests")
            continue
        state, cause, message = found[0]["state"], found[0]["cause"], found[0]["message"] or ""
        if (state, cause) != (drop.state, drop.cause) or drop.says not in message:
            problems.append(f"{wanted}, got {state} {cause or ''} {message!r}")
    return problems + [f"{path}: nobody dropped that" for path in ends]


def changed_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a result that are not the ones its manifest names."""
    problems = []
    for fact in [*manifest["inputs"], *manifest["outputs"]]:
        path = folder / fact["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != fact["sha256"]:
            problems.append(f"{path} is not the file its manifest names")
    return problems


def left_processes(home: Path) -> list[str]:
    """Processes that carry the mark of this home in their environment; nothing can be said where there is no /proc."""
    home_id = tomllib.loads((home / "state" / "home-id").read_text())["id"]
    mark = f"SOLVISOR_ATTEMPT={home_id}/".encode()
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if mark in environ.read_bytes():
                left.append(f"process {environ.parent.name} is left")
    return left


if __name__ == "__main__":
    sys.exit(main())
