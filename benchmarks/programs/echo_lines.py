"""The least that a uvloop server can do, on two Unix sockets in the working folder.

``raw.sock`` sends back whatever comes, ``json.sock`` answers each line of JSON with ``{"ok": true}``.

    python echo_lines.py
"""

import asyncio
import json
from typing import Any

import uvloop


class Raw(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Json(Raw):
    def data_received(self, data: bytes) -> None:
        json.loads(data)
        self.transport.write(json.dumps({"ok": True}).encode() + b"\n")


async def main() -> None:
    loop = asyncio.get_running_loop()
    await loop.create_unix_server(Raw, "raw.sock")
    server = await loop.create_unix_server(Json, "json.sock")
    print("ready", flush=True)
    await server.serve_forever()


uvloop.run(main())
