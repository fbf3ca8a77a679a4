# SPDX-License-Identifier: Apache-2.0
"""What `ebpf-otlp-tracer status` shows: asks a running agent for its page /status, and makes a screen of it.

Needs no privilege, and no more than the address: whoever may connect to it may ask.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from agent import hooks
from agent.errors import AgentError, ConfigError
from agent.status import AGENT, parse_address
from agent.summary import duration, lines

TIMEOUT_S = 5.0  # a pipeline that starts, or starts again, answers within two
ANSWER_MAX = 16 << 20  # bytes; of 8,192 services about two million
SERVICES_MAX = 12  # so that all fits a screen of 40 lines
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def fetch(address: str) -> dict[str, Any]:
    """The figures of the agent that listens at `address`. Raises AgentError: nobody, or somebody else."""
    if not address:
        raise ConfigError(
            "self.listen is empty: an agent with this configuration answers nowhere",
            "--set self.listen=HOST:PORT asks the agent that listens there",
        )
    try:
        host, port = parse_address(address)
    except ValueError as error:
        raise ConfigError(str(error), "for example --set self.listen=127.0.0.1:9465") from error
    try:
        status, body = _get(ANYWHERE.get(host, host), port)
    except OSError as error:
        raise _unreachable(address, error) from error
    except http.client.HTTPException as error:
        raise _stranger(address, f"its answer is not HTTP ({type(error).__name__})") from error
    if status != 200:
        if b"/healthz" in body:
            hint = "it is of an earlier version: /metrics there has its figures"
            raise AgentError(f"the agent at {address} has no page /status", hint)
        raise _stranger(address, f"it answers /status with {status}")
    try:
        shown = json.loads(body)
    except ValueError:
        shown = None
    if not isinstance(shown, dict) or shown.get("agent") != AGENT:
        raise _stranger(address, "its answer is not a status")
    return shown


def _get(host: str, port: int) -> tuple[int, bytes]:
    """Not urllib, which would ask a proxy of the environment."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        answer = connection.getresponse()
        return answer.status, answer.read(ANSWER_MAX)
    finally:
        connection.close()


def _unreachable(address: str, error: OSError) -> AgentError:
    if isinstance(error, TimeoutError):
        return AgentError(
            f"something at {address} took the connection and did not answer within {TIMEOUT_S:g} s",
            "if it is the agent, its pipeline hangs or starts again: its log says so; ask again",
        )
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return AgentError(
            f"{address} closed the connection without an answer", "is the agent ending? ask again"
        )
    return AgentError(
        f"no agent answers at {address}: {error.strerror or error}",
        "start one (sudo ebpf-otlp-tracer run …); one with another self.listen: --set self.listen=HOST:PORT",
    )


def _stranger(address: str, why: str) -> AgentError:
    return AgentError(
        f"something other than this agent listens at {address}: {why}",
        "the agent warns at its start when its address is in use; ask with --set self.listen=HOST:PORT",
    )


def screen(shown: Mapping[str, Any]) -> str:
    """The figures as a screen of text; what a version does not know of is left out."""
    try:
        pids = ", ".join(f"{name} {pid}" for name, pid in shown["pids"].items())
        head = [
            f"tracing for {duration(shown['uptime_s'])}, {_processes(shown['processes'])} now "
            f"({shown['version']}; {pids})",
            *_capture_lines(shown["capture"]),
        ]
        if shown["restarts"]:
            head.append(f"the pipeline was started again {shown['restarts']} times: the log says why")
        return "\n".join([*head, "", *lines(shown, SERVICES_MAX)]) + "\n"
    except (KeyError, TypeError, AttributeError) as error:
        version = shown.get("version", "of unknown version")
        raise AgentError(
            f"the agent that runs ({version}) tells its status in another form: no {error}",
            "--json prints it as it is; or ask with the command of its own version",
        ) from error


def _processes(count: int) -> str:
    return f"{count:,} process{'' if count == 1 else 'es'}"


def _capture_lines(capture: Mapping[str, Any]) -> list[str]:
    found = [f"capture {capture['backend']}: {capture['sees']}"]
    found += [hooks.sentence(each) for each in capture["off"]]
    share = capture["shed_share"]
    if share:
        found.append(f"under pressure: {share:.0%} of the connections are left out now, and counted as shed")
    return found
