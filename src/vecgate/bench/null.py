"""A server that does nothing: `python -m vecgate.bench.null` answers every request with the same row, as fast as it can.

What the client itself and the loopback cost is measured on it. Run in a process of its own; imports nothing of ours.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys

DIMENSIONS = 384
ROW = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", 1.0, *[0.0] * (DIMENSIONS - 1))).decode()
BODY = json.dumps(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": ROW}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Null(asyncio.Protocol):
    """One connection; a request is over when its announced body is there."""

    def __init__(self) -> None:
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if found and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0):
            self._data = b""
            self._transport.write(ANSWER)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the bench closes it


if __name__ == "__main__":
    asyncio.run(serve())
