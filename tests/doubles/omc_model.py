"""What the double of ``omc`` knows of Modelica, and the programs it "compiles".

An honest but tiny subset: parameters, constants and variables of simple type; ``der(x) = ...`` and ``y = ...`` with
names x and y; ``assert``; ``when ... then reinit(x, ...); end when``. A compiled model is a script that imports this
file: it reads ``NAME_init.xml``, takes the flags of a real simulation executable that Solvisor uses, integrates with
Runge-Kutta and writes CSV, MAT version 4 or Ptolemy plot files as OpenModelica's run time does.
"""

from __future__ import annotations

import math
import os
import re
import struct
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

TOKEN = re.compile(
    r'\s+|//[^\n]*|/\*.*?\*/|(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?)'
    r"|(?P<word>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)|(?P<sign>:=|<=|>=|==|<>|[-+*/^=<>(),;{}\[\]])",
    re.DOTALL,
)
STATEMENT_ENDS = frozenset({"end", "equation", "algorithm", "annotation", "parameter", "Real", "assert", "when"})
SETTINGS = ("startTime", "stopTime", "stepSize", "tolerance", "solver", "outputFormat", "variableFilter")
FLAGS = (
    "override",
    "r",
    "inputPath",
    "outputPath",
    "f",
    "s",
    "lv",
    "logFormat",
    "alarm",
    *SETTINGS[:4],
    "outputFormat",
)
FUNCTIONS = {name: getattr(math, name) for name in ("sin", "cos", "tan", "exp", "log", "sqrt")}


class BadModel(Exception):
    """A syntax error: line, column and text as omc counts and words them."""

    def __init__(self, line: int, column: int, text: str) -> None:
        super().__init__(text)
        self.line, self.column = line, column


class Token(NamedTuple):
    text: str
    start: int
    end: int


class Tokens:
    """The words of a text, one after the other."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = (match for match in TOKEN.finditer(text) if match.lastgroup)
        self.tokens = [Token(match.group(), match.start(), match.end()) for match in found]
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    def take(self) -> Token:
        if self.at == len(self.tokens):
            raise self.error("Parser error: Unexpected end of file")
        self.at += 1
        return self.tokens[self.at - 1]

    def takes(self, *wanted: str) -> bool:
        if self.peek() in wanted:
            self.at += 1
            return True
        return False

    def want(self, wanted: str) -> None:
        if not self.takes(wanted):
            raise self.error("Missing token: SEMICOLON" if wanted == ";" else f"Missing token: {wanted}")

    def error(self, text: str) -> BadModel:
        at = self.tokens[self.at].start if self.at < len(self.tokens) else len(self.text)
        line, column = place(self.text, at)
        return BadModel(line, max(1, column - 1), text)

    def until(self, *ends: str) -> list[str]:
        """Words up to one of ``ends`` outside brackets, which is not taken."""
        words: list[str] = []
        depth = 0
        while depth or self.peek() not in ends:
            if not depth and self.peek() in STATEMENT_ENDS:
                break
            word = self.take().text
            depth += (word in "([{") - (word in ")]}")
            words.append(word)
        return words


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of an offset, both from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def parse(text: str, source: str = "<interactive>") -> list[dict[str, Any]]:
    """All classes at the top level of a text, as plain values. Raises ``BadModel``."""
    tokens = Tokens(text)
    found = []
    if tokens.takes("within"):
        tokens.until(";")
        tokens.want(";")
    while tokens.peek():
        found.append(_class(tokens, source))
        tokens.want(";")
    return found


def _class(tokens: Tokens, source: str) -> dict[str, Any]:
    kind = tokens.take().text
    if kind not in ("model", "package", "block", "function", "record"):
        tokens.at -= 1
        raise tokens.error(f"Parser error: Unexpected token near: {kind} (IDENT)")
    name = tokens.take().text
    model: dict[str, Any] = {"kind": kind, "name": name, "source": source, "variables": {}, "states": {}}
    model |= {"equations": [], "asserts": [], "whens": [], "experiment": {}, "inside": []}
    if tokens.peek().startswith('"'):
        tokens.take()
    section = ""
    while not tokens.takes("end"):
        if tokens.takes("equation"):
            section = "equation"
        elif tokens.takes("annotation"):
            words = "".join(tokens.until(";"))
            model["experiment"] = dict(re.findall(r"(StartTime|StopTime|Interval|Tolerance)=([-+.\deE]+)", words))
            tokens.want(";")
        elif tokens.peek() in ("model", "package", "block", "function", "record"):
            model["inside"].append(_class(tokens, source))
            tokens.want(";")
        elif section:
            _equation(tokens, model)
        else:
            _declaration(tokens, model)
    tokens.want(name)
    return model


def _declaration(tokens: Tokens, model: dict[str, Any]) -> None:
    kinds = set()
    while tokens.peek() in ("parameter", "constant", "final", "discrete", "input", "output", "protected", "public"):
        kinds.add(tokens.take().text)
    start = tokens.tokens[tokens.at].start
    of_type = tokens.take().text
    while True:
        name = tokens.take().text
        entry: dict[str, Any] = {"type": of_type, "start": "0", "value": None, "kinds": sorted(kinds)}
        entry["from"] = place(tokens.text, start)
        if tokens.takes("("):
            for key, value in re.findall(r"(start|fixed) = ((?:- )?\S+)", " ".join(tokens.until(")"))):
                entry[key] = value.replace(" ", "")
            tokens.want(")")
        if tokens.takes("="):
            entry["value"] = " ".join(tokens.until(",", ";"))
        if tokens.peek().startswith('"'):
            tokens.take()
        entry["to"] = place(tokens.text, tokens.tokens[tokens.at - 1].end)
        model["variables"][name] = entry
        if not tokens.takes(","):
            break
    tokens.want(";")


def _equation(tokens: Tokens, model: dict[str, Any]) -> None:
    start = tokens.tokens[tokens.at].start
    if tokens.takes("assert"):
        tokens.want("(")
        condition = " ".join(tokens.until(","))
        tokens.want(",")
        message = tokens.take().text
        tokens.want(")")
        line, column = place(tokens.text, start)
        to_line, to = place(tokens.text, tokens.tokens[tokens.at - 1].end - 1)
        where = f"{line}:{column}-{to_line}:{to}"
        model["asserts"].append([condition, message, where])
    elif tokens.takes("when"):
        condition = " ".join(tokens.until("then"))
        tokens.want("then")
        while not tokens.takes("end"):
            tokens.want("reinit")
            tokens.want("(")
            name = tokens.take().text
            tokens.want(",")
            model["whens"].append([condition, name, " ".join(tokens.until(")"))])
            tokens.want(")")
            tokens.want(";")
        tokens.want("when")
    elif tokens.takes("der"):
        tokens.want("(")
        name = tokens.take().text
        tokens.want(")")
        tokens.want("=")
        model["states"][name] = " ".join(tokens.until(";"))
    else:
        name = tokens.take().text
        tokens.want("=")
        model["equations"].append([name, " ".join(tokens.until(";"))])
    tokens.want(";")


def unsolved(model: dict[str, Any]) -> list[str]:
    """Variables without an equation."""
    known = {*model["states"], *(name for name, _ in model["equations"])}
    return [name for name, entry in model["variables"].items() if not _is_fixed(entry) and name not in known]


def undeclared(model: dict[str, Any]) -> list[str]:
    """Names in equations that are declared nowhere."""
    texts = [*model["states"].values(), *(text for _, text in model["equations"])]
    words = {word for text in texts for word in re.findall(r"[A-Za-z_]\w*", re.sub(r"\d\.?\d*[eE][+-]?\d+", "", text))}
    words |= {*model["states"], *(name for name, _ in model["equations"])}
    return sorted(words - {*model["variables"], *FUNCTIONS, "time", "and", "or", "not", "true", "false", "abs", "pre"})


def _is_fixed(entry: dict[str, Any]) -> bool:
    return bool({"parameter", "constant"} & set(entry["kinds"]))


# --- what is compiled -------------------------------------------------------------------------------------------------


def init_xml(model: dict[str, Any], prefix: str, settings: dict[str, str]) -> str:
    """The text of ``NAME_init.xml``."""
    lines = ['<?xml version = "1.0" encoding="UTF-8"?>', "<fmiModelDescription"]
    lines.append(f"  modelName = {quoteattr(model['name'])}")
    lines.append('  generationTool = "OpenModelica Compiler v1.26.9-cmake" >')
    lines.append("  <DefaultExperiment")
    lines += [f"    {name} = {quoteattr(settings[name])}" for name in SETTINGS]
    lines += ["  />", "  <ModelVariables>"]
    variables: list[tuple[str, str, str, bool, dict[str, Any]]] = []
    for name, entry in model["variables"].items():
        if "constant" in entry["kinds"]:
            continue
        parameter = "parameter" in entry["kinds"]
        literal = entry["value"] is None or re.fullmatch(r"(- )?[\d.]\S*|true|false|\".*\"", entry["value"]) is not None
        changeable = "final" not in entry["kinds"] and (not parameter or literal)
        variability = "parameter" if parameter else "continuous"
        start = (entry["value"] if parameter and literal else entry["start"]) or "0"
        variables.append((name, variability, start.replace(" ", ""), changeable, entry))
        if name in model["states"]:
            variables.append((f"der({name})", "continuous", "0", False, entry))
    for name, variability, start, changeable, entry in variables:
        kind = entry["type"] if entry["type"] in ("Real", "Integer", "Boolean", "String") else "Real"
        lines.append(f'  <ScalarVariable\n    name = {quoteattr(name)}\n    valueReference = "1000"')
        lines.append(f'    variability = "{variability}" isDiscrete = "false"')
        lines.append(f'    causality = "local" isValueChangeable = "{str(changeable).lower()}"')
        lines.append('    alias = "noAlias"\n    isProtected = "false">')
        lines.append(f'    <{kind} start={quoteattr(start.strip(chr(34)))} fixed="true" />\n  </ScalarVariable>')
    return "\n".join([*lines, "  </ModelVariables>", "</fmiModelDescription>", ""])


def program(model: dict[str, Any], prefix: str) -> str:
    """The text of the executable."""
    return "\n".join(
        [
            f"#!{sys.executable} -S",
            "import sys",
            f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})",
            "sys.dont_write_bytecode = True",
            "from doubles.omc_model import run",
            f"sys.exit(run({model!r}, {prefix!r}, sys.argv))",
            "",
        ]
    )


def say(stream: str, level: str, text: str) -> None:
    """A line of log as the run time writes it."""
    first, *more = text.split("\n")
    print(f"{stream:<17} | {level:<7} | {first}")
    for line in more:
        print(f"{'|':<17} | {'|':<7} | {line}")
    sys.stdout.flush()


def run(model: dict[str, Any], prefix: str, argv: list[str]) -> int:
    """Simulate; returns the exit code."""
    flags: dict[str, str] = {}
    for word in argv[1:]:
        name, _, value = word.lstrip("-").partition("=")
        if name not in FLAGS:
            say("LOG_STDOUT", "warning", f"invalid command line option: {word}")
            say("LOG_STDOUT", "info", f"usage: {argv[0]}\n| <-override=value> or <-override value>")
            return 1
        flags[name] = value
    init = Path(flags.get("f") or Path(flags.get("inputPath", ".")) / f"{prefix}_init.xml")
    if not init.is_file():
        text = (
            f"simulation_input_xml.c: Error: can not read file {init} as setup file to the generated simulation code."
        )
        say("LOG_ASSERT", "debug", text)
        return 255
    root = ElementTree.parse(init).getroot()
    experiment = dict(root.find("DefaultExperiment").attrib)  # type: ignore[union-attr]
    starts, changeable = {}, {}
    for variable in root.iter("ScalarVariable"):
        starts[variable.attrib["name"]] = variable[0].attrib["start"]
        changeable[variable.attrib["name"]] = variable.attrib["isValueChangeable"] == "true"
    changed = _override(flags.get("override", ""), experiment, starts, changeable)
    if changed & {"startTime", "stopTime"} and "stepSize" not in changed:
        experiment["stepSize"] = repr((float(experiment["stopTime"]) - float(experiment["startTime"])) / 500)
        say(
            "LOG_STDOUT", "warning", "Start or stop time was overwritten, but no new integrator step size was provided."
        )
    experiment |= {name: flags[name] for name in SETTINGS if name in flags} | (
        {"solver": flags["s"]} if "s" in flags else {}
    )
    if experiment["solver"] not in ("dassl", "euler", "rungekutta", "ida", "cvode"):
        say("LOG_STDOUT", "warning", f"unrecognized option -s {experiment['solver']}")
        say("LOG_STDOUT", "warning", "current options are:")
        say("LOG_ASSERT", "debug", "see last warning")
        return 255
    if "OMC_DOUBLE_NO_RESULT" in os.environ:
        return 0
    form = experiment["outputFormat"]
    target = Path(flags.get("r") or Path(flags.get("outputPath", ".")) / f"{prefix}_res.{form}")
    return _simulate(model, experiment, starts, target, form)


def _override(text: str, experiment: dict[str, str], starts: dict[str, str], changeable: dict[str, bool]) -> set[str]:
    changed = set()
    for part in filter(None, text.replace(",", "!").split("!")):
        name, _, value = part.partition("=")
        changed.add(name)
        if name in experiment:
            experiment[name] = value
        if changeable.get(name):
            starts[name] = value
        elif name in changeable:
            words = f"It is not possible to override the following quantity: {name}\nIt seems to be structural, final"
            say("LOG_STDOUT", "warning", f"{words}, protected or evaluated or has a non-constant binding.")
        elif name not in experiment:
            words = "simulation_input_xml.c: override variable name not found in model:"
            say("LOG_STDOUT", "warning", f"{words} {name}")
    return changed


def _code(text: str) -> Any:
    for modelica, python in (("^", "**"), ("<>", "!="), ("true", "True"), ("false", "False")):
        text = text.replace(modelica, python)
    return compile(text.strip(), "<equation>", "eval")


def _value(text: str) -> float:
    return float({"true": 1.0, "false": 0.0}.get(text, text) or 0)


def _simulate(
    model: dict[str, Any], experiment: dict[str, str], starts: dict[str, str], target: Path, form: str
) -> int:
    variables = model["variables"]
    scope: dict[str, Any] = {**FUNCTIONS, "abs": abs, "pre": lambda value: value, "__builtins__": {}}
    for name, entry in variables.items():
        literal = "constant" in entry["kinds"] or (
            entry["value"] and not re.match(r"(- )?[\d.\"]|true|false", entry["value"])
        )
        scope[name] = eval(_code(entry["value"]), scope) if literal and entry["value"] else 0.0
        if not literal and entry["type"] != "String":
            scope[name] = _value(starts[name])
    states = list(model["states"])
    rates = [_code(text) for text in model["states"].values()]
    equations = [(name, _code(text)) for name, text in model["equations"]]
    asserts = [(_code(condition), condition, message, where) for condition, message, where in model["asserts"]]
    whens = [(_code(condition), name, _code(text)) for condition, name, text in model["whens"]]
    start, stop = float(experiment["startTime"]), float(experiment["stopTime"])
    steps = max(1, round((stop - start) / float(experiment["stepSize"])))
    time.sleep(float(os.environ.get("OMC_DOUBLE_RUN_SECONDS", "0")))  # noqa: TID251  the double of a long run
    say("LOG_SUCCESS", "info", "The initialization finished successfully without homotopy method.")

    def derivatives(at: float, values: list[float]) -> list[float]:
        scope.update(zip(states, values, strict=True), time=at)
        for name, code in equations:
            scope[name] = eval(code, scope)
        return [float(eval(code, scope)) for code in rates]

    values = [float(scope[name]) for name in states]
    algebraic = [name for name, _ in equations]
    writer = WRITERS[form](target, ["time", *states, *(f"der({name})" for name in states), *algebraic])
    was = [True] * len(whens)
    shown = steps // 2 if "OMC_DOUBLE_STOP_SHORT" in os.environ else steps
    failed = False
    for step in range(shown + 1):
        at = start + step * (stop - start) / steps
        slopes = derivatives(at, values)
        writer.row([at, *values, *slopes, *(float(scope[name]) for name in algebraic)])
        for code, condition, message, where in asserts:
            if not eval(code, scope):
                shown_condition = re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0", condition)
                say(
                    "LOG_ASSERT",
                    "info",
                    f"[{model['source']}:{where}:writable]\n"
                    f"The following assertion has been violated at time {at:.6f}\n"
                    f"(({shown_condition})) --> {message}",
                )
                say("LOG_ASSERT", "error", "No event found, but assert was triggered. Throwing now!")
                failed = True
        if failed or step == steps:
            break
        for part in range(20):
            values = _runge_kutta(
                derivatives, at + part * (stop - start) / steps / 20, (stop - start) / steps / 20, values
            )
            scope.update(zip(states, values, strict=True))
            now = [bool(eval(code, scope)) for code, _, _ in whens]
            for number, (_, name, code) in enumerate(whens):
                if now[number] and not was[number]:
                    values[states.index(name)] = float(eval(code, scope))
            was = now
    writer.close()
    if failed:
        return 255
    say("LOG_SUCCESS", "info", "The simulation finished successfully.")
    return 0


def _runge_kutta(
    rates: Callable[[float, list[float]], list[float]], at: float, step: float, values: list[float]
) -> list[float]:
    def moved(slopes: list[float], by: float) -> list[float]:
        return [value + slope * by for value, slope in zip(values, slopes, strict=True)]

    a = rates(at, values)
    b = rates(at + step / 2, moved(a, step / 2))
    c = rates(at + step / 2, moved(b, step / 2))
    d = rates(at + step, moved(c, step))
    return [v + step / 6 * (a + 2 * b + 2 * c + d) for v, a, b, c, d in zip(values, a, b, c, d, strict=True)]


class Csv:
    def __init__(self, target: Path, names: list[str]) -> None:
        self.file = target.open("w")
        self.file.write(",".join(f'"{name}"' for name in names) + "\n")

    def row(self, numbers: list[float]) -> None:
        self.file.write(",".join(f"{number:.16g}" for number in numbers) + "\n")

    def close(self) -> None:
        self.file.close()


class Mat:
    """MAT version 4: the number of columns of ``data_2`` is written into its header at the end."""

    def __init__(self, target: Path, names: list[str]) -> None:
        self.file = target.open("w+b")
        self.names, self.rows = names, 0
        width = max(map(len, names))
        self.matrix("Aclass", 51, 4, 11, b"A1 bt. ir1 na  Tj  re  ac  nt  so   r   y   ")
        self.matrix("name", 51, width, len(names), b"".join(name.encode().ljust(width, b"\0") for name in names))
        self.matrix("description", 51, 1, len(names), b"\0" * len(names))
        info = [(0 if at == 0 else 2, at + 1, 0, -1) for at in range(len(names))]
        self.matrix("dataInfo", 20, 4, len(names), b"".join(struct.pack("<4i", *entry) for entry in info))
        self.matrix("data_1", 0, 1, 2, struct.pack("<2d", 0.0, 1.0))
        self.at = self.file.tell()
        self.matrix("data_2", 0, len(names), 0, b"")

    def matrix(self, name: str, kind: int, rows: int, columns: int, data: bytes) -> None:
        self.file.write(struct.pack("<5I", kind, rows, columns, 0, len(name) + 1) + name.encode() + b"\0" + data)

    def row(self, numbers: list[float]) -> None:
        self.rows += 1
        self.file.write(struct.pack(f"<{len(numbers)}d", *numbers))

    def close(self) -> None:
        self.file.seek(self.at)
        self.matrix("data_2", 0, len(self.names), self.rows, b"")
        self.file.close()


class Plt:
    def __init__(self, target: Path, names: list[str]) -> None:
        self.target, self.names = target, names
        self.numbers: list[list[float]] = []

    def row(self, numbers: list[float]) -> None:
        self.numbers.append(numbers)

    def close(self) -> None:
        with self.target.open("w") as file:
            file.write("#Ptolemy Plot file, generated by OpenModelica\n")
            for at, name in enumerate(self.names):
                file.write(f"DataSet: {name}\n")
                file.writelines(f"{row[0]:.16g}, {row[at]:.16g}\n" for row in self.numbers)


WRITERS: dict[str, Any] = {"csv": Csv, "mat": Mat, "plt": Plt}
