# SPDX-License-Identifier: Apache-2.0
"""HTTP over Unix stream sockets: a proxy and its service on one host, as gunicorn and php-fpm are run."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks import servers
from benchmarks.spans import CLIENT, SERVER
from tests.end_to_end.test_servers import connected, read_responses

pytestmark = pytest.mark.kernel

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
# Answers /length with a length, everything else until the connection is closed (RFC 9112, 6.3).
SERVICE = """
import socket, sys
listener = socket.socket(socket.AF_UNIX)
path = sys.argv[1]
listener.bind("\\0" + path[1:] if path.startswith("@") else path)
listener.listen()
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        while request := connection.recv(65536):
            if b"/length" in request:
                connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
                continue
            connection.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
            connection.sendall(b"until the end")
            break
"""


@contextmanager
def service(path: str) -> Iterator[int]:
    """The pid of a service that listens at a path; one that begins with @ is abstract."""
    process = subprocess.Popen([sys.executable, "-c", SERVICE, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where nginx's worker, another user, can reach a socket: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.parametrize("what, size", [("length", 5), ("end", 13)])
def test_a_service_behind_a_proxy(trace, folder: Path, what: str, size: int):
    path = str(folder / "service.sock")
    with service(path) as pid:
        Path(path).chmod(0o777)
        through = f"location /through/ {{ proxy_pass http://unix:{path}:/; }}"
        with servers.nginx(directives=through) as proxy, trace([pid, *proxy.pids]) as traced:
            with connected(proxy.port) as sock:
                for i in range(4):
                    sock.sendall(GET % f"through/{what}/{i}".encode())
                    read_responses(sock, 1)
            traced.wait_for(12)
    inner, outgoing = traced.of(SERVER, [pid]), traced.of(CLIENT)
    outer = [s for s in traced.of(SERVER) if s not in inner]
    assert (len(outer), len(outgoing), len(inner)) == (4, 4, 4)
    by_id = {span.span_id: span for span in traced.spans}
    for span in inner:
        client = by_id[span.parent_id]
        assert client in outgoing and by_id[client.parent_id] in outer
        assert span["http.response.body.size"] == client["http.response.body.size"] == size
        assert span["network.transport"] == client["network.transport"] == "unix"
        assert client["network.peer.address"] == span["network.local.address"] == path
        assert client["server.address"] == "localhost" and client["server.port"] is None
        assert span.status == client.status == 0


@pytest.mark.parametrize("path", ["@ebpf-otlp-tracer-test", "{folder}/plain.sock"])
def test_only_the_server_is_traced(trace, folder: Path, path: str):
    path = path.format(folder=folder)
    with service(path) as pid, trace([pid]) as traced:
        for i in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect("\0" + path[1:] if path.startswith("@") else path)
                sock.sendall(GET % b"end/%d" % i)
                while sock.recv(4096):
                    pass
        traced.wait_for(3)
    spans = traced.of(SERVER)
    assert [s["url.path"] for s in spans] == ["/end/0", "/end/1", "/end/2"]
    assert {s["network.local.address"] or s["server.address"] for s in spans} <= {path, "x"}
    assert {s["network.transport"] for s in spans} == {"unix"}


def test_a_killed_server_leaves_a_span_for_the_client(trace, folder: Path):
    path = str(folder / "killed.sock")
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "s.sendall(b'GET /never HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
        "print('sent', flush=True)\n"
        "s.recv(4096)\n"
        "sys.stdin.readline()\n"
    )
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(path)
        listener.listen()
        client = subprocess.Popen(
            [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert client.stdin is not None and client.stdout is not None
        try:
            server, _ = listener.accept()
            with trace([client.pid]) as traced:
                client.stdin.write("\n")
                client.stdin.flush()
                assert client.stdout.readline() == "sent\n"
                server.close()
                traced.wait_for(1)
        finally:
            client.kill()
            client.communicate()
    (span,) = traced.of(CLIENT)
    assert span["url.path"] == "/never" or span["url.full"]
    assert span["error.type"] in ("connection_closed", "connection_reset")
