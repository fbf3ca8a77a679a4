# SPDX-License-Identifier: Apache-2.0
"""Every message between keeper and pipeline, one line each, and the socket that carries them.

One SOCK_SEQPACKET pair: a message is one JSON object, descriptors ride along (SCM_RIGHTS). Both ends check
what they receive against the table; the keeper must, because the pipeline parses what strangers send and
so is not trusted: a message that does not fit the table is counted and never acted on.
"""

from __future__ import annotations

import array
import json
import math
import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

MESSAGE_MAX = 64 * 1024  # bytes of one message; well under the default socket buffer
DESCRIPTORS_MAX = 32
RIGHTS_SIZE = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
SEND_TIMEOUT_S = 5.0  # a pipeline that takes nothing for so long hangs

Direction = Literal["to_pipeline", "to_keeper"]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64


def _is_tgid(value: Any) -> bool:
    return _is_int(value) and 0 < value < 1 << 32


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_int, value.values()))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _is_attributes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, str | bool) or _is_number(v) or _is_texts(v) for v in value.values()
    )


def _is_capture(value: Any) -> bool:
    """{"backend", "sees", "off": [{"name", "reason", "unseen"}]}: agent/backend.py, agent/hooks.py."""
    return (
        isinstance(value, dict)
        and value.keys() == {"backend", "sees", "off"}
        and _is_text(value["backend"])
        and _is_text(value["sees"])
        and isinstance(value["off"], list)
        and all(isinstance(each, dict) and all(map(_is_text, each.values())) for each in value["off"])
    )


class MessageType(NamedTuple):
    direction: Direction
    fields: dict[str, Callable[[Any], bool]]


MESSAGES: dict[str, MessageType] = {
    # `descriptors` names what rides along, in order: ring, demands, counters, listener.
    # earlier: the last "stats" of the pipelines before; started_s: monotonic time of the keeper's start;
    # capture: by which hooks, and which of them are missing.
    "setup": MessageType(
        "to_pipeline",
        {
            "descriptors": _is_texts,
            "cpus": _is_int,
            "earlier_spans": _is_counts,
            "earlier_ledger": _is_counts,
            "started_s": _is_number,
            "host": _is_attributes,
            "capture": _is_capture,
        },
    ),
    # Who a process is, before it is traced; a second one replaces the first (exec).
    "process": MessageType("to_pipeline", {"tgid": _is_tgid, "attributes": _is_attributes}),
    # It ended, or is no longer traced.
    "gone": MessageType("to_pipeline", {"tgid": _is_tgid}),
    # The keeper's own figures (agent/self_metrics.py), the answer to "stats".
    "keeper": MessageType("to_pipeline", {"figures": _is_numbers}),
    # Drain, say the summary, exit.
    "stop": MessageType("to_pipeline", {"timeout_s": _is_number}),
    # Without privilege, exporters open, reading.
    "ready": MessageType("to_keeper", {}),
    # Alive, with spans by service name and the ledger by class since the keeper began.
    "stats": MessageType("to_keeper", {"spans": _is_counts, "ledger": _is_counts}),
}


class MalformedMessage(Exception):
    """A message that is not in the table, or too long."""


class Received(NamedTuple):
    name: str
    fields: dict[str, Any]
    descriptors: tuple[int, ...]


def encode(name: str, fields: Mapping[str, Any]) -> bytes:
    """Raises MalformedMessage when it is longer than MESSAGE_MAX or not as in the table."""
    _check(name, MESSAGES[name].direction, fields)
    data = json.dumps({"type": name, **fields}, separators=(",", ":"), ensure_ascii=False)
    encoded = data.encode(errors="replace")
    if len(encoded) > MESSAGE_MAX:
        raise MalformedMessage(f"{name}: {len(encoded)} bytes, at most {MESSAGE_MAX}")
    return encoded


def decode(data: bytes, direction: Direction) -> tuple[str, dict[str, Any]]:
    """Name and fields of a message that came this way. Raises MalformedMessage."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise MalformedMessage("not an object")
    name = fields.pop("type", None)
    if not isinstance(name, str):
        raise MalformedMessage("no type")
    _check(name, direction, fields)
    return name, fields


def _check(name: str, direction: Direction, fields: Mapping[str, Any]) -> None:
    known = MESSAGES.get(name)
    if known is None or known.direction != direction:
        raise MalformedMessage(f"no message {name[:40]!r} goes {direction}")
    if fields.keys() != known.fields.keys():
        raise MalformedMessage(f"{name}: fields {sorted(fields)[:8]}, expected {sorted(known.fields)}")
    for field, is_valid in known.fields.items():
        if not is_valid(fields[field]):
            raise MalformedMessage(f"{name}: field {field} has an impossible value")


class Channel:
    """One end of the socket pair.

    incoming: the direction this end receives.
    malformed: messages received that the table does not allow.
    refused: messages that `offer` could not send because the other end does not keep up.
    """

    def __init__(self, sock: socket.socket, incoming: Direction) -> None:
        self.sock = sock
        self.incoming = incoming
        self.malformed = 0
        self.refused = 0
        sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def send(self, name: str, descriptors: Sequence[int] = (), /, **fields: Any) -> None:
        """Waits for room. Raises TimeoutError when the other end hangs, OSError when it is gone."""
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        message = encode(name, fields)
        while True:
            try:
                self.sock.sendmsg([message], rights)
                return
            except BlockingIOError:
                self._wait(select.POLLOUT, SEND_TIMEOUT_S)

    def offer(self, name: str, **fields: Any) -> None:
        """Sends if there is room, else counts. Never waits. Raises OSError when the other end is gone."""
        try:
            self.sock.send(encode(name, fields))
        except BlockingIOError:
            self.refused += 1

    def receive(self, wait_s: float | None = None) -> Received | None:
        """The next valid message; None at the end (the other end is closed).

        Raises TimeoutError when none came in `wait_s`; 0 does not wait, None waits for ever. Malformed ones
        are counted and passed over, their descriptors closed.
        """
        while True:
            try:
                data, ancillary, flags, _ = self.sock.recvmsg(
                    MESSAGE_MAX, RIGHTS_SIZE, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._wait(select.POLLIN, wait_s)
                continue
            except ConnectionResetError:
                return None
            descriptors = _descriptors(ancillary)
            if not data:
                _close(descriptors)
                return None
            try:
                if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                    raise MalformedMessage("longer than any message")
                if descriptors and self.incoming == "to_keeper":
                    raise MalformedMessage("descriptors for the keeper")
                return Received(*decode(data, self.incoming), descriptors)
            except MalformedMessage:
                self.malformed += 1
                _close(descriptors)

    def _wait(self, event: int, timeout_s: float | None) -> None:
        poll = select.poll()
        poll.register(self.sock, event)
        if not poll.poll(None if timeout_s is None else timeout_s * 1000):
            raise TimeoutError("the other process does not answer")


def pair() -> tuple[Channel, socket.socket]:
    """The keeper's end, and the other one to hand to the pipeline."""
    keeper, pipeline = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(keeper, "to_keeper"), pipeline


def from_memfd(fd: int) -> Any:
    """The JSON value in a memory file. Reads from its start; leaves `fd` open and where it is."""
    return json.loads(os.pread(fd, os.fstat(fd).st_size, 0))


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return tuple(found)


def _close(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
