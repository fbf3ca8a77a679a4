# SPDX-License-Identifier: Apache-2.0
"""The demo and the benchmarks, with the servers, load and receiver that they and the end-to-end tests use."""
