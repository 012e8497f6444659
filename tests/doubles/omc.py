#!/usr/bin/env python3
"""A double of ``omc --interactive=zmq``: a real process, a real ZeroMQ server, real files and children.

Built from what OpenModelica 1.26.9 was seen to do and say; ``test_omc_double.py`` replays those exchanges against it.
What it does not know it answers as omc answers an unknown function. Environment variables make it misbehave:

``OMC_DOUBLE_ROOT_OK``          start although it runs as root
``OMC_DOUBLE_COMPILE_SECONDS``  how long a compilation takes (0.2)
``OMC_DOUBLE_RUN_SECONDS``      how long a simulation takes before its first step (0)
``OMC_DOUBLE_SLOW_BIND``        seconds before it listens
``OMC_DOUBLE_SLOW_FILE``        seconds in which its port file lies there empty
``OMC_DOUBLE_CRASH_AT=N``       dies of SIGSEGV at the N-th request
``OMC_DOUBLE_MUTE_AT=N``        never answers the N-th request
``OMC_DOUBLE_HANG_BUILD``       a compilation never ends
``OMC_DOUBLE_LOSE_QUIT``        the reply to ``quit()`` is lost
``OMC_DOUBLE_STOP_SHORT``       simulations end at half the time, with exit code 0
``OMC_DOUBLE_NO_RESULT``       simulations write nothing, and exit with code 0
``OMC_DOUBLE_JOURNAL``          a file to which the model of each compilation is appended
"""

# ruff: noqa: N802  the scripting functions bear omc's own names
from __future__ import annotations

import ast
import contextlib
import operator
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import zmq

sys.path.insert(0, str(Path(__file__).parents[1]))
from doubles import omc_model
from doubles.omc_model import BadModel

VERSION = "v1.26.9-cmake"
ROOT = "Error: You are trying to run OpenModelica as a server using the root user.\nExecution failed!\n"
INDEX = "https://libraries.openmodelica.org/index/v1/index.json"
LIBRARIES = "/home/omc/.openmodelica/libraries/"
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
CLASS_START = re.compile(r"\s*(within\b[^;]*;|model|package|block|function|record)\b")


def knob(name: str, otherwise: str = "") -> str:
    return os.environ.get(f"OMC_DOUBLE_{name}", otherwise)


class Wrong(Exception):
    """A failing expression: its reply is empty, the reason goes to the buffer."""


class Name(str):
    """A class name among the values: printed without quotes."""


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def shown(value: Any) -> str:
    """A value as omc prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        real = any(isinstance(item, float) for item in value)
        return "{" + ", ".join(shown(float(item) if real else item) for item in value) + "}"
    return repr(value)


def split(text: str) -> tuple[list[str], bool]:
    """The statements of a text, and whether it ends in a semicolon. Classes are one statement each."""
    text = re.sub(r'("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/', lambda match: match[1] or " ", text, flags=re.DOTALL)
    found: list[str] = []
    rest = text
    while rest.strip():
        if CLASS_START.match(rest):
            name = re.match(r"\s*\w+\s+(\w+)", rest)
            end = re.search(rf"\bend\s+{name[1]}\s*;?", rest) if name else None
            at = end.end() if end else len(rest)
            found.append(rest[:at].strip())
            rest = rest[at:]
            continue
        match = re.match(r'((?:[^;"]|"(?:[^"\\]|\\.)*")*)(;?)', rest)
        assert match is not None
        found.append(match[1].strip())
        rest = rest[match.end() :]
    return [statement for statement in found if statement], text.rstrip().endswith(";")


def arguments(text: str) -> list[str]:
    """What stands between the commas of a call."""
    found, depth, inside, part = [], 0, False, ""
    for at, letter in enumerate(text):
        if letter == '"' and text[at - 1 : at] != "\\":
            inside = not inside
        depth += 0 if inside else (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth and not inside:
            found.append(part.strip())
            part = ""
        else:
            part += letter
    return [*found, part.strip()] if part.strip() else found


class Omc:
    """The state that all clients share."""

    def __init__(self) -> None:
        self.classes: dict[str, dict[str, Any]] = {}
        self.variables: dict[str, Any] = {}
        self.buffer: list[str] = []
        self.options: list[str] = []
        self.echo = True

    def answer(self, request: str) -> str:
        """The reply to a request."""
        request = request.partition("\0")[0]
        if not request.strip():
            return "{}\n" if self.echo else ""
        if CLASS_START.match(request):
            try:
                found = omc_model.parse(request)
            except BadModel as error:
                return self.syntax_error("<interactive>", error)
            self.add(found)
            return "{" + ",".join(model["name"] for model in found) + "}\n"
        if re.search(r"[-+*/=]\s*$", request):
            word = request.split()[0].rstrip("+-*/=")
            return self.syntax_error(
                "<interactive>", BadModel(1, 0, f"Parser error: Unexpected token near: {word} (UNSIGNED_INTEGER)")
            )
        statements, quiet = split(request)
        return self.evaluate(statements, verbose=not quiet)

    def evaluate(self, statements: list[str], *, verbose: bool) -> str:
        """Statements one after the other: one that fails prints nothing, and the next is carried out."""
        text = ""
        for statement in statements:
            try:
                reply = self.statement(statement)
            except Wrong as error:
                if str(error):
                    self.buffer.append(f"[<interactive>:1:1-1:0:writable] Error: {error}\n")
                reply = ""
            if self.echo and verbose:
                text += reply + "\n"
        return text

    def syntax_error(self, source: str, error: BadModel) -> str:
        return f"Error occurred building AST\nSyntax Error\n{self.located(source, error)}"

    @staticmethod
    def located(source: str, error: BadModel) -> str:
        where = f"{error.line}:{error.column}-{error.line}:{error.column}"
        return f"[{source}:{where}:writable] Error: {error}\n"

    def add(self, found: list[dict[str, Any]], within: str = "") -> None:
        for model in found:
            self.classes[within + model["name"]] = model
            self.add(model["inside"], f"{within}{model['name']}.")

    def statement(self, text: str) -> str:
        if CLASS_START.match(text):
            self.add(omc_model.parse(text))
            return ""
        assigned = re.match(r"([A-Za-z_]\w*)\s*:=\s*(.*)", text, re.DOTALL)
        if assigned:
            self.variables[assigned[1]] = self.value(assigned[2])
            return shown(self.variables[assigned[1]])
        value = self.value(text)
        return value.text if isinstance(value, Raw) else shown(value)

    def value(self, text: str) -> Any:
        text = text.strip()
        call = re.fullmatch(r"([A-Za-z_][\w.]*)\s*\((.*)\)", text, re.DOTALL)
        if call:
            return self.call(call[1], arguments(call[2]))
        if re.fullmatch(r'"(?:[^"\\]|\\.)*"', text, re.DOTALL):
            return re.sub(
                r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), text[1:-1], flags=re.DOTALL
            )
        if text.startswith("{"):
            return [self.value(part) for part in arguments(text[1:-1])]
        if text in ("true", "false"):
            return text == "true"
        if re.fullmatch(r"[A-Za-z_]\w*", text):
            if text not in self.variables:
                raise Wrong(f"Variable {text} not found in scope <global scope>.")
            return self.variables[text]
        try:
            return self.arithmetic(ast.parse(text, mode="eval").body)
        except (SyntaxError, KeyError, AttributeError):
            raise Wrong(f"the double does not understand {text}") from None

    def arithmetic(self, node: Any) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.value(node.id)
        if isinstance(node, ast.UnaryOp):
            return OPERATORS[type(node.op)](self.arithmetic(node.operand))
        return OPERATORS[type(node.op)](self.arithmetic(node.left), self.arithmetic(node.right))

    def call(self, name: str, given: list[str]) -> Any:
        method = getattr(self, f"do_{name}", None)
        if method is None:
            raise Wrong(f"Class {name} not found in scope <global scope> (looking for a function or record).")
        if name in ("simulate", "buildModel", "isModel", "existClass", "getParameterNames", "getSimulationOptions"):
            return method(given[0], *self.named(given[1:]))
        if name in ("typeNameString", "deleteClass"):
            return method(given[0])
        return method(*(self.value(part) for part in given))

    def named(self, given: list[str]) -> list[dict[str, Any]]:
        pairs = (re.split(r"\s*=\s*", part, maxsplit=1) for part in given)
        return [{key: self.value(value) for key, value in pairs}] if given else []

    # --- the scripting functions ------------------------------------------------------------------------------------

    def do_getVersion(self) -> str:
        return VERSION

    def do_getErrorString(self) -> str:
        text = "".join(self.buffer)
        self.buffer.clear()
        return text

    def do_getMessagesStringInternal(self) -> list[str]:
        return []

    def do_clearMessages(self) -> bool:
        self.buffer.clear()
        return True

    def do_cd(self, folder: str = "") -> str:
        if folder:
            try:
                os.chdir(folder)
            except OSError:
                self.buffer.append("Error: chdir failed.\n")
                return f"Error, directory {folder} does not exist,"
        return os.getcwd()

    def do_getTempDirectoryPath(self) -> str:
        return os.environ.get("TMPDIR", "/tmp")

    def do_getModelicaPath(self) -> str:
        return os.environ.get("OPENMODELICALIBRARY", f"{os.environ.get('HOME')}/.openmodelica/libraries/")

    def do_getEnvironmentVar(self, name: str) -> str:
        return os.environ.get(name, "")

    def do_loadFile(self, name: str) -> bool:
        path = Path(name).absolute()
        try:
            self.add(omc_model.parse(path.read_text(), str(path)))
        except OSError:
            return False
        except BadModel as error:
            self.buffer.append(self.located(str(path), error))
            return False
        return True

    def do_loadString(self, text: str) -> bool:
        try:
            self.add(omc_model.parse(text))
        except BadModel as error:
            self.buffer.append(self.located("<interactive>", error))
            return False
        return True

    def do_getClassNames(self) -> list[str]:
        return [Name(name) for name in reversed(self.classes) if "." not in name]

    def do_isModel(self, name: str) -> bool:
        return self.classes.get(name, {}).get("kind") == "model"

    def do_existClass(self, name: str) -> bool:
        return name in self.classes

    def do_typeNameString(self, name: str) -> str:
        return name

    def do_getParameterNames(self, name: str) -> list[str]:
        variables = self.classes.get(name, {}).get("variables", {})
        return [key for key, entry in variables.items() if "parameter" in entry["kinds"]]

    def do_getSimulationOptions(self, name: str) -> Raw:
        return Raw("(0.0, 1.0, 1e-6, 500, 0.002)")

    def do_deleteClass(self, name: str) -> bool:
        return self.classes.pop(name, None) is not None

    def do_clear(self) -> bool:
        self.classes.clear()
        return True

    def do_setCommandLineOptions(self, text: str) -> bool:
        known = re.fullmatch(r"-[dnig]=\S+|--(std|simCodeTarget|preOptModules\S*|cflags|locale)=\S+|--\w+Mode", text)
        if not known:
            self.buffer.append(f"Error: Unknown option {text.partition('=')[0]}.\n")
        else:
            self.options.append(text)
        return bool(known)

    def do_clearCommandLineOptions(self) -> bool:
        self.options.clear()
        return True

    def do_getCommandLineOptions(self) -> list[str]:
        return self.options

    def do_echo(self, on: bool) -> bool:
        self.echo = on
        return on

    def do_print(self, text: str) -> Raw:
        print(text, end="")
        return Raw("")

    def do_system(self, command: str) -> int:
        sys.stdout.flush()  # not before: what is printed to a file stays in a buffer
        return subprocess.run(["sh", "-c", command], check=False).returncode

    def do_regularFileExists(self, name: str) -> bool:
        return Path(name).is_file()

    def do_exit(self, code: int) -> NoReturn:
        sys.stdout.flush()
        os._exit(code)

    def do_runScript(self, name: str) -> str:
        try:
            text = Path(name).read_text()
            for statement in split(text)[0]:
                if CLASS_START.match(statement):
                    omc_model.parse(statement, str(Path(name).absolute()))
                elif statement.count("(") != statement.count(")"):
                    raise BadModel(1, 1, f"Parser error: Unexpected token near: {statement[:1]} (IDENT)")
        except OSError:
            return "Failed"
        except BadModel as error:
            self.buffer.append(self.located(str(Path(name).absolute()), error))
            return "Failed"
        return self.evaluate(split(text)[0], verbose=True)

    def do_buildModel(self, name: str, options: dict[str, Any] | None = None) -> list[str]:
        if name not in self.classes:
            self.buffer += [
                f"Error: Curl error for URL {INDEX}: Couldn't resolve host name\n",
                f"Error: Failed to load package {name} (default) using MODELICAPATH {LIBRARIES}.\n",
                f"Error: Class {name} not found in scope <top>.\n",
            ]
            return ["", ""]
        if not self.build(name, options or {}):
            return ["", ""]
        return [str(Path(name).absolute()), f"{name}_init.xml"]

    def build(self, name: str, options: dict[str, Any]) -> bool:
        """Compile as omc does: by children that live on when omc is killed alone."""
        model = self.classes[name]
        if knob("JOURNAL"):
            with Path(knob("JOURNAL")).open("a") as journal:
                journal.write(f"{name}\n")
        unknown, open_names = omc_model.undeclared(model), omc_model.unsolved(model)
        if unknown:
            where = f"[{model['source']}:1:1-1:1:writable]"
            self.buffer.append(f"{where} Error: Variable {unknown[0]} not found in scope {name}.\n")
            return False
        if open_names:
            (line, column), (to_line, to) = (model["variables"][open_names[0]][key] for key in ("from", "to"))
            count = sum(1 for entry in model["variables"].values() if not entry["kinds"])
            self.buffer.append(
                "Error: Too few equations, under-determined system. "
                f"The model has {count - len(open_names)} equation(s) and {count} variable(s).\n"
                f"[{model['source']}:{line}:{column}-{to_line}:{to - 1}:writable] Warning: Variable {open_names[0]} "
                "does not have any remaining equation to be solved in.\n  The original equations were:\n"
            )
            return False
        for variable, entry in model["variables"].items():
            if variable in model["states"] and entry.get("fixed") != "true":
                self.buffer.append(
                    "Warning: The initial conditions are not fully specified. For more information set "
                    "-d=initialization. In OMEdit Tools->Options->Simulation->Show additional information from the "
                    'initialization process, in OMNotebook call setCommandLineOptions("-d=initialization").\n'
                )
                break
        Path(f"{name}_init.xml").write_text(omc_model.init_xml(model, name, self.settings(model, options)))
        Path(f"{name}_info.json").write_text("{}\n")
        Path(f"{name}.c").write_text(omc_model.program(model, name))
        seconds = "1000" if knob("HANG_BUILD") else knob("COMPILE_SECONDS", "0.2")
        script = f'sh -c "sleep {seconds}"; cp {name}.c {name}.o && chmod 755 {name}.o && mv {name}.o {name}'
        return subprocess.run(["sh", "-c", script], check=False).returncode == 0

    @staticmethod
    def settings(model: dict[str, Any], options: dict[str, Any]) -> dict[str, str]:
        start = float(options.get("startTime", model["experiment"].get("StartTime", 0)))
        stop = float(options.get("stopTime", model["experiment"].get("StopTime", 1)))
        step = (stop - start) / int(options.get("numberOfIntervals", 500))
        if "Interval" in model["experiment"] and "numberOfIntervals" not in options:
            step = float(model["experiment"]["Interval"])
        return {
            "startTime": repr(start),
            "stopTime": repr(stop),
            "stepSize": repr(step),
            "tolerance": shortest(float(options.get("tolerance", 1e-6))),
            "solver": options.get("method", "dassl"),
            "outputFormat": options.get("outputFormat", "mat"),
            "variableFilter": ".*",
        }

    def do_simulate(self, name: str, options: dict[str, Any] | None = None) -> Raw:
        options = options or {}
        model = self.classes.get(name)
        settings = self.settings(model or {"experiment": {}}, options)
        result, messages = "", f"Failed to build model: {name}"
        began = time.monotonic()
        if model is None:
            messages = f"Simulation Failed. Model: {name} does not exist! Please load it first before simulation."
        elif self.build(name, options):
            flags = options.get("simflags", "")
            done = subprocess.run(["sh", "-c", f"./{name} {flags}"], check=False, capture_output=True, text=True)
            messages = done.stdout.replace(f"usage: ./{name}", f"usage: {os.getcwd()}/{name}")
            if done.returncode == 0:
                result = str(Path(f"{name}_res.{settings['outputFormat']}").absolute())
            else:
                messages = f"Simulation execution failed for model: {name}\n{messages}"
        count = round((float(settings["stopTime"]) - float(settings["startTime"])) / float(settings["stepSize"]))
        told = (
            f"startTime = {settings['startTime']}, stopTime = {settings['stopTime']}, numberOfIntervals = {count}, "
            f"tolerance = {settings['tolerance']}, method = '{settings['solver']}', fileNamePrefix = '{name}', "
            f"options = '', outputFormat = '{settings['outputFormat']}', variableFilter = '.*', cflags = '', "
            f"simflags = '{options.get('simflags', '')}'"
        )
        seconds = time.monotonic() - began if model is not None else 0.0
        times = ("Frontend", "Backend", "SimCode", "Templates", "Compile", "Simulation", "Total")
        fields = [f"resultFile = {quoted(result)}", f"simulationOptions = {quoted(told)}"]
        fields += [f"messages = {quoted(messages)}", *(f"time{what} = {seconds}" for what in times)]
        return Raw("record SimulationResult\n    " + ",\n    ".join(fields) + "\nend SimulationResult;")


class Raw:
    """A value with a text of its own."""

    def __init__(self, text: str) -> None:
        self.text = text


def shortest(number: float) -> str:
    return re.sub(r"e-0+", "e-", repr(number))


def main(argv: list[str]) -> int:
    flags = dict(word.lstrip("-").split("=", 1) for word in argv if "=" in word)
    if flags.get("interactive") != "zmq":
        print("the double only knows --interactive=zmq")
        return 1
    if os.geteuid() == 0 and not knob("ROOT_OK"):
        print(ROOT, end="", flush=True)
        return 1
    port = flags.get("interactivePort", "0")
    if not re.fullmatch(r"-?\d+", port):
        print("Invalid type of flag interactivePort")
        return 1
    time.sleep(float(knob("SLOW_BIND", "0")))  # noqa: TID251  a program, not a test
    socket = zmq.Context().socket(zmq.REP)
    try:
        socket.bind(f"tcp://127.0.0.1:{int(port) % 65536 or '*'}")
    except zmq.ZMQError as error:
        print(f"Error creating ZeroMQ Server. zmq_bind failed: {os.strerror(error.errno or 0)}")
        print("OpenModelica Compiler v1.26.9-cmake\nUsage: omc [Options] (Model.mo | Script.mos)", flush=True)
        return 0
    endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    suffix = f".{flags['z']}" if flags.get("z") else ""
    name = f"openmodelica.{os.environ.get('USER', 'nobody')}.port{suffix}"
    path = f"{os.environ.get('TMPDIR', '/tmp')}/{name}"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    except OSError:
        print("[bt] #0 omc(+0x1234)", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(float(knob("SLOW_FILE", "0")))  # noqa: TID251
    os.write(descriptor, endpoint.encode())
    os.close(descriptor)
    print(f"Created ZeroMQ Server.\nDumped server port in file: {path}", end="", flush=True)
    omc, count = Omc(), 0
    while True:
        request = socket.recv_multipart()[-1].decode("utf-8", "replace")
        count += 1
        if str(count) == knob("CRASH_AT"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if request.startswith("quit()"):
            break
        reply = omc.answer(request)
        if str(count) == knob("MUTE_AT"):
            signal.pause()
        socket.send(reply.encode())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if knob("LOSE_QUIT"):
        os._exit(0)
    socket.send(b"quit requested, shutting server down\n")
    socket.close(linger=1000)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
