"""The failpoints there are: read from the code, so that no sweep can miss one."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import solvisor
import solvisor_service

ROOTS = (Path(solvisor.__file__).parent, Path(solvisor_service.__file__).parent)


class At(NamedTuple):
    """Where a life is crashed: at the ``hit``-th passing of a failpoint."""

    point: str
    hit: int = 1

    def __str__(self) -> str:
        return self.point if self.hit == 1 else f"{self.point} #{self.hit}"


class InCall(NamedTuple):
    """Where a life is killed with no help from the code: in the ``when``-th such system call of one of its threads."""

    call: str
    when: int

    def __str__(self) -> str:
        return f"in {self.call} #{self.when}"


def in_code() -> Counter[str]:
    """Every name given to ``failpoint.reach``, and how often it stands there. A name that is no literal is refused."""
    return Counter(name for call in calls("reach") for name in [_literal(call)])


def calls(function: str) -> Iterator[ast.Call]:
    """Every call of that function of the module ``failpoint``, anywhere in the program."""
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == function:
                    module = node.func.value
                    if isinstance(module, ast.Name) and module.id == "failpoint":
                        yield node


def _literal(call: ast.Call) -> str:
    (name,) = call.args
    if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
        raise AssertionError(f"line {call.lineno}: the name of a failpoint is a literal")
    return name.value
