# SPDX-License-Identifier: Apache-2.0
"""ebpf-otlp-tracer: a zero-code tracing agent for Linux. Read agent/pipeline.py first."""

__version__ = "0.1.0"
