"""A daemon of home HOME in FOLDER that starts some solvers, writes ``started`` and waits to be killed."""

import asyncio
import sys
from pathlib import Path

import anyio
import msgspec

from process_kit import Attempts
from solvisor.backends.local import LocalBackend


async def main(home: str, folder: Path) -> None:
    attempts = Attempts(folder)
    async with LocalBackend() as backend:
        for script in (
            "echo $$ > pid; sleep 1000",
            "setsid sleep 1000 & echo $! > pid; wait",
            "env -i sleep 1000 & echo $! > pid; wait",
        ):
            attempt = attempts.shell(script)
            token = f"{home}/{attempt.spec.token.partition('/')[2]}"
            await backend.launch(msgspec.structs.replace(attempt.spec, token=token))
            attempt.pid()
        (folder / "started").touch()
        await anyio.sleep_forever()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
