# SPDX-License-Identifier: Apache-2.0
"""Large, many, killed, silent and seen twice: real processes, each request once or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import attach
from benchmarks import servers
from benchmarks.agent import agent
from benchmarks.spans import CLIENT, SERVER
from tests.bpf.calls import in_network
from tests.end_to_end.test_lifecycle import wait_until
from tests.end_to_end.test_servers import connected, read_responses
from tests.reflector import HERE, PEER, Reflector

pytestmark = pytest.mark.kernel

BPF_MAP_GET_NEXT_ID = 12
GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"

# Waits for a line, then asks argv[3] times: argv[1:3] is the address, "1" keeps the connection.
CLIENT_SCRIPT = """
import http.client, sys
host, port, count, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
sys.stdin.readline()
client = http.client.HTTPConnection(host, port, timeout=30)
for i in range(count):
    client.request("GET", f"/n/{i}", headers={} if keep else {"Connection": "close"})
    response = client.getresponse()
    response.read()
    if not keep:
        client.close()
print("done", flush=True)
sys.stdin.readline()
"""
# Answers every request; argv[1] is the host to listen on, argv[2] the size of an answer.
SERVER_SCRIPT = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(int(sys.argv[2]))
    def do_POST(self):
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.answer(int(sys.argv[2]))
    def answer(self, size):
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(bytes(size))
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer((sys.argv[1], 0), Handler)
if len(sys.argv) > 3:
    import ssl
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[3])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
# Passes bytes on, both ways, as docker-proxy and sidecars do: argv[1] is the port that they go to.
PROXY_SCRIPT = """
import socket, sys, threading
def copy(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    a, _ = listener.accept()
    b = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    for pair in ((a, b), (b, a)):
        threading.Thread(target=copy, args=pair, daemon=True).start()
"""


@contextmanager
def script(text: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process; it is gone when the block ends."""
    command = [sys.executable, "-c", text, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def ask(trace, client: subprocess.Popen[str], pids: Sequence[int], count: int):
    """The run of the agent during which the client asks."""
    with trace([client.pid, *pids]) as traced:
        client.stdin.write("go\n")
        client.stdin.flush()
        assert line_of(client) == "done"
        traced.wait_for(count)
    return traced


def paths(spans) -> list[str]:
    return [
        s["url.path"] or s["url.full"].partition("/n/")[1] + s["url.full"].partition("/n/")[2] for s in spans
    ]


@pytest.mark.parametrize("keep", [True, False], ids=["kept alive", "closed"])
@pytest.mark.parametrize("between", ["nothing", "proxy", "translation"])
def test_a_hundred_requests_each_once_at_each_end(trace, keep, between):
    """Client and server are both traced, on one host: a span each, whatever stands between them.

    nothing: both ends of one connection. proxy: two connections, by a process that is traced too and is
    client and server of the same bytes. translation: both ends of one connection that disagree on its
    addresses.
    """
    wanted = sorted(f"/n/{i}" for i in range(100))

    def run(host_of_server: str, host_of_client: str):
        with script(SERVER_SCRIPT, host_of_server, 5) as server:
            port = line_of(server)
            if between == "proxy":
                with script(PROXY_SCRIPT, port) as proxy:
                    with script(CLIENT_SCRIPT, host_of_client, line_of(proxy), 100, int(keep)) as client:
                        pids = {"proxy": proxy.pid, "server": server.pid, "client": client.pid}
                        return ask(trace, client, [server.pid, proxy.pid], 400), pids
            with script(CLIENT_SCRIPT, host_of_client, port, 100, int(keep)) as client:
                return ask(trace, client, [server.pid], 200), {"server": server.pid, "client": client.pid}

    if between == "translation":

        def translated():
            with Reflector():
                return run(HERE, PEER)

        traced, pids = in_network(translated)
    else:
        traced, pids = run("127.0.0.1", "127.0.0.1")
    for kind, who in ((SERVER, "server"), (CLIENT, "client"), (SERVER, "proxy"), (CLIENT, "proxy")):
        if who in pids:
            assert sorted(paths(traced.of(kind, [pids[who]]))) == wanted, (kind, who)
    assert len(traced.spans) == (400 if between == "proxy" else 200)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_spike_of_50_megabytes_is_whole(trace, tls, tmp_path: Path):
    """50 answers of 1 MiB, as fast as they go, on five connections at once; encrypted they are counted."""
    arguments: list[object] = ["127.0.0.1", 1 << 20]
    if tls:
        pem = tmp_path / "both.pem"
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1"]
        subprocess.run([*made, "-keyout", pem, "-out", f"{pem}.crt"], check=True, capture_output=True)
        pem.write_text(pem.read_text() + Path(f"{pem}.crt").read_text())
        arguments.append(pem)
    with script(SERVER_SCRIPT, *arguments) as server:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{line_of(server)}/s/"
        with trace([server.pid]) as traced:
            clients = [
                subprocess.Popen(["curl", "-sSk", "-o", "/dev/null", *(f"{url}{n}-{i}" for i in range(10))])
                for n in range(5)
            ]
            assert [client.wait(60) for client in clients] == [0] * 5
            if not tls:
                traced.wait_for(50)
            counters = traced.agent.counters()
    totals = counters.by("ebpf_otlp_tracer_bytes_total", "class")
    assert totals.get("lost", 0) == 0
    if tls:
        assert traced.spans == [] and totals["encrypted"] > 50 << 20
        return
    assert {s["url.path"] for s in traced.spans} == {f"/s/{n}-{i}" for n in range(5) for i in range(10)}
    assert {s["http.response.body.size"] for s in traced.spans} == {1 << 20} and len(traced.spans) == 50


def test_ten_megabytes_in_one_message_each_way(trace):
    body = bytes(10_000_019)
    with script(SERVER_SCRIPT, "127.0.0.1", 10_000_079) as server:
        with trace([server.pid]) as traced, connected(int(line_of(server))) as sock:
            sock.sendall(b"POST /big HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert len(read_responses(sock, 1)[0]) == 10_000_079
            sock.sendall(GET % b"next")
            read_responses(sock, 1)
            traced.wait_for(2)
    first, second = traced.of(SERVER)
    assert (first["http.request.body.size"], first["http.response.body.size"]) == (len(body), 10_000_079)
    assert second["url.path"] == "/next"


def test_a_server_killed_in_mid_answer_is_an_error_of_both(trace):
    """Its end goes with it: what it had begun to answer is no good answer on either side."""
    text = (
        "import socket, sys, time\n"
        "s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)\n"
        "c, _ = s.accept(); c.recv(65536)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 100\\r\\n\\r\\nhalf'); sys.stdin.readline()\n"
    )
    with script(text) as server, script(CLIENT_SCRIPT, "127.0.0.1", line_of(server), 1, 1) as client:
        with trace([server.pid, client.pid]) as traced:
            client.stdin.write("go\n")
            client.stdin.flush()
            chunks = "ebpf_otlp_tracer_kernel_chunks_total"
            wait_until(lambda: (traced.agent.counters().total(chunks) or 0) >= 4, "the half answer is read")
            server.send_signal(signal.SIGKILL)
            traced.wait_for(2)
    assert sorted((s.kind, s.status) for s in traced.spans) == [(SERVER, 2), (CLIENT, 2)]
    assert {s["http.response.status_code"] for s in traced.spans} == {200}


def test_a_thousand_silent_requests_displace_no_good_one(trace):
    """A server that answers only what it likes to: the others wait on connections of their own."""
    text = (
        "import asyncio, sys\n"
        "async def serve(reader, writer):\n"
        "    while line := await reader.readline():\n"
        "        while (await reader.readline()).strip(): pass\n"
        "        if b'/good' in line:\n"
        "            writer.write(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
        "    writer.close()\n"
        "async def main():\n"
        "    server = await asyncio.start_server(serve, '127.0.0.1', 0, backlog=2000)\n"
        "    print(server.sockets[0].getsockname()[1], flush=True)\n"
        "    await server.serve_forever()\n"
        "asyncio.run(main())\n"
    )
    silent: list[socket.socket] = []
    with script(text) as server, trace([server.pid]) as traced:
        port = int(line_of(server))
        with connected(port) as good:
            for i in range(1000):
                silent.append(socket.create_connection(("127.0.0.1", port)))
                silent[-1].sendall(GET % b"silent/%d" % i)
                if i % 100 == 0:
                    good.sendall(GET % b"good/%d" % i)
                    read_responses(good, 1)
            traced.wait_for(10)
            assert [s["url.path"] for s in traced.now()] == [f"/good/{i}" for i in range(0, 1000, 100)]
        for sock in silent:
            sock.close()
        traced.wait_for(1010)
    left = [s for s in traced.spans if s["url.path"].startswith("/silent/")]
    assert len(left) == len({s["url.path"] for s in left}) == 1000
    assert {s["error.type"] for s in left} == {"connection_closed"}


def bpf_maps(pids: Sequence[int]) -> set[int]:
    """Numbers of the BPF maps that processes hold."""
    found = set()
    for pid in pids:
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            lines = info.read_text().splitlines()
            found |= {int(line.split()[1]) for line in lines if line.startswith("map_id:")}
    return found


def exists(map_id: int) -> bool:
    """Whether the kernel still has a map of this number.

    Asked for the number behind the one before, which takes no reference. A table of programs that is opened
    by its number while its own end waits in the kernel's queue is counted once more and never given back
    (prog_array_map_clear, kernel/bpf/arraymap.c): a test that opens maps to look keeps what it looks for.
    """
    found = (ctypes.c_uint32 * 3)(map_id - 1, 0, 0)
    call = ctypes.CDLL(None, use_errno=True).syscall
    result = call(attach.SYS_BPF, BPF_MAP_GET_NEXT_ID, found, ctypes.sizeof(found))
    assert result == 0 or ctypes.get_errno() == errno.ENOENT, os.strerror(ctypes.get_errno())
    return result == 0 and found[1] == map_id


def test_nothing_of_a_killed_agent_stays_in_the_kernel(tmp_path: Path):
    """Programs and maps are held by its descriptors and nothing else; the next finds a clean house."""
    with servers.nginx() as server:
        for _ in range(2):
            file = tmp_path / "spans.jsonl"
            with agent(server.pids, exporters=[f"jsonl:{file}"], folder=tmp_path) as running:
                with connected(server.port) as sock:
                    sock.sendall(GET % b"x")
                    read_responses(sock, 1)
                maps = bpf_maps(running.pids)
                assert len(maps) > 10 and all(map(exists, maps))
                for pid in running.pids:
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda held=maps: not any(map(exists, held)), "the maps go")
    assert not list(Path("/sys/fs/bpf").glob("*tracer*")), "nothing is pinned"


def test_files_pipes_and_netlink_are_no_business_of_the_agent(trace):
    """A process that writes HTTP to everything but a connection."""
    text = (
        "import os, socket, struct, sys, tempfile\n"
        "sys.stdin.readline()\n"
        "data = b'GET /nowhere HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'\n"
        "r, w = os.pipe(); os.write(w, data); os.read(r, 99)\n"
        "f = tempfile.TemporaryFile(); f.write(data); f.flush(); f.seek(0); f.read()\n"
        "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.send(data); b.recv(99)\n"
        "n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n"
        "n.sendto(struct.pack('=IHHIIB3x', 20, 18, 0x301, 1, 0, 0), (0, 0)); n.recv(65536)\n"
        "print('done', flush=True); sys.stdin.readline()\n"
    )
    with script(text) as process, trace([process.pid]) as traced:
        process.stdin.write("go\n")
        process.stdin.flush()
        assert line_of(process) == "done"
        assert traced.agent.counters().total("ebpf_otlp_tracer_kernel_chunks_total") in (0, None)
    assert traced.spans == []


def test_concurrent_uploads_do_not_wait_for_each_other(trace):
    """Four threads send 2 MB each in small pieces; every size is exact."""
    sizes = [2_000_003 + i for i in range(4)]

    def upload(port: int, size: int) -> None:
        with connected(port) as sock:
            sock.sendall(b"POST /up/%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (size, size))
            for at in range(0, size, 10_000):
                sock.sendall(bytes(min(10_000, size - at)))
            read_responses(sock, 1)

    with script(SERVER_SCRIPT, "127.0.0.1", 3) as server:
        port = int(line_of(server))
        with trace([server.pid]) as traced:
            threads = [threading.Thread(target=upload, args=(port, size)) for size in sizes]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            traced.wait_for(4)
    assert sorted(s["http.request.body.size"] for s in traced.of(SERVER)) == sizes
