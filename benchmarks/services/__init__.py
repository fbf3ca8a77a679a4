# SPDX-License-Identifier: Apache-2.0
"""Small HTTP services to be traced: one set of routes behind several servers, none with tracing code."""
