# SPDX-License-Identifier: Apache-2.0
"""`ebpf-otlp-tracer status` against pages of every kind: the agent's own, a stranger's, and none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent import __version__, cli, hooks, loader, status_view
from agent.errors import AgentError
from agent.self_metrics import Sample
from agent.status_view import fetch, screen
from agent.summary import figures, lines, summary
from tests.agent.pipelines import rig
from tests.agent.test_summary import samples

Page = Callable[[bytes], str]


def shown(changed: list[Sample] | None = None, **fields: Any) -> dict[str, Any]:
    """A page as the pipeline makes it."""
    return {
        "agent": "ebpf-otlp-tracer",
        "version": "9.9",
        "pids": {"keeper": 11, "pipeline": 12},
        "capture": {"backend": "tracepoint", "sees": "system calls", "off": [], "shed_share": 0.0},
        **figures(changed or samples(keeper__processes=3), 61.5),
        **fields,
    }


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@pytest.fixture
def page() -> Iterator[Page]:
    """page(bytes): the address of somebody who answers every connection with them."""
    servers: list[socket.socket] = []

    def serve(said: bytes) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(said)

        threading.Thread(target=run, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield serve
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["status", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def test_the_screen_has_the_words_of_the_summary(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    address = page(answer(json.dumps(shown()).encode()))
    code, out, err = invoke(capsys, "--set", f"self.listen={address}")
    assert (code, err) == (0, "")
    head, _, rest = out.partition("\n\n")
    assert head == (
        "tracing for 1 min 1 s, 3 processes now (9.9; keeper 11, pipeline 12)\n"
        "capture tracepoint: system calls"
    )
    assert rest == summary(samples(), 61.5).partition("\n\n")[2]


def test_json_is_the_page(page: Page, capsys: pytest.CaptureFixture[str]) -> None:
    address = page(answer(json.dumps(shown()).encode()))
    code, out, _ = invoke(capsys, "--json", "--set", f"self.listen={address}")
    assert (code, json.loads(out)) == (0, shown())


def test_what_is_off_what_is_shed_gaps_losses_and_restarts_are_on_the_screen() -> None:
    from agent.self_metrics import BY_SOURCE

    given = [
        *samples(kernel__unsent_chunks=7, keeper__restarts=2, keeper__processes=1),
        Sample(BY_SOURCE["ledger.gaps"], {"service": "shop", "protocol": "http1", "cause": "ring"}, 4),
        Sample(BY_SOURCE["ledger.gaps"], {"service": "quiet"}, 0),
    ]
    off = hooks.switched_off([{"name": "syscalls/sys_exit_readv", "reason": "no such tracepoint"}])
    capture = {"backend": "tracepoint", "sees": "system calls", "off": off, "shed_share": 0.25}
    text = screen(shown(given, capture=capture))
    assert "1 process now" in text
    assert (
        "syscalls/sys_exit_readv is off (no such tracepoint); not seen: what is received by readv\n" in text
    )
    assert "under pressure: 25% of the connections are left out now" in text
    assert "the pipeline was started again 2 times" in text
    assert "lost: 7 reads or writes did not fit into the ring: raise capture.ring_bytes\n" in text
    assert "gaps: 4 holes in streams cost a message (shop, http1, ring)\n" in text
    assert "quiet" not in text and "nothing was lost" not in text


def test_a_hundred_services_fit_a_screen_and_their_sums_are_whole() -> None:
    from agent.self_metrics import BY_SOURCE

    many = [Sample(BY_SOURCE["ledger.spans"], {"service": f"s{i}"}, i) for i in range(100)]
    made = figures(many, 1)
    text = screen(shown(many))
    assert len(text.splitlines()) < 40
    assert "s99" in text and "s87" not in text
    rest, total = (line.split() for line in text.splitlines() if line.startswith(("88 more", "total")))
    assert rest == ["88", "more", "0", f"{sum(range(88)):,}", "0"] and total[2] == f"{sum(range(100)):,}"
    assert any(line.startswith("s87") for line in lines(made)), "the summary at the end shows every service"


def test_a_service_cannot_write_on_the_terminal() -> None:
    from agent.self_metrics import BY_SOURCE

    text = screen(shown([Sample(BY_SOURCE["ledger.spans"], {"service": "a\x1b[2Jb" + "c" * 99}, 1)]))
    assert "\x1b" not in text and "a?[2Jb" in text
    assert all(len(line) < 100 for line in text.splitlines())


def test_nobody_at_the_address_is_a_sentence_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as held:  # bound and not listening
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        code, out, err = invoke(capsys, "--set", f"self.listen={address}")
    assert (code, out) == (1, "")
    assert f"error: no agent answers at {address}: Connection refused" in err
    assert "hint: " in err and "ebpf-otlp-tracer run" in err and "self.listen" in err


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (answer(b"<html>", "404 Not Found"), "with 404"),
        (answer(b"<html>"), "not a status"),
        (answer(b"[]"), "not a status"),
        (answer(b'{"agent": "another"}'), "not a status"),
        (answer(b"\xff\xfe"), "not a status"),
    ],
)
def test_somebody_else_at_the_address_is_said(page: Page, said: bytes, word: str) -> None:
    address = page(said)
    with pytest.raises(AgentError) as caught:
        fetch(address)
    assert f"something other than this agent listens at {address}" in caught.value.message
    assert word in caught.value.message and "self.listen" in caught.value.hint
    assert caught.value.exit_code == 1


def test_an_agent_that_ends_meanwhile(page: Page) -> None:
    with pytest.raises(AgentError, match="closed the connection without an answer"):
        fetch(page(b""))


def test_agents_of_other_versions_are_told_from_strangers(page: Page) -> None:
    with pytest.raises(AgentError, match="no page /status") as caught:
        fetch(page(answer(b"there are /metrics, /healthz\n", "404 Not Found")))
    assert "/metrics" in caught.value.hint
    later = {"agent": "ebpf-otlp-tracer", "version": "77"}
    with pytest.raises(AgentError, match="77") as caught:
        screen(fetch(page(answer(json.dumps(later).encode()))))
    assert "--json" in caught.value.hint


def test_who_takes_the_connection_and_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_view, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(AgentError, match="did not answer within") as caught:
            fetch(f"127.0.0.1:{silent.getsockname()[1]}")
    assert "pipeline" in caught.value.hint


@pytest.mark.parametrize(("address", "word"), [("", "empty"), ("nonsense", "'nonsense'")])
def test_an_address_that_is_none(address: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = invoke(capsys, "--set", f"self.listen={address}")
    assert code == 78 and word in err and "hint: " in err


def test_a_proxy_of_the_environment_is_not_asked(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(page(answer(json.dumps(shown()).encode())))["version"] == "9.9"


def test_an_agent_that_listens_everywhere_is_asked_on_the_loopback(page: Page) -> None:
    port = page(answer(json.dumps(shown()).encode())).rpartition(":")[2]
    assert fetch(f"0.0.0.0:{port}")["version"] == "9.9"
    assert fetch(f":{port}")["version"] == "9.9"


def test_watching_ends_with_the_agent_or_with_ctrl_c(
    page: Page, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([shown(), shown()])
    asked: list[float] = []
    monkeypatch.setattr(status_view, "fetch", lambda _: next(answers))
    monkeypatch.setattr(cli.time, "sleep", asked.append)
    with pytest.raises(StopIteration):
        invoke(capsys, "--watch")
    assert asked == [1.0, 1.0]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view, "fetch", lambda _: shown())
    monkeypatch.setattr(cli.time, "sleep", interrupted)
    code, out, err = invoke(capsys, "--watch", "--json")
    assert (code, err.strip()) == (130, "")
    assert json.loads(out.splitlines()[-1]) == shown()


def test_the_page_of_a_pipeline_has_its_figures() -> None:
    with rig(core__poll_ms=5.0) as r:
        r.keeper.send("keeper", figures={"processes": 2, "shed_share": 0.125})
        r.pipeline.read_messages()
        r.exchange(100)
        r.feed()
        r.pipeline.export_spans()
        thread = threading.Thread(target=r.pipeline.run)
        thread.start()
        try:
            found = fetch(f"127.0.0.1:{r.listener.getsockname()[1]}")
        finally:
            r.keeper.send("stop", timeout_s=0)
            thread.join(10)
    assert found["version"] == __version__
    assert found["pids"] == {"keeper": os.getppid(), "pipeline": os.getpid()}
    assert found["services"] == {"unknown_service": {"requests": 1, "spans": 1, "orphans": 0}}
    assert found["ledger"]["parsed"]["chunks"] == 2
    assert found["processes"] == 2
    assert found["capture"] == {
        "backend": "tracepoint",
        "sees": "system calls",
        "off": [],
        "shed_share": 0.125,
    }
    assert found["exporters"] == {"list": {"spans": 1, "dropped": {"queue_full": 2}}}
    assert "tracing for" in screen(found)


def test_numpy_is_not_needed_to_ask() -> None:
    code = "import sys, agent.status_view; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_hook_has_words_for_what_is_not_seen_without_it() -> None:
    text = loader.join_includes(loader.BPF_FOLDER / "agent.bpf.c")
    names = [name for p in loader.programs(text) for name in (p["name"], *p["targets"])]
    assert len(names) > 20
    assert [name for name in names if hooks.unseen(name) == hooks.OTHERWISE] == []
    assert hooks.unseen("syscalls/sys_exit_sendto") == "what is sent by sendto"
    assert hooks.unseen("syscalls/sys_enter_writev").startswith("when a writev began")
    assert hooks.unseen("tcp_sendmsg") == "what is moved by the kernel's function tcp_sendmsg"
    assert hooks.unseen("a_hook_of_tomorrow") == hooks.OTHERWISE
