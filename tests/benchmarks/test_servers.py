# SPDX-License-Identifier: Apache-2.0
"""Every server starts on its own port, answers as its routes say, and is gone afterwards."""

from __future__ import annotations

import http.client
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from benchmarks import servers
from benchmarks.processes import ProcessError
from benchmarks.servers import Server

Start = Callable[[], AbstractContextManager[Server]]


def get(port: int, target: str, method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, target, body)
    answer = connection.getresponse()
    out = answer.status, answer.read()
    connection.close()
    return out


@pytest.mark.parametrize(
    "start", [servers.nginx, servers.python_threads, servers.python_asyncio, servers.node]
)
def test_a_server_serves_in_its_block_and_is_gone_after_it(start: Start) -> None:
    with start() as server:
        assert get(server.port, "/r/1")[0] == 200
        pids = server.pids
        assert server.pid == pids[0]
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not servers.is_listening(server.port)
    assert not server.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("start", [servers.go, servers.python_flask])
def test_servers_that_are_built_first(start: Start) -> None:
    with start() as server:
        assert get(server.port, "/r/1")[0] == 200
    assert not servers.is_listening(server.port)


@pytest.mark.parametrize("start", [servers.python_threads, servers.python_asyncio])
def test_the_shop_answers_by_its_routes(start: Start) -> None:
    with start() as server:
        statuses = {
            target: get(server.port, target)[0]
            for target in (
                "/",
                "/products/7",
                "/products/1000",
                "/search?q=tea",
                "/reports/3",
                "/reports/4",
                "/x",
            )
        }
        order = get(server.port, "/orders", "POST", b'{"product": 7, "quantity": 2}')
        nonsense = get(server.port, "/orders", "POST", b"[]")
    assert list(statuses.values()) == [200, 200, 404, 200, 200, 500, 404]
    assert order == (201, b'{"ordered": 7, "quantity": 2}')
    assert nonsense[0] == 400


def test_nginx_passes_on_and_logs_each_request_with_its_upstream_time() -> None:
    with servers.python_threads() as service, servers.nginx(proxy_to=service.port, access_log=True) as front:
        assert get(front.port, "/recommendations")[0] == 200
        assert get(front.port, "/reports/4?why=1")[0] == 500
        logged = front.requests(count=2)
    assert [(each.method, each.target, each.status) for each in logged] == [
        ("GET", "/recommendations", 200),
        ("GET", "/reports/4?why=1", 500),
    ]
    assert logged[0].upstream_s is not None and 0.039 <= logged[0].upstream_s <= logged[0].request_s + 0.001


def test_nginx_serves_files_and_runs_as_many_workers_as_asked(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with servers.nginx(root=tmp_path, workers=2) as server:
        assert get(server.port, "/file") == (200, b"x" * 100_000)
        assert len(server.pids) == 3


def test_a_configuration_that_nginx_refuses_is_told_with_its_reason() -> None:
    with (
        pytest.raises(ProcessError, match="unknown directive"),
        servers.nginx(directives="no_such_thing on;"),
    ):
        pass


def test_asking_for_a_log_that_is_not_kept_says_how_to_get_it() -> None:
    with servers.nginx() as server, pytest.raises(ValueError, match="access_log=True"):
        server.requests(count=1)
