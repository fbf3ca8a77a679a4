# SPDX-License-Identifier: Apache-2.0
"""A network of one TUN device whose packets pass through the test: lost, doubled, late, or none at all.

What is sent to PEER comes back as if PEER had sent it to HERE: a server on HERE is reached at PEER. Both
ends are ours, and neither has the other's addresses, as behind a translation of addresses (DNAT). Without
netem and iptables, which not every kernel has.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import threading
from types import TracebackType

HERE, PEER = "10.9.0.1", "10.9.0.2"
IFF_TUN, IFF_NO_PI, TUNSETIFF = 1, 0x1000, 0x400454CA
SIOCSIFADDR, SIOCSIFNETMASK, SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8916, 0x891C, 0x8914, 0x41


class Reflector:
    """In the network namespace of the thread that makes it. Shares are of packets, from 0 to 1.

    lost, doubled, late: what has happened so far.
    """

    def __init__(self, *, loss: float = 0, doubling: float = 0, reordering: float = 0, seed: int = 0) -> None:
        self._shares = loss, doubling, reordering
        self._rng = random.Random(seed)
        self.lost = self.doubled = self.late = 0
        self.mute = False
        """Every packet is lost from now on."""
        self._tun = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tun, TUNSETIFF, struct.pack("16sH22x", b"reflect", IFF_TUN | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for request, address in ((SIOCSIFADDR, HERE), (SIOCSIFNETMASK, "255.255.255.0")):
                packed = struct.pack("16sHH4s16x", b"reflect", socket.AF_INET, 0, socket.inet_aton(address))
                fcntl.ioctl(control, request, packed)
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH22x", b"reflect", IFF_UP_RUNNING))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        held: list[bytes] = []
        while True:
            ready, _, _ = select.select([self._tun, self._stop], [], [], 0.01 if held else None)
            if self._stop in ready:
                return
            if not ready or len(held) > 4:
                self._rng.shuffle(held)
                for packet in held:
                    os.write(self._tun, packet)
                held.clear()
            if self._tun in ready:
                held += self._decide(os.read(self._tun, 65536))

    def _decide(self, packet: bytes) -> list[bytes]:
        """Sends a packet back, or not; what is to come later is returned."""
        if packet[0] >> 4 != 4:
            return []
        # source and destination change places, which no checksum notices
        packet = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        loss, doubling, reordering = self._shares
        if self.mute or self._rng.random() < loss:
            self.lost += 1
            return []
        if self._rng.random() < doubling:
            self.doubled += 1
            os.write(self._tun, packet)
        if self._rng.random() < reordering:
            self.late += 1
            return [packet]
        os.write(self._tun, packet)
        return []

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join()
        for fd in (self._tun, self._stop, self._stopped):
            os.close(fd)

    def __enter__(self) -> Reflector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
