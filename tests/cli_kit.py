"""The command line run in the process of a test: what it prints, what it says, how it ends."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from solvisor_service.cli import main


class Result(NamedTuple):
    """How a command ended. ``lines`` are those of ``out``."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Result]


def command_line(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command line in the folder ``tmp_path``, whose home is ``home`` in it."""
    monkeypatch.setenv("SOLVISOR_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        with io.TextIOWrapper(io.FileIO(1, "wb", closefd=False), "utf-8") as out:
            monkeypatch.setattr("sys.stdout", out)
            try:
                code: Any = main(arguments)
            except SystemExit as ended:  # argparse
                code = ended.code or 0
            out.flush()
            said = capfdbinary.readouterr()
        return Result(code, said.out.decode(), said.err.decode())

    return call
