# SPDX-License-Identifier: Apache-2.0
"""Real servers on loopback, each a context manager: nginx, Python (threads, asyncio, Flask), Node and Go.

    with python_threads() as service, nginx(proxy_to=service.port, access_log=True) as front:
        front.port, front.pids, front.requests(count=23)

A server is ready when its block begins and gone when it ends. Ports are the kernel's choice: nginx and
gunicorn are handed a listening socket, the others bind port 0 and print the port.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import build
from benchmarks.patience import patience
from benchmarks.processes import Child, ProcessError, listener, wait_answers

SERVICES = Path(__file__).resolve().parent / "services"
ACCESS_LOG_TIMEOUT_S = patience(2.0)
_DEBIAN_PACKAGE = {"node": "nodejs"}


@dataclass(frozen=True)
class LoggedRequest:
    """One line of nginx's access log, which nginx writes when the answer is sent."""

    method: str
    target: str
    status: int
    request_s: float
    upstream_s: float | None
    connection: int
    bytes_sent: int


@dataclass
class Server:
    """A running server. folder: its log and configuration, deleted with it."""

    name: str
    port: int
    child: Child
    folder: Path
    access_log: Path | None = field(default=None)

    @property
    def pid(self) -> int:
        """The process we started: nginx's master, gunicorn's arbiter, or the server itself."""
        return self.child.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """All its processes, now."""
        return self.child.pids

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, count: int, timeout_s: float = ACCESS_LOG_TIMEOUT_S) -> list[LoggedRequest]:
        """The access log (nginx with access_log=True), once `count` requests are in it or the time is over.

        nginx logs a request just after its answer has left, so the client may be here first.
        """
        if self.access_log is None:
            raise ValueError(f"{self.name} keeps no access log: start it with access_log=True")
        deadline = time.monotonic() + timeout_s
        while True:
            lines = self.access_log.read_text().splitlines()
            if len(lines) >= count or time.monotonic() > deadline:
                return [_logged(line) for line in lines]
            time.sleep(0.01)


@contextmanager
def nginx(
    *,
    proxy_to: int | None = None,
    upstream: str = "upstream",
    workers: int = 1,
    access_log: bool = False,
    body: str = "ok\n",
    root: Path | None = None,
    directives: str = "",
    cpus: Sequence[int] = (),
) -> Iterator[Server]:
    """nginx with its own configuration.

    proxy_to: a local port that all requests go to, over kept-alive connections; `upstream` names it,
        and is the Host that nginx sends there.
    root: a folder of static files, instead. Without either, every request is answered 200 with `body`.
    directives: more lines for the server block.
    As root the workers run as nobody, as in a real installation.
    """
    program = _program("nginx", "/usr/sbin")
    with _folder() as folder, listener() as held:
        port = held.getsockname()[1]
        # nginx takes it for one of its own, which never block: in accept() a worker would wait for ever
        # when another was quicker.
        held.setblocking(False)
        log = folder / "access.log" if access_log else None
        if proxy_to is not None:
            location = (
                f"proxy_pass http://{upstream}; proxy_http_version 1.1; proxy_set_header Connection '';"
            )
        elif root is not None:
            location = f"root {root};"
        else:
            location = f"default_type text/plain; return 200 '{body}';"
        (folder / "nginx.conf").write_text(
            _NGINX.format(
                user="user nobody nogroup;" if os.geteuid() == 0 else "",
                workers=workers,
                folder=folder,
                upstream=(
                    f"upstream {upstream} {{ server 127.0.0.1:{proxy_to}; keepalive 64; "
                    "keepalive_requests 1000000000; }"
                    if proxy_to is not None
                    else ""
                ),
                access_log=f"{log} requests" if log else "off",
                port=port,
                directives=directives,
                location=location,
            )
        )
        child = Child(
            [program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"],
            log=folder / "output.log",
            # The way that nginx takes sockets over on an upgrade of its binary.
            env={"NGINX": f"{held.fileno()};"},
            pass_fds=[held.fileno()],
            cpus=cpus,
        )
        held.close()
        server = Server("nginx", port, child, folder, log)
        try:
            _nginx_ready(server)
            yield server
        finally:
            child.stop()


def _nginx_ready(server: Server) -> None:
    """The socket takes connections from the start, so readiness is an answer; it is not logged."""
    try:
        wait_answers(server.port, server.child, "/nginx-ready")
    except ProcessError as error:
        log = server.folder / "error.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        raise ProcessError(f"{error}\n{text[-2000:]}") from error


_NGINX = """\
{user}
worker_processes {workers};
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    log_format requests '$request_method $request_uri $status $request_time "$upstream_response_time" '
                        '$connection $bytes_sent';
    access_log {access_log};
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    keepalive_time 24h;
    large_client_header_buffers 8 64k;
    client_max_body_size 0;
    {upstream}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        {directives}
        location = /nginx-ready {{ access_log off; return 204; }}
        location / {{ {location} }}
    }}
}}
"""

_LOGGED = re.compile(r'(\S+) (\S+) (\d+) ([\d.]+) "([^"]*)" (\d+) (\d+)')


def _logged(line: str) -> LoggedRequest:
    match = _LOGGED.fullmatch(line)
    if match is None:
        raise ValueError(f"not a line of the access log: {line!r}")
    upstream = float(match[5]) if match[5] not in ("", "-") else None
    return LoggedRequest(
        match[1], match[2], int(match[3]), float(match[4]), upstream, int(match[6]), int(match[7])
    )


@contextmanager
def python_threads(
    *, python: str = sys.executable, env: Mapping[str, str] | None = None, cpus: Sequence[int] = ()
) -> Iterator[Server]:
    """The demo's shop on http.server: a thread per connection."""
    with _telling("shop", [python, SERVICES / "shop.py"], env, cpus) as server:
        yield server


@contextmanager
def python_asyncio(
    *, python: str = sys.executable, env: Mapping[str, str] | None = None, cpus: Sequence[int] = ()
) -> Iterator[Server]:
    """The shop on asyncio: all connections on one thread."""
    with _telling("shop_asyncio", [python, SERVICES / "shop_asyncio.py"], env, cpus) as server:
        yield server


@contextmanager
def node(*, env: Mapping[str, str] | None = None, cpus: Sequence[int] = ()) -> Iterator[Server]:
    with _telling("shop_node", [_program("node"), SERVICES / "shop_node.js"], env, cpus) as server:
        yield server


@contextmanager
def go(*, env: Mapping[str, str] | None = None, cpus: Sequence[int] = ()) -> Iterator[Server]:
    with _telling("shop_go", [build.go_program(SERVICES / "shop_go.go")], env, cpus) as server:
        yield server


@contextmanager
def python_flask(
    *,
    instrumented: bool = False,
    threads: int = 8,
    env: Mapping[str, str] | None = None,
    cpus: Sequence[int] = (),
) -> Iterator[Server]:
    """The shop on Flask under gunicorn: one worker process with threads.

    instrumented: started through `opentelemetry-instrument`; `env` says where the SDK exports to.
    """
    binaries = build.virtual_environment(SERVICES / "requirements-compare.txt").parent
    command: list[str | Path] = (
        [binaries / "python", binaries / "opentelemetry-instrument"] if instrumented else []
    )
    with _folder() as folder, listener() as held:
        command += [binaries / "gunicorn"] if instrumented else [binaries / "python", binaries / "gunicorn"]
        command += ["--bind", f"fd://{held.fileno()}", "--workers", "1", "--worker-class", "gthread"]
        command += ["--threads", str(threads), "--keep-alive", "3600", "--worker-connections", "2000"]
        command += [
            "--worker-tmp-dir",
            folder,
            "--chdir",
            SERVICES,
            "--no-control-socket",
            "shop_flask:application",
        ]
        child = Child(command, log=folder / "output.log", env=env, pass_fds=[held.fileno()], cpus=cpus)
        port = held.getsockname()[1]
        held.close()
        try:
            wait_answers(port, child)
            yield Server("shop_flask", port, child, folder)
        finally:
            child.stop()


@contextmanager
def _telling(
    name: str, command: Sequence[str | Path], env: Mapping[str, str] | None, cpus: Sequence[int]
) -> Iterator[Server]:
    """A server that binds port 0 and prints the port once it listens."""
    with _folder() as folder:
        child = Child(command, log=folder / "output.log", env=env, stdout=subprocess.PIPE, cpus=cpus)
        try:
            yield Server(name, int(child.first_line()), child, folder)
        finally:
            child.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder that servers without our privileges may enter."""
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def _program(name: str, *more_folders: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *more_folders]))
    if found is None:
        raise ProcessError(f"{name} is not installed\nhint: apt install {_DEBIAN_PACKAGE.get(name, name)}")
    return found


def is_listening(port: int) -> bool:
    """Whether 127.0.0.1:port takes connections."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
