# SPDX-License-Identifier: Apache-2.0
"""What is not seen when a hook is missing, in words for users: the one table of it.

A program that the verifier refuses, or a tracepoint that this kernel has not, switches off what depends on
it and nothing else. The log and `ebpf-otlp-tracer status` say what that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# By the name of a program (bpf/*.bpf.c) or of what it is attached to; the first that matches. {call} is the
# system call.
UNSEEN: tuple[tuple[str, str], ...] = (
    (r"(sys_)?enter_(close|shutdown)|(kprobe_)?unix_release", "the ends of Unix sockets, until later"),
    (r"(sys_)?exit_io_uring_setup", "that a process begins to use io_uring"),
    (r"sys_enter_\w+", "when a {call} began: it is timed at its end"),
    (r"enter_send", "when sends began: they are timed at their end"),
    (r"sys_exit_(read|readv|preadv2|recv\w+)", "what is received by {call}"),
    (r"sys_exit_(write|writev|pwritev2|send\w+)", "what is sent by {call}"),
    (r"sys_exit_\w+", "what is moved by {call}"),
    (r"exit_receive", "everything that is received"),
    (r"exit_send", "everything that is sent"),
    (r"tail_messages", "what calls move that take several messages (sendmmsg, recvmmsg)"),
    (r"tail_\w+", "most of what is moved: every program ends in this one"),
    (r"kprobes|(kprobe|kretprobe)_\w+", "what processes that use io_uring move"),
    (r"(raw_)?inet_sock_set_state", "processes that begin to listen on a selected port later, and resets"),
    (r"(raw_)?tcp_destroy_sock", "the ends of connections: capture.connections_max is reached in time"),
    (r"(raw_)?sched_process_fork", "children that traced processes start from now on"),
    (r"(raw_)?sched_process_exec", "processes that become a selected program from now on"),
    (r"(raw_)?sched_process_exit", "ends of processes, until the next look at all of them"),
    (r"(tcp|udp|udpv6|unix)_\w+", "what is moved by the kernel's function {call}"),
)
REASON_MAX = 400  # characters: the verifier's last lines can be many
OTHERWISE = "what only this hook sees"


def unseen(name: str) -> str:
    """What is not seen without the hook of this name."""
    bare = name.rpartition("/")[2]
    for pattern, text in UNSEEN:
        if re.fullmatch(pattern, bare):
            return text.format(call=re.sub(r"^(sys_)?(enter|exit)_", "", bare))
    return OTHERWISE


def switched_off(refused: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """Name, reason and what is not seen, of each hook that is missing."""
    return [
        {"name": each["name"], "reason": each["reason"][:REASON_MAX], "unseen": unseen(each["name"])}
        for each in refused
    ]


def sentence(off: Mapping[str, str]) -> str:
    """One of `switched_off`, for the log and the screen."""
    return f"{off['name']} is off ({off['reason']}); not seen: {off['unseen']}"
