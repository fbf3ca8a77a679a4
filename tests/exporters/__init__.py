# SPDX-License-Identifier: Apache-2.0
"""Tests of exporters/: no sleeps, no network but loopback."""
