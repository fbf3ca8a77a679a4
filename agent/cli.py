# SPDX-License-Identifier: Apache-2.0
"""The command `ebpf-otlp-tracer`: arguments into a configuration; `run` then becomes the keeper.

`run` replaces this process by `python -m agent.keeper`, so that what click and YAML cost does not stay in
memory for the life of the agent. Everything but click is imported by the verb that needs it.

Exit status: 0 ok, 1 failure, 2 usage, 77 privileges missing (EX_NOPERM), 78 configuration (EX_CONFIG),
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from agent import __version__
from agent.config import OPTIONS, Config, Option
from agent.errors import AgentError, PrivilegeError

if TYPE_CHECKING:
    from agent.discovery import Selection
    from agent.enrichment.process import Process

NAME = "ebpf-otlp-tracer"
DEFAULT_VERB = "run"
USAGE, INTERRUPTED = 2, 130
WATCH_S = 1.0  # the pipeline's own figures of the keeper are as old
EXAMPLES = f"""\
Examples:
  sudo {NAME} --port 8080              trace who listens there
  sudo {NAME} --service 'shop-*' -v    by service name, saying more
  sudo {NAME} --pid 7 --exporter otlp  to OTEL_EXPORTER_OTLP_ENDPOINT
  {NAME} ps                            what could be traced
  {NAME} doctor                        what is missing here
"""
NOTHING_SELECTED = f"""\
nothing is selected: say what to trace
hint: {NAME} --port 8080         the processes that listen on a port
      {NAME} --exe nginx         by executable
      {NAME} --service 'shop-*'  by service name
      {NAME} --all               every process
      {NAME} ps                  shows what there is\
"""

Command = TypeVar("Command", bound=Callable[..., Any])


# What click is taught.


class Verbs(click.Group):
    """A group whose first word may be left out: options alone mean `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "-h", "--version", "-V")):
            args = [DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if self.get_command(ctx, args[0]) is None:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1, cutoff=0.5)
            verbs = ", ".join(self.list_commands(ctx))
            what = f"did you mean {near[0]}?" if near else f"there are {verbs}"
            raise click.UsageError(f"no command {args[0]!r}; {what}", ctx)
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of this file

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One screen: click's own would spread over two."""
        commands = "\n".join(
            f"  {name:<14}{verb.get_short_help_str(90)}" for name, verb in self.commands.items()
        )
        selectors = "\n".join(
            f"  {o.flag + ' ' + _metavar(o):<21}{o.help}" for o in OPTIONS if o.name.startswith("select.")
        )
        formatter.write(
            f"{NAME}: requests of running programs as OpenTelemetry spans.\n\n"
            f"Usage: {NAME} [COMMAND] [OPTIONS]\n\nCommands:\n{commands}\n\n"
            f"Selectors (repeatable; any of them matches):\n{selectors}\n\n"
            f"{EXAMPLES}\nMore: {NAME} run --help\n"
        )


def _metavar(option: Option) -> str:
    return {"ints": "N", "strs": "TEXT"}.get(option.type, "") if option.name != "exporters" else "NAME"


def configured(command: Command) -> Command:
    """Adds the options that make a configuration: one per `flag` of the table, and the general ones."""
    decorators: list[Callable[[Any], Any]] = [_flag(option) for option in OPTIONS if option.flag]
    decorators += [
        click.option(
            "--config", type=click.Path(path_type=Path), help="YAML file (else $EBPF_OTLP_TRACER_CONFIG)."
        ),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any option: core.hold_ms=10."
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say more (log.level debug)."),
        click.option("-q", "--quiet", is_flag=True, help="Say only warnings and errors (log.level warn)."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _flag(option: Option) -> Callable[[Any], Any]:
    if option.type is bool:
        return click.option(
            option.flag, option.name.replace(".", "_"), is_flag=True, default=None, help=option.help
        )
    if option.choices:
        choice = click.Choice(option.choices)
        return click.option(option.flag, option.name.replace(".", "_"), type=choice, help=option.help)
    kind: click.ParamType[Any] = click.STRING
    if option.type == "ints":
        kind = click.IntRange(
            None if option.minimum is None else int(option.minimum),
            None if option.maximum is None else int(option.maximum),
        )
    return click.option(
        option.flag,
        option.name.replace(".", "_"),
        type=kind,
        multiple=True,
        metavar=_metavar(option),
        help=option.help,
    )


def resolve(arguments: Mapping[str, Any]) -> Config:
    """The configuration of one invocation; warnings go to standard error."""
    from agent.config_load import load

    flags: dict[str, tuple[str, Any]] = {}
    for setting in arguments["settings"]:
        key, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: write KEY=VALUE, for example core.hold_ms=10")
        flags[key.strip()] = ("--set", value)
    if arguments["verbose"] and arguments["quiet"]:
        raise click.UsageError("-v and -q contradict each other; give one")
    if arguments["verbose"] or arguments["quiet"]:
        flags["log.level"] = ("-v", "debug") if arguments["verbose"] else ("-q", "warn")
    for option in OPTIONS:
        value = arguments.get(option.name.replace(".", "_")) if option.flag else None
        if value:
            flags[option.name] = (option.flag, value)
    config = load(flags, os.environ, arguments["config"])
    if config["log.level"] != "error":
        for warning in config.warnings:
            click.echo(f"warn: {warning}", err=True)
    return config


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-V",
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda c, _, v: _version(c, v),
)
def cli() -> None:
    """Requests of running programs as OpenTelemetry spans, without changing the programs."""


def _version(ctx: click.Context, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    import platform

    from agent.doctor import has_btf, kernel_release

    btf = "yes" if has_btf() else "no"
    click.echo(
        f"{NAME} {__version__} (Python {platform.python_version()}, Linux {kernel_release()}, BTF {btf})"
    )
    ctx.exit()


# run


@cli.command(epilog="Values of all other options: --set, the file, or EBPF_OTLP_TRACER_… (see print-config).")
@configured
def run(**arguments: Any) -> None:
    """Trace until Ctrl-C (this is what options alone do)."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        click.echo("OTEL_SDK_DISABLED=true: nothing is traced", err=True)
        return
    config = resolve(arguments)
    selection = _selection(config)
    if not selection:
        raise click.UsageError(NOTHING_SELECTED)
    _check_pid_namespace()
    check_pids(config["select.pid"])
    _check_privileges()
    become_keeper(config)


def _selection(config: Config) -> Selection:
    from agent.discovery import Selection

    return Selection(config, own=(os.getpid(),))


def check_pids(pids: Sequence[int], proc: Path = Path("/proc")) -> None:
    """Every pid that is asked for must be a process now: a number mistyped would wait for ever."""
    from agent.enrichment.process import read_stat, read_text

    wrong = []
    for pid in pids:
        leader = read_text(f"{proc}/{pid}/status").partition("\nTgid:")[2].split("\n", 1)[0].strip()
        if read_stat(pid, proc) is None:
            wrong.append(f"there is no process {pid}")
        elif leader and int(leader) != pid:
            wrong.append(f"{pid} is a thread of process {leader}: use --pid {leader}")
    if wrong:
        raise AgentError("; ".join(wrong), f"{NAME} ps shows the processes that can be traced")


def _check_exporters(config: Config) -> None:
    """What is wrong with OTEL_EXPORTER_OTLP_*. A run leaves this to the pipeline, which reads them anyway."""
    if "otlp" in config["exporters"]:
        from exporters.otlp_settings import read_settings

        read_settings(os.environ)


def _check_pid_namespace() -> None:
    from agent.doctor import PID_NAMESPACE_HINT, in_pid_namespace

    if in_pid_namespace():
        raise PrivilegeError(
            "this container numbers its processes anew: the kernel means others by these numbers",
            f"run it in the host's pid namespace: {PID_NAMESPACE_HINT}",
        )


def _check_privileges() -> None:
    from agent.permissions import advice, missing_capabilities

    missing = missing_capabilities()
    if missing:
        raise PrivilegeError(f"tracing needs root: {', '.join(missing)} missing", advice())


def become_keeper(config: Config) -> NoReturn:
    """Replaces this process by the keeper, which reads the configuration from a memory file."""
    descriptor = os.memfd_create("ebpf-otlp-tracer-config", 0)  # 0: it stays open over the exec
    with os.fdopen(os.dup(descriptor), "w") as file:
        file.write(config.to_json())
    os.lseek(descriptor, 0, os.SEEK_SET)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, keeper_command(descriptor))


def keeper_command(descriptor: int) -> list[str]:
    """-m puts the working directory first on the path, where root must not take modules from strangers: -P.

    Not in a checkout, which is imported from just there.
    """
    checkout = Path(__file__).resolve().parent.parent == Path.cwd()
    safe_path = [] if checkout else ["-P"]
    return [sys.executable, *safe_path, "-m", "agent.keeper", "--config-fd", str(descriptor)]


# ps


@cli.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="All processes, as JSON.")
def ps(as_json: bool, **arguments: Any) -> None:
    """Show what would be traced, and why the rest would not."""
    config = resolve(arguments)
    selection = _selection(config)
    rows, unseen = survey(selection)
    if as_json:
        click.echo(
            json.dumps({"processes": rows, "pending": selection.pending(), "unreadable": unseen}, indent=2)
        )
        return
    shown = [row for row in rows if row["traced"] or row["ports"]]
    table = [
        (
            str(row["pid"]),
            row["service"],
            row["exe"],
            ",".join(map(str, row["ports"])) or "-",
            "yes" if row["traced"] else "no",
            row["reason"],
        )
        for row in sorted(shown, key=lambda row: (not row["traced"], row["pid"]))
    ]
    print_table(("PID", "SERVICE", "EXE", "PORTS", "TRACED", "WHY"), table)
    if len(rows) > len(shown):
        click.echo(f"{len(rows) - len(shown)} more neither listen on TCP nor match; --json lists them")
    for sentence in selection.pending():
        click.echo(sentence)
    if unseen and os.geteuid():
        click.echo(f"{unseen} processes of other users could not be read in full: run it with sudo", err=True)


@cli.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="As JSON, with every service.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(as_json: bool, watch: bool, **arguments: Any) -> None:
    """Show what the running agent has seen, exported and lost so far."""
    from agent.status_view import fetch, screen

    address = resolve(arguments)["self.listen"]
    while True:
        shown = fetch(address)
        if watch and not as_json and sys.stdout.isatty():
            click.clear()
        click.echo(json.dumps(shown, indent=None if watch else 2) if as_json else screen(shown), nl=as_json)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(WATCH_S)


def survey(selection: Selection) -> tuple[list[dict[str, Any]], int]:
    """One row per process that is not a kernel thread, and how many could not be read in full."""
    from agent.discovery import listening_ports
    from agent.enrichment.process import service_name

    reasons = {process.tgid: reason for process, reason in selection.scan()}
    rows, unseen = [], 0
    for process in selection.snapshot():
        if process.kernel_thread:
            continue
        unseen += not _readable(process)
        rows.append(
            {
                "pid": process.tgid,
                "service": service_name(process, selection.proc),
                "exe": process.exe or process.exe_name,
                "ports": listening_ports(process, selection.proc),
                "container": process.container_id,
                "traced": process.tgid in reasons,
                "reason": reasons.get(process.tgid) or selection.why_not(process),
            }
        )
    return rows, unseen


def _readable(process: Process) -> bool:
    return bool(process.exe and process.netns)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest value, up to 48, the last one free. Control characters become ?."""
    safe = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [min(48, max(len(row[i]) for row in [header, *safe])) for i in range(len(header))]
    for row in [header, *safe]:
        cells = [_cut(cell, width).ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def _cut(text: str, width: int) -> str:
    """The end of a path says more than its start."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]


# doctor, validate, print-config


@cli.command()
@configured
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def doctor(as_json: bool, **arguments: Any) -> None:
    """Check kernel, privileges, BCC and the OTLP endpoint."""
    from agent.doctor import diagnose, failing

    config = resolve(arguments)
    rows = diagnose(config, os.environ)
    if as_json:
        checks = [{"name": r.name, "status": r.status, "found": r.found, "hint": r.hint} for r in rows]
        click.echo(json.dumps({"version": __version__, "ok": not failing(rows), "checks": checks}, indent=2))
    else:
        print_table(("CHECK", "STATUS", "FOUND"), [(r.name, r.status, r.found) for r in rows])
        for row in rows:
            if row.hint:
                click.echo(f"\n{row.name}: {row.hint}", nl=False)
        click.echo("\n" if any(row.hint for row in rows) else "")
        click.echo(
            "something that is needed is missing" if failing(rows) else "everything that is needed is here"
        )
    if failing(rows):
        raise click.exceptions.Exit(1)


@cli.command()
@configured
def validate(**arguments: Any) -> None:
    """Check the configuration and say what a run would do."""
    config = resolve(arguments)
    _check_exporters(config)
    for line in plan(config):
        click.echo(line)


def plan(config: Config) -> list[str]:
    """What a run would do, in a few sentences."""
    selectors = []
    for option in OPTIONS:
        if option.name.startswith("select."):
            value = config[option.name]
            selectors += [option.flag] if value is True else [f"{option.flag} {item}" for item in value or ()]
    sampler = config["traces.sampler"]
    ratio = f" ({config['traces.sampler_ratio']:g})" if "ratio" in sampler else ""
    changed = [option.name for option in OPTIONS if config.source(option.name) != "default"]
    return [
        "the configuration is valid",
        f"traces:    {', '.join(selectors) or 'nothing (give a selector such as --port 8080)'}",
        f"exports:   {', '.join(config['exporters'])}",
        f"keeps:     {sampler}{ratio}",
        f"listens:   {config['self.listen'] or 'nowhere'} (/metrics, /status, /healthz)",
        f"set:       {', '.join(changed) or 'nothing; all defaults'}",
    ]


@cli.command("print-config")
@configured
@click.option("--format", "form", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@click.option("--schema", is_flag=True, help="The JSON schema of the file instead, for editors.")
def print_config(form: str, schema: bool, **arguments: Any) -> None:
    """Print every option with its value and where it came from."""
    from agent import config_print

    if schema:
        from agent.config_load import schema as make_schema

        click.echo(json.dumps(make_schema(), indent=2))
        return
    config = resolve(arguments)
    click.echo(
        (config_print.as_json if form == "json" else config_print.as_yaml)(config, os.environ), nl=False
    )


# The way in and out.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status. No failure that a user can cause ends in a traceback."""
    try:
        status = cli.main(
            args=None if arguments is None else list(arguments), prog_name=NAME, standalone_mode=False
        )
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except AgentError as error:
        _complain(error.message, error.hint)
        return error.exit_code
    except click.UsageError as error:
        verb = f" {error.ctx.command.name}" if error.ctx and error.ctx.parent else ""
        hint = "" if "hint: " in error.message else f"{NAME}{verb} --help"
        _complain(error.format_message(), hint)
        return USAGE
    except click.ClickException as error:
        _complain(error.format_message(), "")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # `ebpf-otlp-tracer ps | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        _complain(f"{error.filename or 'the operating system'}: {error.strerror or error}", "")
        return 1


def _complain(message: str, hint: str) -> None:
    click.echo(f"error: {message}", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)
