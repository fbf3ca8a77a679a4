# SPDX-License-Identifier: Apache-2.0
"""Where spans, metrics and findings go: what an exporter is, and how the named ones are made, in two phases.

    parent, privileged      prepared = prepare(names, options, environ, version)
                              reads certificates, opens files, checks every setting
    pipeline, unprivileged  exporters = open_prepared(prepared.settings, fds)
                              needs sockets and threads only

`settings` are JSON types and `fds` a list of descriptors, so both can pass through a socket (SCM_RIGHTS);
settings hold secrets (headers).

An exporter knows spans and not the kernel. Everything that only one of them needs is imported when it is
opened: a process with the console alone never loads TLS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

from agent.errors import ConfigError
from agent.spans import LogBatch, MetricBatch, SpanBatch

NAMES = ("console", "jsonl:PATH", "otlp", "sdk:NAME", "none")


class Exporter(Protocol):
    name: str

    def export_spans(self, batch: SpanBatch) -> None:
        """Takes what it needs of the batch, whose memory is invalid afterwards. Never blocks: what cannot be
        kept is dropped and counted."""

    def export_logs(self, batch: LogBatch) -> None:
        """The same for findings, as log records; exporters of spans alone ignore them."""

    def export_metrics(self, batch: MetricBatch) -> None:
        """The same for metrics."""

    def tick(self, now: float) -> None:
        """Time passes: to be called about four times a second, with time.monotonic()."""

    def flush(self, timeout_s: float) -> bool:
        """Waits until all is out. False: not in time."""
        ...

    def close(self) -> None:
        """Gives up what is left, counted. Nothing is exported afterwards."""

    def stats(self) -> dict[str, int]:
        """sent_spans, sent_logs, dropped_spans_<reason>, queue_bytes and so on; all but queue_* only grow."""
        ...


@dataclass
class Prepared:
    settings: list[dict[str, Any]] = field(default_factory=list)
    fds: list[int] = field(default_factory=list)


def default_names(environ: Mapping[str, str]) -> list[str]:
    """Without --exporter: console, and otlp when the environment names a receiver."""
    from exporters.otlp_settings import endpoint_is_set

    return ["console", "otlp"] if endpoint_is_set(environ) else ["console"]


def prepare(
    names: Sequence[str], options: Mapping[str, Any], environ: Mapping[str, str], version: str
) -> Prepared:
    """Checks and opens what needs privileges. The descriptors are the caller's, to pass on or to close.

    options: values by name of the option table (`export.*`, `console.color`). Raises ConfigError.
    """
    prepared = Prepared()
    try:
        for name in dict.fromkeys(names or default_names(environ)):
            kind, _, argument = name.partition(":")
            if kind not in _PREPARE or (kind in ("jsonl", "sdk")) != bool(argument):
                near = get_close_matches(name, ["console", "jsonl:", "otlp", "sdk:", "none"], 1)
                hint = f"did you mean {near[0]}? " if near and near[0] != name else ""
                raise ConfigError(f"unknown exporter {name}", f"{hint}known: {', '.join(NAMES)}")
            settings = _PREPARE[kind](argument, options, environ, prepared.fds)
            if settings is not None:
                prepared.settings.append({"kind": kind, "version": version, **settings})
    except BaseException:
        for fd in prepared.fds:
            os.close(fd)
        raise
    return prepared


def open_prepared(settings: Sequence[dict[str, Any]], fds: Sequence[int]) -> list[Exporter]:
    """Exporters that run, threads and all. They own the descriptors."""
    return [_OPEN[one["kind"]](one, fds) for one in settings]


def open_exporters(
    names: Sequence[str], options: Mapping[str, Any], environ: Mapping[str, str], version: str
) -> list[Exporter]:
    """Both phases in one process."""
    prepared = prepare(names, options, environ, version)
    return open_prepared(prepared.settings, prepared.fds)


def _prepare_console(
    argument: str, options: Mapping[str, Any], environ: Mapping[str, str], fds: list[int]
) -> dict[str, Any]:
    choice = options.get("console.color", "auto")
    plain = (
        environ.get("NO_COLOR") or environ.get("TERM") == "dumb" or not os.isatty(1)
    )  # https://no-color.org
    fds.append(os.dup(1))
    return {"fd": len(fds) - 1, "color": choice == "always" or (choice == "auto" and not plain)}


def _prepare_jsonl(
    argument: str, options: Mapping[str, Any], environ: Mapping[str, str], fds: list[int]
) -> dict[str, Any]:
    from exporters.jsonl import logs_path, open_file

    fds.append(open_file(argument))
    settings = {"fd": len(fds) - 1, "path": argument, "rows_max": options["export.request_spans_max"]}
    logs = logs_path(argument, fds[-1])
    if logs:
        fds.append(open_file(logs))
    return {**settings, "logs_fd": len(fds) - 1 if logs else None, "logs_path": logs}


def _prepare_otlp(
    argument: str, options: Mapping[str, Any], environ: Mapping[str, str], fds: list[int]
) -> dict[str, Any]:
    from exporters.otlp_settings import read_settings

    settings = read_settings(environ)
    client_fds: dict[str, int] = {}
    if any(signal.url.startswith("https:") for signal in settings.signals.values()):
        from exporters.otlp_http import client_file, tls_context

        for name, signal in settings.signals.items():
            if signal.client_pem:
                fds.append(client_file(signal.client_pem))
                client_fds[name] = len(fds) - 1
            tls_context(
                signal, fds[-1] if signal.client_pem else None
            )  # what is wrong is said where a user looks
    return {
        "otlp": settings.to_plain(),
        "client_fds": client_fds,
        "rows_max": options["export.request_spans_max"],
        "queue_bytes": options["export.queue_bytes"],
    }


def _prepare_sdk(
    argument: str, options: Mapping[str, Any], environ: Mapping[str, str], fds: list[int]
) -> dict[str, Any]:
    from exporters.sdk import check

    check(argument)
    return {"name": argument, "queue_bytes": options["export.queue_bytes"]}


def _open_console(settings: dict[str, Any], fds: Sequence[int]) -> Exporter:
    from exporters.console import ConsoleExporter

    return ConsoleExporter(fds[settings["fd"]], settings["color"])


def _open_jsonl(settings: dict[str, Any], fds: Sequence[int]) -> Exporter:
    from exporters.jsonl import JsonlExporter

    logs = None if settings["logs_fd"] is None else (fds[settings["logs_fd"]], settings["logs_path"])
    return JsonlExporter(
        fds[settings["fd"]], settings["path"], settings["version"], settings["rows_max"], logs
    )


def _open_otlp(settings: dict[str, Any], fds: Sequence[int]) -> Exporter:
    from exporters.otlp_http import OtlpHttpExporter
    from exporters.otlp_settings import OtlpSettings

    otlp = OtlpSettings.from_plain(settings["otlp"])
    client_fds = {name: fds[number] for name, number in settings["client_fds"].items()}
    try:
        exporter = OtlpHttpExporter(
            otlp, settings["version"], settings["rows_max"], settings["queue_bytes"], client_fds=client_fds
        )
    finally:
        for fd in client_fds.values():
            os.close(fd)
    exporter.start()
    return exporter


def _open_sdk(settings: dict[str, Any], fds: Sequence[int]) -> Exporter:
    from exporters.sdk import SdkExporter, load

    name = settings["name"]
    exporter = SdkExporter(name, load(name), settings["version"], settings["queue_bytes"])
    exporter.start()
    return exporter


_PREPARE: dict[str, Callable[..., dict[str, Any] | None]] = {
    "console": _prepare_console,
    "jsonl": _prepare_jsonl,
    "otlp": _prepare_otlp,
    "sdk": _prepare_sdk,
    "none": lambda *_: None,
}
_OPEN: dict[str, Callable[[dict[str, Any], Sequence[int]], Exporter]] = {
    "console": _open_console,
    "jsonl": _open_jsonl,
    "otlp": _open_otlp,
    "sdk": _open_sdk,
}
