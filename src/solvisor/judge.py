"""The verdict on a finished attempt: success is judged, not assumed.

Rules: every check is evaluated and listed, whatever failed first; the message is the solver's own sentence where it
left one; outputs are looked for below the output folder only, and through no symbolic link. Pure reading of files, for
a thread. This module must not know states, retries or the manifest.
"""

from __future__ import annotations

import glob
import os
import re
import signal
import stat
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Final

from msgspec import Struct

from . import template
from .filetext import Found, StrPath, one_line, search, search_nothing, tail
from .kinds import Output, SolverConfig
from .model import LICENSE_DENIED, Cause, Check, ExitFacts, JobSpec, Verdict
from .names import escape_name, stem
from .params import param_text
from .units import describe_duration, format_size

LOGS: Final = ("stdout.log", "stderr.log")
LONGEST_MESSAGE: Final = 2000


_MEANINGS: Final = {
    "SIGXCPU": "it used more processor time than its limit (ulimit -t)",
    "SIGXFSZ": "a file grew over its limit (ulimit -f)",
}
_TOLD_BY_SHELLS: Final = (*_MEANINGS, "SIGKILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT")


class _Result(Struct, frozen=True):
    """A check with what a failed one adds to the verdict: its code, and a sentence for people."""

    check: Check
    code: str
    sentence: str


class _Logs(Struct, frozen=True):
    """What was found in the two logs: the solver's error sentence and each forbidden pattern, with the log's name.

    ``denied`` is the line that says that there was no license.
    """

    error: tuple[str, Found] | None
    forbidden: Sequence[tuple[str, Found] | None]
    unreadable: str | None
    denied: str | None


_NOTHING_FOUND: Final = _Logs(None, (), None, None)


def judge(
    solver: SolverConfig,
    spec: JobSpec,
    folder: StrPath,
    facts: ExitFacts,
    *,
    timed_out: bool,
    unchanged: Collection[str] = (),
    silent: Collection[str] = (),
) -> Verdict:
    """Judge what an attempt left in ``folder``; its process tree is gone, or ``facts.unkillable``.

    ``unchanged`` are the staged inputs of which the solver left nothing new, by their names in the output folder: none
    of them is an output, whether its copy still lies there or not. ``silent`` are logs that are known to be empty.

    The first that applies decides: unkillable, timed out, short of memory (the kernel killed some of it, and it did not
    come to a good end without), killed by a signal, exit code not allowed, first failed check
    (``output_missing output_empty output_small output_match log_forbid log_cut log_unreadable`` are its codes).
    ``outputs`` of the verdict is left empty for the caller.
    """
    logs = _search_logs(solver, folder, silent)
    exit_result = _exit(solver, facts)
    results = [
        *(
            result
            for output in solver.success.wanted_outputs()
            for result in _output(output, solver, spec, folder, unchanged)
        ),
        *_log_results(solver, facts, logs),
        *_reported(facts),
    ]
    failed = next((result for result in results if not result.check.ok), None)
    cause: Cause | None = None
    code = plain = ""
    if facts.unkillable:
        cause, code, plain = Cause.UNKILLABLE, "unkillable", "it could not be killed; its processes are still there"
    elif timed_out:
        limit = solver.timeout if spec.timeout_seconds is None else spec.timeout_seconds
        than = "it may" if limit is None else describe_duration(limit)
        cause, code, plain = Cause.TIMEOUT, "timeout", f"ran longer than {than} and was stopped"
    elif facts.signal is not None:
        cause, code, plain = Cause.SIGNAL, exit_result.code, exit_result.sentence
    elif not exit_result.check.ok:
        cause, code, plain = Cause.EXIT, exit_result.code, exit_result.sentence
        if facts.report is not None and facts.report.code is not None:
            code, plain = facts.report.code, facts.report.message or plain
    elif failed is not None:
        cause, code, plain = Cause.CHECK, failed.code, failed.sentence
    if cause in (Cause.EXIT, Cause.SIGNAL, Cause.CHECK) and facts.oom_kills:
        cause, code, plain = Cause.OOM, "oom", _oom(solver, facts)
    elif cause in (Cause.EXIT, Cause.SIGNAL, Cause.CHECK) and logs.denied is not None:
        code, plain = LICENSE_DENIED, logs.denied
    if cause is not None and facts.refused_forks and solver.processes_limit is not None:
        plain += f"; it wanted more processes and threads than processes_limit, {solver.processes_limit}"
    return Verdict(
        cause=cause,
        code=code or None,
        message=_message(cause, plain, logs, folder, silent, reported=facts.report is not None) if cause else None,
        checks=(exit_result.check, *(result.check for result in results)),
        log_tail=_log_tail(folder, logs, silent, failed=cause is not None),
        log_truncated=facts.log_cut_bytes > 0,
    )


def _reported(facts: ExitFacts) -> list[_Result]:
    """The checks that the solver's kind made itself."""
    checks = facts.report.checks if facts.report is not None else ()
    return [_Result(check, "result", f"{check.check}: {check.got}, wanted: {check.want}") for check in checks]


def _oom(solver: SolverConfig, facts: ExitFacts) -> str:
    limit, peak = solver.memory_limit, facts.usage.max_rss_bytes
    if limit is None:
        return "the machine ran out of memory, and the kernel killed it"
    if facts.usage.max_rss_source == "cgroup" and peak is not None and peak < limit // 2:
        return f"the machine ran out of memory, and the kernel killed it (memory_limit, {_bytes(limit)}, was far away)"
    return f"it needed more memory than memory_limit, {_bytes(limit)}, and the kernel killed it"


def _exit(solver: SolverConfig, facts: ExitFacts) -> _Result:
    want = " or ".join(map(str, solver.success.exit))
    if facts.signal is not None:
        name = _signal_name(facts.signal)
        meaning = _MEANINGS.get(name)
        sentence = f"killed by {name}: {meaning}" if meaning else f"killed by {name}"
        return _Result(Check("exit", want, name, ok=False), name, sentence)
    if facts.exit_code is None:
        return _Result(Check("exit", want, "unknown", ok=False), "exit_unknown", "ended without an exit code")
    check = Check("exit", want, str(facts.exit_code), ok=facts.exit_code in solver.success.exit)
    said = _as_a_shell_says(facts.exit_code)
    return _Result(check, f"exit_{facts.exit_code}", f"exited with {facts.exit_code}{said}, allowed: {want}")


def _as_a_shell_says(code: int) -> str:
    """A wrapping shell makes an exit code of the signal that killed its program."""
    name = _signal_name(code - 128) if 128 < code < 160 else None
    if name not in _TOLD_BY_SHELLS:
        return ""
    meaning = f": {_MEANINGS[name]}" if name in _MEANINGS else ""
    return f" (its program was killed by {name}{meaning})"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names of their own
        return f"signal {number}"


# --- outputs ----------------------------------------------------------------------------------------------------------


class _Candidate(Struct, frozen=True):
    """A name that fits an output pattern: ``size`` is ``None`` if it is no regular file, ``kind`` says what it is."""

    name: str
    size: int | None
    kind: str


def _output(
    output: Output, solver: SolverConfig, spec: JobSpec, folder: StrPath, unchanged: Collection[str]
) -> list[_Result]:
    """The checks on one wanted output. Of several files that fit a pattern, one good one is enough."""
    values = {"stem": stem(spec.primary)}
    for name, param in solver.params.items():
        value = spec.params.get(name, param.default)
        if value is not None:
            values[template.PARAM + name] = param_text(value)
    try:
        shown = template.expand(output.path, values)
    except KeyError as error:
        check = Check(f"output {output.path}", "a name", f"no value for {error.args[0]}", ok=False)
        return [_Result(check, "output_missing", f"output {output.path} has no name: no value for {error.args[0]}")]
    pattern = template.expand(output.path, {name: glob.escape(value) for name, value in values.items()})
    root = os.path.join(folder, "output")
    best: list[_Result] = []
    for candidate in _candidates(root, pattern, unchanged):
        results = _judge_candidate(output, root, shown, candidate)
        if all(result.check.ok for result in results):
            return results
        best = max(best, results, key=lambda some: sum(result.check.ok for result in some) if some else -1)
    if best:
        return best
    stale = next((name for name in sorted(unchanged) if _fits(name, pattern)), None)
    if stale is not None:
        return _judge_candidate(output, root, shown, _Candidate(stale, None, "only the input of that name, unchanged"))
    return _judge_candidate(output, root, shown, _Candidate(shown, None, "missing"))


def _fits(name: str, pattern: str) -> bool:
    parts, patterns = name.split("/"), PurePath(pattern).parts
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _candidates(root: str, pattern: str, unchanged: Collection[str]) -> Iterator[_Candidate]:
    """What lies below ``root`` under a name that fits, in the order of names; links are named but not followed.

    Nothing outside is found: no folder lists ``..`` or ``/``, and a ``root`` that is a link has nothing in it.
    """
    if os.path.islink(root):
        return
    parts = PurePath(pattern).parts
    names = [""]
    for depth, part in enumerate(parts, 1):
        names = [
            os.path.join(name, found)
            for name in names
            for found in _names(os.path.join(root, name), part, only_folders=depth < len(parts))
        ]
    for name in names:
        if name in unchanged:
            continue
        try:
            status = os.lstat(os.path.join(root, name))
        except OSError as error:  # its path is longer than the kernel takes, or it went away
            yield _Candidate(name, None, f"out of reach ({error.strerror})")
            continue
        if stat.S_ISREG(status.st_mode):
            yield _Candidate(name, status.st_size, "a file")
        elif stat.S_ISLNK(status.st_mode):
            yield _Candidate(name, None, "a symbolic link")
        else:
            yield _Candidate(name, None, "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")


def _names(folder: str, part: str, *, only_folders: bool) -> list[str]:
    """What in a folder fits one part of a pattern, in the order of names; a link to a folder is none."""
    try:
        if _is_plain(part):  # it is there or not, however much else is
            is_folder = stat.S_ISDIR(os.lstat(os.path.join(folder, part)).st_mode)
            return [part] if is_folder or not only_folders else []
        with os.scandir(folder) as entries:
            fitting = [entry for entry in entries if fnmatchcase(entry.name, part)]
    except OSError:  # a folder of the pattern that is not there
        return []
    return sorted(entry.name for entry in fitting if not only_folders or entry.is_dir(follow_symlinks=False))


def _is_plain(part: str) -> bool:
    """Whether it is the name of one file in a folder, and neither a pattern nor a way out of it."""
    return os.path.basename(part) == part != ".." and not set(part) & set("*?[")


def _judge_candidate(output: Output, root: str, shown: str, candidate: _Candidate) -> list[_Result]:
    size, kind = candidate.size, candidate.kind
    name = shown if candidate.name == shown else escape_name(candidate.name)
    prefix = "" if name == shown else f"{name}: "
    want = {0: "exists", 1: "not empty"}.get(output.min_bytes, f"at least {_bytes(output.min_bytes)}")
    if size is None:
        got, code, sentence = kind, "output_missing", f"output {name} is {kind}"
    elif size == 0:
        got, code, sentence = "empty", "output_empty", f"output {name} is empty"
    else:
        got, code, sentence = _bytes(size), "output_small", f"output {name} has {_bytes(size)}, wanted {want}"
    ok = size is not None and size >= output.min_bytes
    results = [_Result(Check(f"output {shown}", want, prefix + got, ok), code, sentence)]
    if output.match is not None:
        found, got = None, kind
        if size is not None:
            try:
                (found,) = search(os.path.join(root, candidate.name), [re.compile(output.match, re.MULTILINE)])
                got = f"line {found.line}" if found else "no match"
            except OSError as error:
                got = f"cannot be read: {error.strerror}"
        check = Check(f"output {shown}", f"matches {output.match}", prefix + got, ok=found is not None)
        results.append(_Result(check, "output_match", f"output {name} does not match {output.match}"))
    return results


def _bytes(size: int) -> str:
    short = format_size(size)
    return f"{size} bytes" if isinstance(short, int) else short


# --- logs -------------------------------------------------------------------------------------------------------------


def _search_logs(solver: SolverConfig, folder: StrPath, silent: Collection[str]) -> _Logs:
    """One pass over each log for all that is wanted of it."""
    forbidden, own, denied = solver.success.log_forbid, solver.success.error_pattern, solver.license_denied
    if not (forbidden or own or denied):
        return _NOTHING_FOUND
    # What is not asked for is never found.
    patterns = [re.compile(source, re.MULTILINE) for source in (*forbidden, own or "(?!)", denied or "(?!)")]
    first: list[tuple[str, Found] | None] = [None] * len(patterns)
    unreadable = None
    for name in LOGS:
        try:
            matches = search_nothing(patterns) if name in silent else search(os.path.join(folder, name), patterns)
        except OSError as error:
            unreadable = unreadable or f"{name} cannot be read: {error.strerror}"
            continue
        first = [old or ((name, new) if new else None) for old, new in zip(first, matches, strict=True)]
    *met, told, refusal = first
    return _Logs(told, met, unreadable, refusal[1].whole_line if refusal else None)


def _log_results(solver: SolverConfig, facts: ExitFacts, logs: _Logs) -> list[_Result]:
    results = []
    for pattern, place in zip(solver.success.log_forbid, logs.forbidden, strict=True):
        what, want = f"no {pattern} in logs", "not found"
        if place is not None:
            log, found = place
            sentence = f"{log}:{found.line}: {found.whole_line}"
            results.append(_Result(Check(what, want, f"{log}:{found.line}", ok=False), "log_forbid", sentence))
        elif logs.unreadable:
            results.append(_Result(Check(what, want, logs.unreadable, ok=False), "log_unreadable", logs.unreadable))
        else:
            results.append(_Result(Check(what, want, want, ok=True), "", ""))
    if results and facts.log_cut_bytes:
        lost = _bytes(facts.log_cut_bytes)
        sentence = f"{lost} of its log were cut out before they could be searched for errors; raise log_max"
        results.append(_Result(Check("logs complete", "nothing cut", f"{lost} cut", ok=False), "log_cut", sentence))
    return results


def _message(cause: Cause, plain: str, logs: _Logs, folder: StrPath, silent: Collection[str], *, reported: bool) -> str:
    """The solver's own sentence; else ours, with the last line of stderr. Where we ended the run, ours comes first.

    ``reported``: a warm server told how it went, and ``plain`` is what it said.
    """
    own = one_line(logs.error[1].text, LONGEST_MESSAGE) if logs.error else ""
    if cause in (Cause.TIMEOUT, Cause.UNKILLABLE, Cause.OOM):
        return one_line(f"{plain}; it had said: {own}" if own else plain, LONGEST_MESSAGE)
    if own:
        return own
    if reported:
        return one_line(plain, LONGEST_MESSAGE)
    last = _tail(folder, "stderr.log", silent).rpartition("\n")[2]
    return one_line(f"{plain}; last line of stderr: {last}" if last else plain, LONGEST_MESSAGE)


def _log_tail(folder: StrPath, logs: _Logs, silent: Collection[str], *, failed: bool) -> str:
    """The end of the log that tells more: where the error stands, else stderr of a failure, else stdout."""
    if failed and logs.error:
        return _tail(folder, logs.error[0], silent)
    for name in reversed(LOGS) if failed else LOGS:
        text = _tail(folder, name, silent)
        if text:
            return text
    return ""


def _tail(folder: StrPath, name: str, silent: Collection[str]) -> str:
    if name in silent:
        return ""
    try:
        return tail(os.path.join(folder, name))
    except OSError:  # the solver took its log away; the check that needs it says so
        return ""
