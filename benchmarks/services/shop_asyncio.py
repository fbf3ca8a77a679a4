# SPDX-License-Identifier: Apache-2.0
"""The shop on asyncio streams: every connection on one thread, answers to pipelined requests in order.

python shop_asyncio.py [PORT]        prints its port when it listens
"""

from __future__ import annotations

import asyncio
import sys

from routes import respond  # type: ignore[import-not-found]  # its neighbour: this runs as a script


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ", 2)
            fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            reply = respond(method, target, body)
            if reply.delay_s:
                await asyncio.sleep(reply.delay_s)
            writer.write(
                f"HTTP/1.1 {reply.status} Status\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(reply.body)}\r\n\r\n".encode()
                + reply.body
            )
            await writer.drain()
            if fields.get("connection") == "close":
                break
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        pass  # the client left, or does not speak HTTP: either way this connection is over
    finally:
        writer.close()


async def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    server = await asyncio.start_server(serve_connection, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
