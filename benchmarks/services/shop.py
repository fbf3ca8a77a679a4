# SPDX-License-Identifier: Apache-2.0
"""The demo's shop on the standard library's threading HTTP server: one thread per connection.

python shop.py [PORT]        prints its port when it listens
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from routes import respond  # type: ignore[import-not-found]  # its neighbour: this runs as a script


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave in two writes; without this the second would wait for an acknowledgement.
    disable_nagle_algorithm = True

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply = respond(self.command, self.path, body)
        if reply.delay_s:
            time.sleep(reply.delay_s)  # the work that the route stands for
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the terminal belongs to the demo."""


class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
