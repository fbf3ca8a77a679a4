# SPDX-License-Identifier: Apache-2.0
"""The self-test of the capture: traces a connection of the keeper's own, and compares with what it knows.

A kernel whose structures differ from what its type information says would give wrong figures for ever, and
nobody would see it. So before a pipeline reads, the keeper talks to itself over the loopback and reads the
data ring: addresses, ports, namespace, roles, sizes, positions and bytes must be those of the conversation.
Anything wrong: AgentError, nothing is traced. Nothing of the test remains: rings empty, counters zero.

It takes a few milliseconds. Sends are corked, and read only when all are there: so that sequence numbers
that are equal most of the time (write_seq and snd_nxt, copied_seq and rcv_nxt) differ while it looks.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from agent import hooks
from agent.errors import AgentError
from agent.kernel import Kernel, Ring
from agent.log import Log
from agent.permissions import lockdown, why_refused
from agent.records import IN, LATE, OUT, RESET, ROLES, Event, parse

REQUESTS = (
    b"GET /self-test HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /self-test/again HTTP/1.1\r\nHost: localhost\r\n\r\n",
)
RESPONSES = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
)
LOOPBACK_WAIT_S = 0.5  # for the loopback, which takes microseconds; a firewall may swallow everything
EVENTS_WAIT_S = 0.5  # for the last record, which is written before close(2) returns
NAMED_MAX = 4  # differences that the message names
MAPPED = "::ffff:"
# Name, family and address of the server. The client's is 127.0.0.1, another one, so that one cannot be taken
# for the other. IPv6 has only one; an IPv6 socket that speaks IPv4 has both in the same fields.
CONVERSATIONS = (
    ("IPv4", socket.AF_INET, "127.0.0.2"),
    ("IPv6", socket.AF_INET6, "::1"),
    ("IPv4 in IPv6", socket.AF_INET6, f"{MAPPED}127.0.0.2"),
)
FIRST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO
HINT = "please report it with the output of `uname -r`; nothing is traced, as every figure would be wrong"

# By system call, the usual one first: another one is taken where its hook is missing.
SENDS: Mapping[str, Callable[[socket.socket, bytes], int]] = {
    "sendto": lambda s, data: s.send(data),
    "write": lambda s, data: os.write(s.fileno(), data),
    "sendmsg": lambda s, data: s.sendmsg([data]),
    "writev": lambda s, data: os.writev(s.fileno(), [data]),
}
RECEIVES: Mapping[str, Callable[[socket.socket, int], bytes]] = {
    "recvfrom": lambda s, size: s.recv(size),
    "read": lambda s, size: os.read(s.fileno(), size),
    "recvmsg": lambda s, size: s.recvmsg(size)[0],
}


@dataclass(frozen=True)
class Conversation:
    """What is true of one connection: addresses and ports of the client and of the server."""

    client: tuple[str, int]
    server: tuple[str, int]


def readable(target: socket.socket, timeout_s: float) -> bool:
    """Not by select(2), which takes no descriptor above 1023."""
    poll = select.poll()
    poll.register(target, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def run(kernel: Kernel, log: Log) -> None:
    """Raises AgentError when the attached programs read anything wrong. Leaves `kernel` as new."""
    began = time.monotonic()
    ring = Ring(kernel.maps["events"], kernel.facts["constants"]["EVENTS_BYTES"])
    tested = []
    try:
        for name, family, address in CONVERSATIONS:
            try:
                listener = _listen(family, address)
            except OSError as error:
                if family == socket.AF_INET:
                    log.warn("the capture is not tested: no loopback here", reason=str(error))
                continue  # without IPv6 there is nothing to read wrong
            with listener:
                if _test(kernel, ring, listener, log):
                    tested.append(name)
        _forget(kernel, ring)
    finally:
        ring.close()
    if tested:
        ms = round(1000 * (time.monotonic() - began), 1)
        log.debug("the capture reads this kernel right", over=", ".join(tested), ms=ms)


def _listen(family: socket.AddressFamily, address: str) -> socket.socket:
    made = socket.socket(family)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((address, 0))
        made.listen(1)
        made.settimeout(LOOPBACK_WAIT_S)
    except OSError:
        made.close()
        raise
    return made


def _test(kernel: Kernel, ring: Ring, listener: socket.socket, log: Log) -> bool:
    """False: the loopback carries nothing, so that nothing can be said."""
    for _ in ring.records():
        pass
    off = {each["name"].rpartition("/")[2] for each in kernel.refused}
    kernel.trace(os.getpid(), follow_children=False)
    try:
        said = _converse(listener, off)
        events = _read(ring, _is_expected(off, "tcp_destroy_sock"))
    except OSError as error:
        log.warn("the capture is not tested: the loopback carries nothing", reason=str(error))
        return False
    except ValueError as error:
        raise AgentError(f"the kernel programs write records that cannot be: {error}", HINT) from error
    finally:
        kernel.untrace(os.getpid())
    if kernel.refused and {event.direction for event in events if event.kind == "chunk"} != {IN, OUT}:
        first, *rest = hooks.switched_off(kernel.refused)
        raise AgentError(
            f"nothing can be traced: {hooks.sentence(first)}"
            + (f"; and {len(rest)} more hooks are off" if rest else ""),
            why_refused()
            if lockdown() == "confidentiality"
            else "ebpf-otlp-tracer doctor shows what is missing",
        )
    wrong = differences(events, said, off)
    if wrong:
        more = f"; and {len(wrong) - NAMED_MAX} more" if len(wrong) > NAMED_MAX else ""
        release = kernel.facts["kernel"]["release"]
        raise AgentError(
            f"the kernel programs read this kernel ({release}) wrong, of a connection of our own: "
            f"{'; '.join(wrong[:NAMED_MAX])}{more}{_missing(off)}",
            _hint(events),
        )
    return True


def _is_expected(off: set[str], hook: str) -> bool:
    return not off & {hook, f"raw_{hook}"}


def _converse(listener: socket.socket, off: set[str]) -> Conversation:
    """Two requests and two answers, within this process."""
    send = next((call for name, call in SENDS.items() if f"sys_exit_{name}" not in off), SENDS["sendto"])
    receive = next(
        (call for name, call in RECEIVES.items() if f"sys_exit_{name}" not in off), RECEIVES["recvfrom"]
    )
    with socket.socket(listener.family) as client:
        client.settimeout(LOOPBACK_WAIT_S)
        client.connect(listener.getsockname()[:2])
        server, _ = listener.accept()
        with server:
            said = Conversation(_end(client), _end(server))
            for source, target, messages in ((client, server, REQUESTS), (server, client, RESPONSES)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
                for message in messages:
                    send(source, message)
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
                for message in messages:
                    if not readable(target, LOOPBACK_WAIT_S):
                        raise TimeoutError(f"nothing arrived within {LOOPBACK_WAIT_S} s")
                    receive(target, len(message))
            client.close()  # before the server: it would be the one that waits
    return said


def _end(of: socket.socket) -> tuple[str, int]:
    address, port = of.getsockname()[:2]
    return address.removeprefix(MAPPED), port


def _read(ring: Ring, closes: bool) -> list[Event]:
    """Every record, once those of both ends' close are there, or after a while."""
    deadline = time.monotonic() + EVENTS_WAIT_S
    events: list[Event] = []
    while True:
        events += [parse(record) for record in ring.records()]
        ended = sum(event.kind == "close" for event in events)
        if ended >= 2 or not closes or time.monotonic() > deadline:
            return events
        time.sleep(0.001)


def differences(events: Sequence[Event], said: Conversation, off: set[str]) -> list[str]:
    """What the records say and is not so, each with both."""
    ends: dict[int, list[Event]] = {}
    for event in events:
        ends.setdefault(event.conn_id, []).append(event)
    chunks = {conn_id: [e for e in of if e.kind == "chunk"] for conn_id, of in ends.items()}
    sides = {of[0].direction: conn_id for conn_id, of in chunks.items() if of}  # who sent first is the client
    if not any(chunks.values()):
        return ["no byte of it was seen"]
    if len(ends) != 2 or sides.keys() != {IN, OUT}:
        return [f"its two ends were seen as {len(ends)} connections, {len(sides)} of them with bytes"]
    wrong: list[str] = []

    def compare(what: str, read: object, true: object) -> None:
        if read != true:
            wrong.append(f"{what}: read {read!r}, is {true!r}")

    positions: dict[tuple[str, int], list[int]] = {}
    for name, role, conn_id, here, there, sent, received in (
        ("client", 1, sides[OUT], said.client, said.server, REQUESTS, RESPONSES),
        ("server", 2, sides[IN], said.server, said.client, RESPONSES, REQUESTS),
    ):
        opens = [e for e in ends[conn_id] if e.kind == "open"]
        closes = [e for e in ends[conn_id] if e.kind == "close"]
        compare(f"{name}, announced so many times", len(opens), 1)
        for e in opens:
            compare(f"{name}, local address", _address(e.local[0]), here[0])
            compare(f"{name}, local port", e.local[1], here[1])
            compare(f"{name}, remote address", _address(e.remote[0]), there[0])
            compare(f"{name}, remote port", e.remote[1], there[1])
            compare(f"{name}, network namespace", e.netns, _namespace("net"))
            compare(f"{name}, transport", e.transport, 0)
            compare(f"{name}, process", e.tgid, os.getpid())
            compare(f"{name}, seen from its first byte", not e.flags & LATE, True)
            compare(f"{name}, role", ROLES[e.role] if e.role < len(ROLES) else e.role, ROLES[role])
        for direction, word, messages in ((OUT, "sent", sent), (IN, "received", received)):
            of = [e for e in chunks[conn_id] if e.direction == direction]
            compare(f"{name}, sizes {word}", [e.size for e in of], [len(m) for m in messages])
            compare(f"{name}, bytes {word}", [e.head + e.tail for e in of], list(messages))
            compare(f"{name}, whole and in order, {word}", [e.flags for e in of], [0] * len(messages))
            # Known is how far apart they lie: behind the first message stands the next.
            positions[name, direction] = [e.pos & 0xFFFFFFFF for e in of]
            for e, after in pairwise(of):
                compare(f"{name}, position after {e.size} bytes {word}", after.pos - e.pos, e.size)
        if _is_expected(off, "tcp_destroy_sock"):
            compare(f"{name}, closed so many times", len(closes), 1)
        for e in closes:
            total = (sum(map(len, received)), sum(map(len, sent)))
            compare(f"{name}, bytes in and out at its close", e.totals["bytes"], total)
            compare(f"{name}, reset", bool(e.flags & RESET), False)
    for sender, receiver in (("client", "server"), ("server", "client")):
        what = f"positions that the {receiver} received, by those that the {sender} sent"
        compare(what, positions[receiver, IN], positions[sender, OUT])
    return wrong


def _address(packed: bytes) -> str:
    """IPv4 comes as ::ffff:a.b.c.d."""
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _namespace(kind: str) -> int:
    return os.stat(f"/proc/self/ns/{kind}").st_ino


def _missing(off: set[str]) -> str:
    return f" (missing hooks: {', '.join(sorted(off))})" if off else ""


def _hint(events: Sequence[Event]) -> str:
    """Without any event the programs may be right and the numbers of processes others."""
    if not events and Path("/proc/self/ns/pid").exists() and _namespace("pid") != FIRST_PID_NAMESPACE:
        return "in a container the agent needs the host's process numbers: run it with --pid=host"
    return HINT


def _forget(kernel: Kernel, ring: Ring) -> None:
    """Nothing of the test is anybody's: the ledger compares the counters with what a pipeline reads."""
    for _ in ring.records():
        pass
    kernel.process_events()
    kernel.reset_counters()
