# SPDX-License-Identifier: Apache-2.0
"""Connections of every age and end: old ones, short ones, broken ones, big bodies, IPv6."""

from __future__ import annotations

import http.client
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import servers
from benchmarks.patience import patience
from benchmarks.spans import SERVER
from tests.end_to_end.test_servers import connected, read_responses

pytestmark = pytest.mark.kernel

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_connection_older_than_the_agent_is_traced_from_its_next_request(trace):
    with servers.nginx() as server, connected(server.port) as sock:
        sock.sendall(GET % b"before")
        read_responses(sock, 1)
        with trace(server.pids) as traced:
            for i in range(5):
                sock.sendall(GET % b"after/%d" % i)
                read_responses(sock, 1)
    spans = traced.of(SERVER)
    assert [s["url.path"] for s in spans] == [f"/after/{i}" for i in range(5)]
    assert {(s["network.peer.address"], s["network.peer.port"]) for s in spans} == {sock_name(sock)}


NAMES: dict[int, tuple[str, int]] = {}


def sock_name(sock: socket.socket) -> tuple[str, int]:
    return NAMES[id(sock)]


@pytest.fixture(autouse=True)
def remember_names(monkeypatch):
    """A closed socket has no name any more: the names are noted when the sockets are made."""
    create = socket.create_connection

    def noting(*args, **kwargs):
        sock = create(*args, **kwargs)
        NAMES[id(sock)] = sock.getsockname()[:2]
        return sock

    monkeypatch.setattr(socket, "create_connection", noting)


def test_1009_short_connections_with_reused_descriptors(trace):
    with servers.nginx(access_log=True) as server, trace(server.pids) as traced:
        for i in range(1009):
            with connected(server.port) as sock:
                sock.sendall(GET % b"c/%d" % i)
                read_responses(sock, 1)
        logged = server.requests(count=1009)
    spans = traced.of(SERVER)
    assert len(logged) == 1009
    assert [s["url.path"] for s in spans] == [f"/c/{i}" for i in range(1009)]
    assert len({s["network.peer.port"] for s in spans}) > 500


def test_reset_right_after_the_response_loses_nothing(trace):
    with servers.nginx() as server, trace(server.pids) as traced:
        for i in range(29):
            with connected(server.port) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.sendall(GET % b"rst/%d" % i)
                read_responses(sock, 1)
    assert [s["url.path"] for s in traced.of(SERVER)] == [f"/rst/{i}" for i in range(29)]


def test_a_file_sent_by_sendfile_has_its_size_and_is_not_copied(trace, tmp_path: Path):
    root = tmp_path / "www"
    root.mkdir()
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    (root / "big.bin").write_bytes(bytes(3_000_017))
    (root / "empty.bin").write_bytes(b"")
    with servers.nginx(root=root, directives="sendfile on;") as server, trace(server.pids) as traced:
        for name in ("big.bin", "empty.bin", "big.bin"):
            subprocess.run(["curl", "-sS", "-o", "/dev/null", f"{server.url}/{name}"], check=True)
        traced.wait_for(3)
        copied = traced.agent.counters().total("ebpf_otlp_tracer_kernel_captured_bytes_total")
    assert [s["http.response.body.size"] for s in traced.of(SERVER)] == [3_000_017, 0, 3_000_017]
    assert copied is not None and copied < 20_000


def test_a_large_chunked_download_has_its_size_and_is_not_copied(trace):
    """The size of each chunk stands at the beginning of a call: that is all that is needed of 64 MiB."""
    script = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept()\n"
        "while c.recv(65536):\n"
        "    c.sendall(b'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n')\n"
        "    for _ in range(1024): c.sendall(b'10000\\r\\n' + bytes(65536) + b'\\r\\n')\n"
        "    c.sendall(b'0\\r\\n\\r\\n')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline())
        with trace([process.pid]) as traced:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(60))
            for i in range(3):
                client.request("GET", f"/{i}")
                response = client.getresponse()
                while response.read(1 << 20):
                    pass
            traced.wait_for(3)
            copied = traced.agent.counters().total("ebpf_otlp_tracer_kernel_captured_bytes_total")
            client.close()  # which ends the server, and so the agent
    finally:
        process.kill()
        process.communicate()
    assert [s["http.response.body.size"] for s in traced.of(SERVER)] == [1024 * 65536] * 3
    assert copied < 0.05 * 3 * 1024 * 65536


def test_a_large_upload_has_its_size(trace):
    with servers.python_threads() as server, trace(server.pids) as traced, connected(server.port) as sock:
        body = b'{"product": 1, "quantity": 1, "pad": "' + b"p" * 5_000_000 + b'"}'
        sock.sendall(b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        read_responses(sock, 1)
        sock.sendall(GET % b"products/7")
        read_responses(sock, 1)
    first, second = traced.of(SERVER)
    assert first["http.request.body.size"] == len(body)
    assert second["url.path"] == "/products/7"


def test_ipv6_and_mapped_addresses(trace):
    script = (
        "import http.server\n"
        "class S(http.server.ThreadingHTTPServer):\n"
        "    address_family = __import__('socket').AF_INET6\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_GET(self):\n"
        "        self.send_response(204); self.end_headers()\n"
        "    def log_message(self, *a): pass\n"
        "s = S(('::', 0), H); print(s.server_address[1], flush=True); s.serve_forever()\n"
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        port = int(server.stdout.readline())
        with trace([server.pid]) as traced:
            for host in ("::1", "127.0.0.1"):
                with socket.create_connection((host, port), timeout=patience(5)) as sock:
                    sock.sendall(GET % b"v")
                    assert b"204" in sock.recv(4096)
    finally:
        server.kill()
        server.communicate()
    assert [s["network.peer.address"] for s in traced.of(SERVER)] == ["::1", "127.0.0.1"]


def raw_server(answer: bytes, *, reset: bool = False):
    """Answers the first read of each connection with fixed bytes and closes it. Returns (process, port)."""
    script = (
        "import socket, struct, sys\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "answer = bytes.fromhex(sys.argv[1])\n"
        "while True:\n"
        "    c, _ = s.accept(); c.recv(65536); c.sendall(answer)\n"
        "    if sys.argv[2] == '1':\n"
        "        c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n"
        "    c.close()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, answer.hex(), str(int(reset))], stdout=subprocess.PIPE, text=True
    )
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("answer", "reset", "expected"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", False, (200, None, 13)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", False, (200, "connection_closed", None)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", True, (200, "connection_reset", None)),
        (b"", False, (None, "connection_closed", None)),
    ],
)
def test_a_connection_that_ends_in_mid_message(trace, answer, reset, expected):
    process, port = raw_server(answer, reset=reset)
    try:
        with trace([process.pid]) as traced, connected(port) as sock:
            sock.sendall(GET % b"x")
            try:
                while sock.recv(65536):
                    pass
            except ConnectionResetError:
                pass
            traced.wait_for(1)
    finally:
        process.kill()
        process.communicate()
    (span,) = traced.of(SERVER)
    got = (span["http.response.status_code"], span["error.type"], span["http.response.body.size"])
    assert got[:2] == expected[:2]
    assert span.status == (2 if expected[1] else 0)
    if expected[2] is not None:
        assert got[2] == expected[2]


@pytest.mark.parametrize(
    "noise",
    [
        b"\x00\x01\x02\x03" * 100,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000,
        b"GET /" + b"a" * 200_000,
        b"*1\r\n$4\r\nPING\r\n" * 50,
    ],
    ids=[
        "binary",
        "tls",
        "ssh",
        "negative",
        "conflicting",
        "overflow",
        "header-bomb",
        "endless-line",
        "redis",
    ],
)
def test_noise_on_an_http_port_makes_no_span_and_disturbs_nothing(trace, noise):
    with servers.python_asyncio() as server, trace(server.pids) as traced:
        with connected(server.port) as sock:
            sock.sendall(noise)
            sock.shutdown(socket.SHUT_WR)
            try:
                while sock.recv(65536):
                    pass
            except ConnectionResetError:
                pass
        with connected(server.port) as sock:
            sock.sendall(GET % b"r/good")
            read_responses(sock, 1)
        traced.wait_for(1)
    assert [s["url.path"] for s in traced.of(SERVER) if s["url.path"].startswith("/r/")] == ["/r/good"]
    assert len(traced.spans) == 1


def test_concurrent_clients_each_span_once(trace):
    with servers.nginx(workers=2) as server, trace(server.pids) as traced:

        def ask(worker: int) -> None:
            with connected(server.port) as sock:
                for i in range(101):
                    sock.sendall(GET % b"w/%d-%d" % (worker, i))
                    read_responses(sock, 1)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    paths = [s["url.path"] for s in traced.of(SERVER)]
    assert len(paths) == 8 * 101
    assert set(paths) == {f"/w/{w}-{i}" for w in range(8) for i in range(101)}
