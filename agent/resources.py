# SPDX-License-Identifier: Apache-2.0
"""Which resource a span belongs to: the keeper's process records by tgid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent import __version__
from agent.spans import AttributeValue, Resource

UNKNOWN_SERVICE = "unknown_service"


class ResourceTable:
    """tgid -> Resource. Records of processes that ended stay until `forget`, as events of theirs may wait."""

    def __init__(self, processes_max: int) -> None:
        self._processes_max = processes_max
        self._by_tgid: dict[int, Resource] = {}
        self._ended: dict[int, bool] = {}  # tgid -> it had ended when `to_forget` was asked before

    def put(self, tgid: int, attributes: Mapping[str, AttributeValue]) -> None:
        """A process began, or became another program."""
        known = self._by_tgid.get(tgid)
        if known is None or known.attributes != attributes:
            self._by_tgid[tgid] = Resource(attributes)
        self._ended.pop(tgid, None)

    def gone(self, tgid: int) -> None:
        if tgid in self._by_tgid:
            self._ended.setdefault(tgid, False)

    def of(self, tgid: int) -> Resource:
        """A process that the keeper never told of (it ended before it could be read) gets its tgid alone."""
        resource = self._by_tgid.get(tgid)
        if resource is None:
            resource = Resource({"service.name": UNKNOWN_SERVICE, "process.pid": int(tgid)})
            if len(self._by_tgid) < 2 * self._processes_max:
                self._by_tgid[tgid] = resource
                self._ended[tgid] = False
        return resource

    def lacks(self, tgids: np.ndarray) -> bool:
        """Whether there is one among them of which nothing is known."""
        return any(tgid not in self._by_tgid for tgid in np.unique(tgids).tolist())

    def of_rows(self, tgids: np.ndarray) -> tuple[list[Resource], np.ndarray]:
        """The distinct resources, and for each row its index among them, int32 of the same shape."""
        distinct, index = np.unique(tgids, return_inverse=True)
        return [self.of(int(tgid)) for tgid in distinct], index.astype(np.int32)

    def to_forget(self) -> list[int]:
        """Processes that had ended when this was asked the last time: their events are through by now."""
        due = [tgid for tgid, before in self._ended.items() if before]
        self._ended = {tgid: True for tgid, before in self._ended.items() if not before}
        return due

    def forget(self, tgids: list[int]) -> None:
        for tgid in tgids:
            self._by_tgid.pop(tgid, None)

    def __len__(self) -> int:
        return len(self._by_tgid)


def agent_resource(host: Mapping[str, AttributeValue]) -> Resource:
    """The agent itself, for its own metrics."""
    return Resource(
        {
            "service.name": "ebpf-otlp-tracer",
            "service.version": __version__,
            "telemetry.sdk.name": "ebpf-otlp-tracer",
            "telemetry.sdk.version": __version__,
            "telemetry.sdk.language": "python",
            **host,
        }
    )
