# SPDX-License-Identifier: Apache-2.0
"""A pipeline that only listens: says each message it receives as a JSON line; the tests' stand-in.

FAKE_PIPELINE: "refuse" exits with 78 at once, "garbage" sends what no pipeline may, "slow" takes a second to
be ready, "never" longer than that, "hang" stops when it is.
"""

import json
import os
import signal
import socket
import sys
import time

from agent import messages


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    mode = os.environ.get("FAKE_PIPELINE", "")
    if mode == "refuse":
        return 78
    channel = messages.Channel(
        socket.socket(fileno=int(sys.argv[sys.argv.index("--socket-fd") + 1])), "to_pipeline"
    )
    inherited = sorted(
        os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in range(3, 256) if _is_open(fd)
    )
    print(json.dumps({"type": "hello", "pid": os.getpid(), "inherited": inherited}), flush=True)
    while True:
        message = channel.receive()
        if message is None:
            return 0
        print(json.dumps({"type": message.name, **message.fields}), flush=True)
        if message.name == "setup":
            if mode == "garbage":
                channel.sock.send(b"\xff\x00 garbage")
                channel.sock.send(b'{"type":"stop","timeout_s":0}')
                channel.sock.send(b'{"type":"stats","spans":{"a":-1},"ledger":{}}')
            if mode == "never":
                continue
            if mode == "slow":
                time.sleep(1)
            channel.send("ready")
            channel.send("stats", spans={"shop": 3}, ledger={"chunks.parsed": 5})
            if mode == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
        if message.name == "stop":
            return 0


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
