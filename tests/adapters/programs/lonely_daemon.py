"""A daemon of home HOME in FOLDER that starts some solvers, writes ``started`` and waits to be killed.

With SCRIPT it keeps each solver in a cgroup, where it can, and each one runs that.
"""

import asyncio
import sys
from pathlib import Path

import anyio
import msgspec

from process_kit import Attempts, given
from solvisor.backends.local import LocalBackend

SCRIPTS = (
    "echo $$ > pid; sleep 1000",
    "setsid sleep 1000 & echo $! > pid; wait",
    "env -i sleep 1000 & echo $! > pid; wait",
)


async def main(home: str, folder: Path, *more: str) -> None:
    attempts = Attempts(folder)
    async with LocalBackend(home if more else None) as backend:
        for script in more or SCRIPTS:
            attempt = attempts.shell(script)
            token = f"{home}/{attempt.spec.token.partition('/')[2]}"
            spec = msgspec.structs.replace(attempt.spec, token=token)
            await backend.launch(given(spec))
            attempt.pid()
        (folder / "started").touch()
        await anyio.sleep_forever()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]))
