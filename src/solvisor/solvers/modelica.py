"""The words of OpenModelica: what is said to ``omc``, what it answers, what its compiled models take and tell.

Rules: pure text, but for ``read_setup``, which reads a file; the forms are those that omc 1.26 was seen to use, and a
reply of another form raises ``BadReply`` and is never guessed at. omc hardly ever says "no": an expression that fails
answers with an empty line, and why stands in a buffer of its own. This module must not know jobs, servers or sockets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.parsers import expat

from msgspec import Struct

from solvisor.errors import SolvisorError
from solvisor.modeljob import DEFAULT_INTERVALS, Simulate, override_text
from solvisor.tables import show, suggestion

SETTINGS: Final = ("startTime", "stopTime", "stepSize", "tolerance", "solver", "outputFormat", "variableFilter")
"""Names that a compiled model takes for its settings, whatever its parameters are called."""

_STRING: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ERROR: Final = re.compile(r'^"?(?:\[(?P<place>[^\]\n]*)\] )?Error: (?P<text>.*)$', re.MULTILINE)
_NO_RESULT: Final = re.compile(r'^\s*resultFile = "",$', re.MULTILINE)
_MESSAGES: Final = re.compile(r'^\s*messages = "((?:[^"\\]|\\.)*)",$', re.MULTILINE)
_NOT_BUILT: Final = re.compile(r'^\{"", ""\}$', re.MULTILINE)
_COMMENTS_AND_STRINGS: Final = re.compile(r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:[^"\\]|\\.)*"?', re.DOTALL)
_QUITS: Final = re.compile(r"(?<![\w.])(quit|exit)\s*\(")
_SIGSEGV: Final = 11
_LOG_LINE: Final = re.compile(r"^(LOG_\w+)\s*\| (\w+)\s*\| (.*)$")
_LOG_MORE: Final = re.compile(r"^\|\s+\| \|\s+\| (.*)$")
_NOISE: Final = ("Curl error for URL ", "Failed to download package index ")
"""omc looks on the internet for every class it does not know; that it cannot is not why a job failed."""


class BadReply(SolvisorError):
    """A reply of a form that omc was never seen to use."""

    code = "bad_reply"


class JobFailed(SolvisorError):
    """The job failed, for a reason that is its own; ``reason`` is the open code."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class BadOverride(JobFailed):
    """A parameter or a setting cannot be as the job wants."""

    def __init__(self, message: str) -> None:
        super().__init__("override", message)


# --- replies ----------------------------------------------------------------------------------------------------------


def quote(text: str) -> str:
    """A text as a literal of the language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def as_text(reply: str) -> str:
    """The text of a quoted reply. Raises ``BadReply``."""
    match = _STRING.fullmatch(reply.removesuffix("\n"))
    if match is None:
        raise BadReply(f"a text in quotes was expected, not {show(reply)}")
    return _unescaped(match[1])


def as_bool(reply: str) -> bool:
    """``true`` or ``false``. Raises ``BadReply``."""
    if reply not in ("true\n", "false\n"):
        raise BadReply(f"true or false was expected, not {show(reply)}")
    return reply == "true\n"


def as_texts(reply: str) -> list[str]:
    """The texts of a reply such as ``{"a", "b"}``. Raises ``BadReply``."""
    inside = _inside(reply)
    found = [_unescaped(match[1]) for match in _STRING.finditer(inside)]
    if _STRING.sub("", inside).replace(",", "").strip():
        raise BadReply(f"a list of texts was expected, not {show(reply)}")
    return found


def as_names(reply: str) -> list[str]:
    """The names of a reply such as ``{A, B}``. Raises ``BadReply``."""
    return [name for part in _inside(reply).split(",") if (name := part.strip())]


def _inside(reply: str) -> str:
    text = reply.removesuffix("\n")
    if not (text.startswith("{") and text.endswith("}")):
        raise BadReply(f"a list was expected, not {show(reply)}")
    return text[1:-1]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([\"\\])", r"\1", text)


# --- what went wrong --------------------------------------------------------------------------------------------------


def first_error(said: str, folder: str) -> str | None:
    """The first error in what omc said, with its place; files in ``folder`` by their bare names."""
    found = list(_ERROR.finditer(said))
    if not found:
        return None
    match = next((match for match in found if not match["text"].startswith(_NOISE)), found[0])
    text = match["text"].removesuffix('"').strip()
    place = re.fullmatch(r"(.*):(\d+):(\d+)-\d+:\d+:\w+", match["place"] or "")
    if place is None or place[1] == "<interactive>":
        return text
    return f"{place[1].removeprefix(folder.rstrip('/') + '/')}, line {place[2]}: {text}"


def script_fault(output: str, errors: str, folder: str) -> str | None:
    """Why a script failed, by the text it gave and the errors left behind; ``None`` if it went well.

    omc goes on with the next statement after one that failed, so every statement counts.
    """
    if output == "Failed":
        return first_error(errors, folder) or "omc could not read the script"
    if _NO_RESULT.search(output):
        messages = _MESSAGES.search(output, _end_of(_NO_RESULT, output))
        told = _unescaped(messages[1]) if messages else ""
        return failure_sentence(told) or first_error(errors, folder) or _first_line(told) or "a simulation failed"
    found = first_error(errors, folder) or first_error(output, folder)
    if found is None and _NOT_BUILT.search(output):
        return "a model could not be built"
    return found


def _end_of(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return match.end() if match else 0


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def quitting_line(script: str) -> tuple[str, int] | None:
    """The call by which a script would end its server, and its line; ``None`` if it has none."""
    bare = _COMMENTS_AND_STRINGS.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), script)
    match = _QUITS.search(bare)
    return (f"{match[1]}()", bare.count("\n", 0, match.start()) + 1) if match else None


def failure_sentence(log: str) -> str | None:
    """Why a simulation failed, from the log of its run time; ``None`` if nothing in it says so."""
    entries: list[list[str]] = []
    for line in log.splitlines():
        if match := _LOG_LINE.match(line):
            entries.append([match[1], match[2], match[3]])
        elif entries and (match := _LOG_MORE.match(line)):
            entries[-1][2] += f"\n{match[1]}"
    for stream, _, text in entries:
        violated = re.search(r"assertion has been violated (.*)\n(.*)\s*-->\s*\"(.*?)\"", text, re.DOTALL)
        if stream == "LOG_ASSERT" and violated:
            condition = " ".join(violated[2].split()).removeprefix("(").removesuffix(")")
            return f"{violated[3]}: the assertion {condition} was violated {violated[1]}"
    for wanted in (("error",), ("debug", "warning")):
        for stream, level, text in entries:
            plain = stream != "LOG_ASSERT" or text != "see last warning"
            if level in wanted and plain and stream in ("LOG_ASSERT", "LOG_STDOUT"):
                return " ".join(text.split())
    return None


def explained_end(said: str, exit_code: int | None, signal: int | None) -> str | None:
    """What it means that omc ended so although nobody asked it to; ``None`` if its words speak for themselves."""
    if "using the root user" in said:
        return "omc refuses to serve the root user; run the daemon as an ordinary user"
    if "zmq_bind failed" in said:
        reason = re.search(r"zmq_bind failed: (.*)", said)
        return f"omc could not listen on a port of 127.0.0.1: {reason[1] if reason else 'it did not say why'}"
    served = "Dumped server port in file: " in said
    if served and exit_code is not None:
        return f"omc ended itself with exit code {exit_code}, as by exit({exit_code}): scripts must not do that"
    if signal == _SIGSEGV and not served:
        return "omc crashed; at its start it does so when it cannot write its port file: is the disk full or read-only?"
    return None


# --- compiled models --------------------------------------------------------------------------------------------------


class Variable(Struct, frozen=True):
    """One variable of a compiled model, as its setup file has it; ``kind`` is Real, Integer, Boolean or String."""

    kind: str
    parameter: bool
    changeable: bool


class Setup(Struct, frozen=True):
    """What the setup file of a compiled model (``MODEL_init.xml``) holds: its own times in seconds, its variables."""

    start: float
    stop: float
    variables: dict[str, Variable]


def read_setup(path: Path) -> Setup:
    """Read a setup file. Blocks. Raises ``BadReply`` if it is none, and ``OSError``."""
    experiment: dict[str, str] = {}
    variables: dict[str, Variable] = {}
    current: dict[str, str] = {}

    def started(tag: str, attributes: dict[str, str]) -> None:
        if tag == "DefaultExperiment":
            experiment.update(attributes)
        elif tag == "ScalarVariable":
            current.clear()
            current.update(attributes)
        elif tag in ("Real", "Integer", "Boolean", "String") and "name" in current:
            parameter = current.get("variability") == "parameter"
            changeable = current.get("isValueChangeable") == "true"
            variables[current["name"]] = Variable(tag, parameter, changeable)

    parser = expat.ParserCreate()
    parser.StartElementHandler = started
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
        start, stop = float(experiment["startTime"]), float(experiment["stopTime"])
    except (expat.ExpatError, KeyError, ValueError) as error:
        raise BadReply(f"{path.name} is not the setup file of a model: {error}") from None
    return Setup(start, stop, variables)


def overriding(
    setup: Setup, simulate: Simulate, overrides: Mapping[str, bool | int | float | str]
) -> tuple[str, float]:
    """The value of ``-override`` for a run, and the time at which the run ends.

    Raises ``BadOverride``: the run time itself only warns about what it cannot set, and takes a wrong type for 0.
    """
    start = setup.start if simulate.start is None else float(simulate.start)
    stop = setup.stop if simulate.stop is None else float(simulate.stop)
    if stop < start:
        raise BadOverride(f"the stop time {stop:g} is before the start time {start:g}")
    settings: dict[str, str] = {}
    if (simulate.start, simulate.stop, simulate.intervals) != (None, None, None):
        step = (stop - start) / (simulate.intervals or DEFAULT_INTERVALS)
        settings = {"startTime": repr(start), "stopTime": repr(stop), "stepSize": repr(step)}
    if simulate.tolerance is not None:
        settings["tolerance"] = repr(simulate.tolerance)
    if simulate.method is not None:
        settings["solver"] = simulate.method
    settings["outputFormat"] = simulate.output
    for name in settings:
        if name in setup.variables:
            raise BadOverride(
                f"the model has a variable {name}, and OpenModelica would set it with the setting; rename it"
            )
    for name, value in overrides.items():
        _check_override(setup.variables, name, value)
        settings[name] = override_text(value)
    return ",".join(f"{name}={value}" for name, value in settings.items()), stop


def _check_override(variables: Mapping[str, Variable], name: str, value: bool | int | float | str) -> None:
    variable = variables.get(name)
    if name in SETTINGS:
        raise BadOverride(f"overrides.{name} is taken for a setting of the simulation; use [simulate], or rename it")
    if variable is None:
        parameters = [other for other, found in variables.items() if found.parameter and found.changeable]
        raise BadOverride(f"the model has no parameter {name}{suggestion(name, parameters[:1000])}")
    if not variable.parameter:
        raise BadOverride(f"{name} is a variable of the model, not a parameter")
    if not variable.changeable:
        reason = "it is final, protected, structural, or computed from others"
        raise BadOverride(f"the parameter {name} cannot be changed once the model is compiled: {reason}")
    fits = {
        "Real": isinstance(value, int | float) and not isinstance(value, bool),
        "Integer": isinstance(value, int) and not isinstance(value, bool),
        "Boolean": isinstance(value, bool),
        "String": isinstance(value, str),
    }[variable.kind]
    if not fits:
        words = {"Real": "a number", "Integer": "a whole number", "Boolean": "true or false", "String": "a text"}
        raise BadOverride(f"overrides.{name} is {show(value)}, but the parameter is {words[variable.kind]}")
