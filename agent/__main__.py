# SPDX-License-Identifier: Apache-2.0
"""`python -m agent` is the command `ebpf-otlp-tracer`."""

import sys

from agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
