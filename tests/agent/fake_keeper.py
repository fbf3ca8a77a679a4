# SPDX-License-Identifier: Apache-2.0
"""The real keeper with a fake kernel side: events come in on standard input, calls go to standard output.

`python -m tests.agent.fake_keeper OPTIONS-AS-JSON [SECONDS-AS-JSON]`. An event is a JSON line: kind, tgid,
parent_tgid, traced. Seconds: constants of agent/keeper.py, and LOAD_S, which the kernel side takes to load.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

from agent import keeper
from agent.backend import Backend
from agent.config import OPTIONS
from agent.keeper import Keeper
from agent.kernel import ProcessEvent
from agent.log import Log


def options(**changed: Any) -> dict[str, Any]:
    """Every option at its default, but for those given (`select__pid` is select.pid)."""
    values = {option.name: option.default for option in OPTIONS}
    return {
        **values,
        "self.listen": "",
        **{name.replace("__", "."): value for name, value in changed.items()},
    }


class FakeKernel:
    def __init__(self) -> None:
        self.maps = {name: os.eventfd(0) for name in ("events", "demands", "counters")}
        self.refused: list[dict[str, str]] = [
            {"name": "syscalls/sys_exit_sendfile64", "reason": "no such tracepoint"}
        ]
        self.facts = {"constants": {"CPUS": 2}}
        self.process_ring_fd = 0
        self.backend = Backend("tracepoint", True, False, False, "system calls by tracepoints")
        self._input = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115

    def attach(self) -> None:
        say("attach")

    def trace(self, tgid: int, *, by_kprobe: bool = False) -> None:
        say("trace", tgid=tgid)

    def attach_kprobes(self) -> bool:
        return False

    def forget_unix(self, alive: Callable[[], Container[int] | None]) -> int:
        return 0

    def shed_share(self) -> float:
        return 0.0

    def select_port(self, port: int) -> None:
        say("select_port", port=port)

    def set_epoch(self, epoch: int) -> None:
        say("set_epoch", epoch=epoch)

    def process_events(self) -> Sequence[ProcessEvent]:
        events = []
        while select.select([0], [], [], 0)[0]:
            line = self._input.readline()
            if not line:
                break
            given = json.loads(line)
            events.append(
                ProcessEvent(
                    given["kind"],
                    given.get("traced", False),
                    given["tgid"],
                    given.get("parent_tgid", 0),
                    0,
                    0,
                    0,
                    "",
                )
            )
        return events

    def counters(self) -> dict[str, int]:
        return {"process_events_lost": 0}

    def close(self) -> None:
        say("close")


def say(call: str, **arguments: int) -> None:
    os.write(1, (json.dumps({"type": f"kernel.{call}", **arguments}) + "\n").encode())


def main() -> int:
    config_fd = os.memfd_create("config", 0)
    command = (sys.executable, "-m", "tests.agent.fake_pipeline")
    given = options(**json.loads(sys.argv[1]))
    seconds = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    load_s = seconds.pop("LOAD_S", 0)
    for name, value in seconds.items():
        assert hasattr(keeper, name), name
        setattr(keeper, name, value)

    def load() -> FakeKernel:
        time.sleep(load_s)
        return FakeKernel()

    log = Log("debug", "keeper")
    return Keeper(given, config_fd, log, load, command, lambda kernel, log: None).run()


if __name__ == "__main__":
    sys.exit(main())
