# SPDX-License-Identifier: Apache-2.0
"""Who a process is: its record out of /proc, and the resource attributes that spans carry."""
