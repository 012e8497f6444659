"""A daemon whose own peak is PEAK megabytes runs ``eat_memory.py SIZE``; prints what it used as JSON.

With LOOKS 0 it never looks at the running process.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import msgspec

from process_kit import Attempts
from solvisor.backends.local import LocalBackend
from solvisor.process import posix
from waiting import eventually


async def main(peak: int, size: int, looks: int) -> None:
    ballast = b"x" * (peak << 20)
    del ballast
    if not looks:
        posix.SAMPLE_SECONDS = (3600.0, 3600.0)
    async with LocalBackend() as backend:
        attempt = Attempts(Path(tempfile.mkdtemp())).python("eat_memory.py", str(size))
        handle = await backend.launch(attempt.ready)
        await eventually((attempt.folder / "held").exists, "memory held")
        tree = handle._launch.result()
        if looks:
            await eventually(lambda: tree.peak[0] >= size << 20, "a sample")
        (attempt.folder / "go").touch()
        facts = await handle.wait()
    print(json.dumps(msgspec.structs.asdict(facts.usage)))


asyncio.run(main(*(int(argument) for argument in sys.argv[1:])))
