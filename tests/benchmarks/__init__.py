# SPDX-License-Identifier: Apache-2.0
"""Tests of the benchmarks' own parts: servers, load, receiver, statistics, and the demo's sums."""
