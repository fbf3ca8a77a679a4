# SPDX-License-Identifier: Apache-2.0
"""The C core. Python sees what core.h declares, as `agent.core._core`."""
