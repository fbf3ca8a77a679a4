# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks NAME [options]`: imports and runs one of the benchmarks, or the demo."""

from __future__ import annotations

import importlib
import sys

NAMES = {
    "demo": "nginx before a Python service, traced live, every request accounted for",
    "cost": "what the agent costs nginx and the machine, against the goals",
    "bystander": "what the agent costs processes that it does not trace",
    "scale": "50,000 open connections, and thousands of new ones each second on top",
    "statements": "database statements against the servers' own logs, and what they cost",
    "compare": "a Python service bare, with OpenTelemetry's auto-instrumentation, and with the agent",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in NAMES:
        wanted_help = bool(arguments) and arguments[0] in ("-h", "--help")
        out = sys.stdout if wanted_help else sys.stderr
        if arguments and not wanted_help:
            print(f"no benchmark is called {arguments[0]!r}", file=out)
        print("usage: python -m benchmarks NAME [options]; NAME --help says more\n", file=out)
        for name, sentence in NAMES.items():
            print(f"  {name:<10} {sentence}", file=out)
        return 0 if wanted_help else 2

    from benchmarks.agent import AgentMissing
    from benchmarks.build import BuildError
    from benchmarks.processes import ProcessError

    try:
        return int(importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:]))
    except (AgentMissing, BuildError, ProcessError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
