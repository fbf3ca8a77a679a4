# SPDX-License-Identifier: Apache-2.0
"""A TCP relay on loopback that keeps what went through it, connection by connection."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from benchmarks.processes import listener
from tests.protocols.seeds import Chunk

_RECEIVE = 65536


class Relay:
    """port: connect here. conversations: the chunks of each connection, in the order of their begin."""

    def __init__(self, port: int, to_port: int) -> None:
        self.port = port
        self.conversations: list[list[Chunk]] = []
        self._to_port = to_port
        self._threads: list[threading.Thread] = []

    def accept(self, held: socket.socket) -> None:
        while True:
            try:
                client, _ = held.accept()
            except OSError:
                return
            chunks: list[Chunk] = []
            self.conversations.append(chunks)
            thread = threading.Thread(target=self._pass_on, args=(client, chunks), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket, chunks: list[Chunk]) -> None:
        """One thread for both directions, so that the order of the chunks is that of cause and effect."""
        server = socket.create_connection(("127.0.0.1", self._to_port))
        other = {client: (0, server), server: (1, client)}
        with closing(client), closing(server), selectors.DefaultSelector() as selector:
            for each in other:
                selector.register(each, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    sender, target = other[source]
                    try:
                        if data := source.recv(_RECEIVE):
                            chunks.append((sender, data))
                            target.sendall(data)
                            continue
                        target.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # the other side is gone: so is this direction
                    selector.unregister(source)

    def finish(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a connection through the relay is still open"


@contextmanager
def relay(to_port: int) -> Iterator[Relay]:
    """Every connection must have ended when the block does."""
    with listener() as held:
        running = Relay(held.getsockname()[1], to_port)
        accepting = threading.Thread(target=running.accept, args=(held,), daemon=True)
        accepting.start()
        yield running
        held.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
    running.finish()
