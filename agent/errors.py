# SPDX-License-Identifier: Apache-2.0
"""Errors that a user meets: what happened, with which value, and what to do next."""


class AgentError(Exception):
    """A failure with a hint. The command line prints both and exits with `exit_code`."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(AgentError):
    """A configuration that cannot be used (EX_CONFIG of sysexits.h)."""

    exit_code = 78


class PrivilegeError(AgentError):
    """Missing privileges (EX_NOPERM of sysexits.h)."""

    exit_code = 77
