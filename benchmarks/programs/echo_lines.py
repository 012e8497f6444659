"""Answer lines of JSON on the Unix socket PATH with ``{"ok": true}``: the least that a uvloop server can do.

python echo_lines.py PATH
"""

import asyncio
import json
import sys
from typing import Any

import uvloop


class Lines(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        json.loads(data)
        self.transport.write(json.dumps({"ok": True}).encode() + b"\n")


async def main() -> None:
    server = await asyncio.get_running_loop().create_unix_server(Lines, sys.argv[1])
    await server.serve_forever()


uvloop.run(main())
