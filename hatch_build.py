"""Compile the starter of programs (``src/solvisor/process/starter.c``) where a C compiler is at hand.

For an editable installation it is put beside its source, for a wheel into it, which is then one of this platform. On
another system, or where it cannot be compiled, it is left out without a word: Solvisor works without it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path("src", "solvisor", "process")
LIBRARY = "_starter.so"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC")


class StarterHook(BuildHookInterface):  # type: ignore[type-arg]  # it takes the builder's configuration
    """Called by hatchling for every wheel, editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the library to what the wheel holds, if there is one."""
        source = Path(self.root, HERE)
        folder = source if version == "editable" else Path(self.directory, "starter")
        if not compiled(source / "starter.c", folder / LIBRARY) or version == "editable":
            return
        build_data["force_include"][str(folder / LIBRARY)] = f"solvisor/process/{LIBRARY}"
        build_data["pure_python"] = False
        # It is no extension of the interpreter: any Python 3 of this platform will do.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Leave nothing beside the wheel."""
        shutil.rmtree(Path(self.directory, "starter"), ignore_errors=True)


def compiled(source: Path, library: Path) -> bool:
    """Whether the library was made. One that runs may be in use: it is replaced, never written into."""
    library.unlink(missing_ok=True)
    if not sys.platform.startswith("linux"):
        return False
    library.parent.mkdir(parents=True, exist_ok=True)
    part = library.with_suffix(f".{os.getpid()}.part")
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        done = subprocess.run([*compiler, *FLAGS, "-o", part, source], capture_output=True, check=False)
        if done.returncode == 0:
            part.replace(library)
        return done.returncode == 0
    except OSError:
        return False
    finally:
        part.unlink(missing_ok=True)
