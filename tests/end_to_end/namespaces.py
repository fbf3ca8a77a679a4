# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that end with the process that holds them, and HTTP peers inside of them.

    with network() as a, network() as b:
        join(a, b)                                      # a veth between them: a.address, b.address
        with server(a, "0.0.0.0", 8080) as service, client(b, a.address, 8080) as asker:
            asker.ask("/x")

Nothing is mounted and nothing gets a name in our own namespace: a namespace without a process is gone,
with its devices, addresses and firewall rules, and the kernel ends its holder when we die.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import build
from benchmarks.processes import Child

SOURCE = Path(__file__).with_name("peer.c")

# A pid namespace, with further options to come. unshare ignores the signal that Child has it sent when we
# die; of this one it dies, and its child with it, and with that one the namespace.
IN_PID_NAMESPACE = (
    *("setpriv", "--pdeathsig", "KILL", "--"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"),
)


def peer_program() -> Path:
    """The static program of peer.c."""
    return build.c_program(SOURCE, "-static")


@dataclass
class Network:
    """A network namespace, of the process `child`. Its addresses: those that it was given first."""

    child: Child
    address: str = ""
    address6: str = ""

    @property
    def pid(self) -> int:
        return self.child.pid

    def command(self, command: Sequence[str | Path]) -> list[str]:
        """A command in this namespace. nsenter becomes the command: no process stays between."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *map(str, command)]

    def run(self, *command: str) -> str:
        ran = subprocess.run(self.command(command), check=False, capture_output=True, text=True, timeout=20)
        assert ran.returncode == 0, f"{' '.join(command)}: {ran.stderr}"
        return ran.stdout

    def give(self, address: str, address6: str = "", device: str = "eth0") -> None:
        """An address for a device, which is then up; the first one counts."""
        self.run("ip", "address", "add", f"{address}/24", "dev", device)
        if address6:  # without a wait for duplicates
            self.run("ip", "-6", "address", "add", f"{address6}/64", "dev", device, "nodad")
        self.run("ip", "link", "set", device, "up")
        self.address, self.address6 = self.address or address, self.address6 or address6


@contextmanager
def network() -> Iterator[Network]:
    """A new one, with its loopback up."""
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-netns-") as folder:
        holder = "ip link set lo up && echo up && exec sleep infinity"
        child = Child(
            ["unshare", "--net", "sh", "-c", holder], log=Path(folder) / "log", stdout=subprocess.PIPE
        )
        try:
            assert child.first_line() == "up"
            yield Network(child)
        finally:
            child.stop()


def plug(a: Network, device: str, b: Network, other: str) -> None:
    """A veth: one end is `device` in a, the other one is `other` in b."""
    a.run("ip", "link", "add", device, "type", "veth", "peer", "name", other, "netns", str(b.pid))


def join(a: Network, b: Network) -> None:
    """Each gets an eth0 that leads to the other: 10.77.0.1 and .2, fd77::1 and ::2."""
    plug(a, "eth0", b, "eth0")
    a.give("10.77.0.1", "fd77::1")
    b.give("10.77.0.2", "fd77::2")


def bridged(switch: Network, *members: Network) -> None:
    """An eth0 for each member, on one bridge in `switch`: 10.78.0.2, .3 and so on."""
    switch.run("ip", "link", "add", "br0", "type", "bridge")
    switch.give("10.78.0.1", device="br0")
    for i, member in enumerate(members, start=2):
        plug(switch, f"port{i}", member, "eth0")
        switch.run("ip", "link", "set", f"port{i}", "master", "br0", "up")
        member.give(f"10.78.0.{i}")
        member.run("ip", "route", "add", "default", "via", "10.78.0.1")


def forward(router: Network) -> None:
    """The namespace passes packets on. /proc/sys/net shows the namespace of who opens it."""
    router.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


@dataclass
class Peer:
    """A running peer.c. pid: its own, as the host sees it."""

    child: Child
    pid: int
    port: int = 0

    def tell(self, line: str = "") -> None:
        assert self.child.process.stdin is not None
        self.child.process.stdin.write(line.encode() + b"\n")
        self.child.process.stdin.flush()

    def ask(self, *paths: str) -> None:
        """Sends a request for each path, one after the other's answer."""
        for path in paths:
            self.tell(path)
            line = self.child.first_line()
            assert line == f"200 {path}", f"{line!r} instead of the answer to {path}"


@contextmanager
def _peer(
    where: Network | None,
    arguments: Sequence[str | Path],
    wrapper: Sequence[str | Path] = (),
) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="ebpf-otlp-tracer-peer-") as folder:
        command = [*wrapper, *arguments]
        child = Child(
            where.command(command) if where else command,
            log=Path(folder) / "log",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            yield Peer(child, child.pid)
        finally:
            child.stop(signal.SIGKILL)  # unshare waits for its child instead of ending


@contextmanager
def server(
    where: Network | None,
    address: str = "127.0.0.1",
    port: int = 0,
    *more: str,
    wrapper: Sequence[str | Path] = (),
    program: Sequence[str | Path] = (),
) -> Iterator[Peer]:
    """A server in a network namespace (None: our own), once it listens.

    wrapper: a command that runs it (unshare), which may stay its parent.
    program: a copy of peer.c's program, under another name and root.
    """
    command = [*(program or [peer_program()]), "serve", address, str(port), *more]
    with _peer(where, command, wrapper) as peer:
        peer.port = int(peer.child.first_line())
        peer.pid = peer.child.pids[-1]
        yield peer


@contextmanager
def client(where: Network | None, address: str, port: int, *more: object) -> Iterator[Peer]:
    """A client that connects when it is asked for its first request. more: source port, sequence."""
    with _peer(where, [peer_program(), "ask", address, str(port), *map(str, more)]) as peer:
        yield peer


@contextmanager
def networks(count: int) -> Iterator[list[Network]]:
    with ExitStack() as stack:
        yield [stack.enter_context(network()) for _ in range(count)]


def new_root(folder: Path) -> Path:
    """A root directory with nothing but peer.c's program in it, as /usr/bin/node."""
    program = folder / "usr/bin/node"
    program.parent.mkdir(parents=True)
    shutil.copy(peer_program(), program)
    return folder
