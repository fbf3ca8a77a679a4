# SPDX-License-Identifier: Apache-2.0
"""What the Python clients share: they wait for a line, run features, and tell each call as a JSON line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Outcome:
    rows: int = 0


class Journal:
    """error_of: the code of an exception, in the server's words."""

    def __init__(self, error_of: Callable[[BaseException], str]) -> None:
        self.feature = ""
        self._error_of = error_of

    @contextmanager
    def call(self, text: str, port: int = 0, fails: bool = False) -> Iterator[Outcome]:
        """The block does the call and sets the rows. fails: an error is what is wanted, and ends here."""
        outcome, error = Outcome(), ""
        start_ns = time.monotonic_ns()
        try:
            yield outcome
        except Exception as raised:
            error = self._error_of(raised)
            if not fails:
                raise
        self.tell(text, start_ns, outcome.rows, error, port)

    def tell(self, text: str, start_ns: int, rows: int = 0, error: str = "", port: int = 0) -> None:
        """The call ends now."""
        call = {"feature": self.feature, "text": text, "start_ns": start_ns, "end_ns": time.monotonic_ns()}
        print(json.dumps({**call, "rows": rows, "error": error, "port": port}))


def chosen(features: Mapping[str, Callable[..., object]]) -> tuple[str, int, list[str]]:
    """HOST, PORT and the names of the features, from the command line, once a line has come."""
    host, port, *names = sys.argv[1:]
    unknown = set(names) - set(features)
    if unknown:
        raise SystemExit(f"no such features: {', '.join(sorted(unknown))}\nhint: {', '.join(features)}")
    sys.stdin.readline()
    return host, int(port), names or list(features)
