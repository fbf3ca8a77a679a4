# SPDX-License-Identifier: Apache-2.0
"""Records out of /proc, service names and resource attributes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent import __version__
from agent.enrichment.process import (
    Host,
    Process,
    instance_id,
    own_attributes,
    read_host,
    read_process,
    read_stat,
    read_uid,
    resource_attributes,
    rfc3339,
    service_name,
)
from agent.enrichment.service import service_from_command
from agent.resource_text import parse_attributes
from tests.agent.fake_proc import add_process

ID = "7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605"
HOST = Host(id="4c1d7f9a3b", boot_id="b00t", name="node1", arch="amd64")


class FakeDirectory:
    def __init__(self, name: str = "", files: dict[str, bytes] | None = None) -> None:
        self._name, self._files = name, files or {}

    def name(self) -> str:
        return self._name

    def read(self, name: str, size: int) -> bytes:
        return self._files.get(name, b"")[:size]


# Service names: the command as typed, the executable behind it, and the name.
NAMES = [
    ("python3.11", "python3 -m http.server 8000", "http.server"),
    ("python3.11", "python3 -Im shop.server", "shop.server"),
    ("python3", "python3 -mshop", "shop"),
    ("python3", "python3 -m shop.__main__", "shop"),
    ("python3.11", "python -u -W ignore -X dev /srv/shop/orders.py --port 80", "orders"),
    ("python3", "python3 -Wignore orders.py", "orders"),
    ("python3", "python3 /srv/shop/manage.py runserver", "shop"),
    ("python3", "python3 manage.py runserver", "workdir"),
    ("python3", "python3 /srv/shop/__main__.py", "shop"),
    ("python3", "python3 -c print()", ""),
    ("python3", "python3 -", ""),
    ("python3", "python3", ""),
    (
        "python3.11",
        "/usr/bin/python3 /usr/local/bin/gunicorn -w 4 -b 0.0.0.0:8000 shop.wsgi:application",
        "shop",
    ),
    ("python3.11", "python3 /usr/bin/gunicorn shop:create_app()", "shop"),
    ("python3.11", "python3 /usr/bin/gunicorn --workers=4 orders.wsgi", "orders"),
    ("python3.11", "python3 /usr/bin/gunicorn -c gunicorn.conf.py", "gunicorn"),
    ("python3.11", "gunicorn: master [orders:app]", "orders"),
    ("python3.11", "gunicorn: worker [shop.wsgi]", "shop"),
    ("python3.11", "python3 -m uvicorn shop.main:app --host localhost --port 80", "shop"),
    ("python3.11", "python3 /usr/bin/uvicorn main:app", "main"),
    ("python3.11", "python3 /usr/bin/celery -A proj worker -l info", "proj"),
    ("python3.11", "python3 /usr/bin/celery --app=proj.celery:app worker", "proj"),
    ("python3.11", "python3 /usr/bin/flask --app shop run", "shop"),
    ("python3.11", "python3 /usr/bin/flask run", "workdir"),
    ("pypy3", "pypy3 orders.py", "orders"),
    ("java", "java -Xmx1g -jar /opt/shop.jar --port 80", "shop"),
    ("java", "java -cp /opt/lib/*:/opt/a.jar -Da=b com.example.orders.Main arg", "Main"),
    (
        "java",
        "java --add-opens java.base/java.lang=ALL-UNNAMED -classpath x com.example.Orders$App",
        "Orders.App",
    ),
    ("java", "java -p mods -m com.shop/com.shop.Server", "Server"),
    ("java", "java @args Shop.java", "Shop"),
    ("java", "java -Dspring.application.name=checkout -jar a.jar", "checkout"),
    ("java", "java -Dspring.application.name=s -Dotel.service.name=mine -jar a.jar", "mine"),
    ("java", "java -version", ""),
    ("node", "node --require ./tracing.js /app/server.js", "server"),
    ("node", "node /app/orders/index.js", "orders"),
    ("node", "node -e 1", ""),
    ("ruby3.1", "ruby -I lib orders.rb", "orders"),
    ("ruby", "ruby bin/rails server", "workdir"),
    ("ruby", "puma 6.4.0 (tcp://0.0.0.0:3000) [checkout]", "checkout"),
    ("perl", "perl -w -I lib /srv/orders.pl", "orders"),
    ("php8.2", "php -d a=b /srv/worker.php", "worker"),
    ("php", "php -S 0.0.0.0:80", "workdir"),
    ("dotnet", "dotnet /app/Shop.Api.dll --urls x", "Shop.Api"),
    ("bash", "bash /srv/run-shop.sh", "run-shop"),
    ("bash", "bash -c sleep", ""),
    ("bash", "-bash", ""),
    ("nginx", "nginx: master process /usr/sbin/nginx -g daemon off;", "nginx"),
    ("shop-api", "/srv/shop-api -listen :80", "shop-api"),
]


@pytest.mark.parametrize(("exe_name", "command", "name"), NAMES, ids=[command for _, command, _ in NAMES])
def test_service_name_of_a_command(exe_name: str, command: str, name: str) -> None:
    assert service_from_command(exe_name, command.split(" "), lambda: FakeDirectory("workdir"))[0] == name


def test_a_jar_gives_its_version_away() -> None:
    args = ["java", "-jar", "/opt/shop-api-1.4.2-SNAPSHOT.jar"]
    assert service_from_command("java", args, FakeDirectory) == ("shop-api", "1.4.2-SNAPSHOT")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"name": "@acme/shop", "version": "2.0.1"}', ("@acme/shop", "2.0.1")),
        (b'{"name": "shop"}', ("shop", "")),
        (b'{"name": 7}', ("server", "")),
        (b'["name"]', ("server", "")),
        (b"{", ("server", "")),
        (b"\xff\xfe", ("server", "")),
        (b"[" * 100_000, ("server", "")),
        (b"", ("server", "")),
    ],
)
def test_node_takes_the_name_of_the_package(content: bytes, expected: tuple[str, str]) -> None:
    directory = FakeDirectory("app", {"package.json": content})
    assert service_from_command("node", ["node", "server.js"], lambda: directory) == expected


def test_names_hold_no_control_characters_and_have_an_end() -> None:
    args = ["python3", "/srv/\x1b[31mred\n" + "x" * 5000 + ".py"]
    name, _ = service_from_command("python3", args, FakeDirectory)
    assert name.isprintable() and len(name) == 200


@pytest.mark.parametrize("last", range(6))
def test_every_prefix_of_a_command_line_is_survived(last: int) -> None:
    for exe_name, command, _ in NAMES:
        service_from_command(exe_name, command.split(" ")[:last], FakeDirectory)


DOCKER_MOUNT = f"601 590 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - e e rw\n"


def test_mountinfo_is_asked_where_a_cgroup_namespace_hides_the_path(tmp_path: Path) -> None:
    add_process(tmp_path, 5, ["a"], exe="/a", cgroup="0::/\n", mountinfo=DOCKER_MOUNT, mount_namespace=9)
    add_process(tmp_path, 6, ["a"], exe="/a", cgroup="0::/\n", mountinfo=DOCKER_MOUNT)  # our own mounts
    assert read(tmp_path, 5).container_id == ID
    assert read(tmp_path, 6).container_id == ""


def test_mountinfo_is_asked_where_a_container_has_no_control_group(tmp_path: Path) -> None:
    """Not of the host's processes, when we are in a container: they are many, and their mountinfo is long."""
    session = "1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n"
    for pid, namespace in ((1, 7), (5, 9), (6, 7)):
        add_process(
            tmp_path, pid, ["a"], exe="/a", cgroup=session, mountinfo=DOCKER_MOUNT, mount_namespace=namespace
        )
    assert [read(tmp_path, pid).container_id for pid in (1, 5, 6)] == ["", ID, ""]
    (unknown := tmp_path / "unknown").mkdir()  # which the host's mount namespace is, is not known
    add_process(unknown, 5, ["a"], exe="/a", cgroup=session, mountinfo=DOCKER_MOUNT, mount_namespace=9)
    assert read(unknown, 5).container_id == ""


# Records.


def read(proc: Path, pid: int) -> Process:
    process = read_process(pid, proc)
    assert process is not None
    return process


def test_record_of_a_process(tmp_path: Path) -> None:
    add_process(
        tmp_path,
        42,
        ["python3", "shop.py"],
        exe="/usr/bin/python3.11 (deleted)",
        comm="odd) (name S 9",
        ppid=7,
        cgroup=f"0::/system.slice/docker-{ID}.scope\n",
        environ={"SECRET": "hunter2", "OTEL_SERVICE_NAME": "shop", "X_OTEL_SERVICE_NAME": "no"},
        netns=4026532000,
    )
    process = read(tmp_path, 42)
    assert (process.tgid, process.ppid, process.start_ticks) == (42, 7, 100)
    assert process.comm == "odd) (name S 9"
    assert (process.exe, process.exe_name) == ("/usr/bin/python3.11", "python3.11")
    assert process.args == ("python3", "shop.py")
    assert (process.container_id, process.netns) == (ID, 4026532000)
    assert (process.otel_service_name, process.otel_resource_attributes) == ("shop", "")
    assert "hunter2" not in repr(process)
    assert read_uid(42, tmp_path) == 1000


def test_a_zombie_or_nobody_has_no_record(tmp_path: Path) -> None:
    add_process(tmp_path, 5, ["a"], exe="/a", state="Z")
    assert read_process(5, tmp_path) is None
    assert read_process(6, tmp_path) is None
    assert read_uid(6, tmp_path) == -1


@pytest.mark.parametrize("lost", ["exe", "cmdline", "cgroup", "environ", "status", "ns/net", "mountinfo"])
def test_whatever_may_not_be_read_is_empty(tmp_path: Path, lost: str) -> None:
    base = add_process(tmp_path, 5, ["/srv/shop", "x"], exe="/srv/shop", cgroup="0::/\n")
    (base / lost).unlink()
    assert service_name(read(tmp_path, 5), tmp_path) == "shop"


@pytest.mark.parametrize("text", ["", "5", "5 (x", "5 (x) S 1 2", "\0\0\0"])
def test_a_damaged_stat_is_no_process(tmp_path: Path, text: str) -> None:
    base = add_process(tmp_path, 5)
    (base / "stat").write_text(text)
    assert read_stat(5, tmp_path) is None


def test_a_process_that_ends_while_it_is_read_has_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agent.enrichment import process as module

    base = add_process(tmp_path, 5, ["a"], exe="/a")
    original = module.read_link

    def ends(path: str) -> str:
        if path.endswith("/exe"):
            (base / "stat").unlink()
            (base / "exe").unlink()
            (base / "cmdline").unlink()
        return original(path)

    monkeypatch.setattr(module, "read_link", ends)
    assert read_process(5, tmp_path) is None


def test_an_environment_of_a_megabyte_is_searched_to_its_end(tmp_path: Path) -> None:
    add_process(tmp_path, 5, ["a"], exe="/a", environ={"BIG": "x" * 1_000_000, "OTEL_SERVICE_NAME": "shop"})
    assert read(tmp_path, 5).otel_service_name == "shop"


def test_this_process_is_read_from_the_real_proc() -> None:
    process = read_process(os.getpid())
    assert process is not None
    assert process.exe == str(Path(sys.executable).resolve())
    assert process.ppid == os.getppid()
    assert read_uid(os.getpid()) == os.getuid()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert 0 < process.start_ticks / os.sysconf("SC_CLK_TCK") <= uptime


def test_the_package_of_a_real_working_directory_is_read_but_no_link_and_no_pipe(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps({"name": "outside"}))
    for name, make in (
        ("plain", lambda path: path.write_text(json.dumps({"name": "shop"}))),
        ("link", lambda path: path.symlink_to(outside)),
        ("pipe", os.mkfifo),
    ):
        directory = tmp_path / name
        directory.mkdir()
        make(directory / "package.json")
        base = add_process(tmp_path / f"proc-{name}", 5, ["node", "server.js"], exe="/usr/bin/node")
        (base / "cwd").symlink_to(directory)
        expected = "shop" if name == "plain" else "server"
        assert service_name(read(tmp_path / f"proc-{name}", 5), tmp_path / f"proc-{name}") == expected


# OTEL_RESOURCE_ATTRIBUTES, https://opentelemetry.io/docs/specs/otel/resource/sdk/


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        (" a = b , c=d,", {"a": "b", "c": "d"}),
        ("a=x%2Cy%3Dz%25", {"a": "x,y=z%"}),
        ("a=%C3%A9", {"a": "é"}),
        ("a=", {"a": ""}),
        ("a=b=c", {"a": "b=c"}),
        ("a=1,a=2", {"a": "2"}),
    ],
)
def test_resource_attributes_text(text: str, expected: dict[str, str]) -> None:
    assert parse_attributes(text) == expected


@pytest.mark.parametrize("text", ["a", "=b", "good=1,bad", "a=%", "a=%2", "a=%GG", "a=%FF"])
def test_any_error_discards_the_whole_variable_and_is_reported(text: str) -> None:
    process = make(["a"], otel_resource_attributes=text)
    attributes, problem = own_attributes(process)
    assert attributes == {}
    assert "pid 42: OTEL_RESOURCE_ATTRIBUTES is ignored" in problem


def test_a_reported_problem_does_not_show_values() -> None:
    assert "hunter" not in own_attributes(make(["a"], otel_resource_attributes="password=hunter2%"))[1]


# Resources.


def make(args: Sequence[str], exe: str = "/usr/bin/python3.11", **changes: object) -> Process:
    process = Process(
        tgid=42,
        ppid=7,
        start_ticks=100,
        start_unix_ns=1_700_000_000_450_000_000,
        comm="x",
        exe=exe,
        args=tuple(args),
        cgroup="/",
        container_id="",
        netns=1,
        otel_service_name="",
        otel_resource_attributes="",
    )
    return replace(process, **changes)  # type: ignore[arg-type]


def test_the_resource_of_a_process(tmp_path: Path) -> None:
    add_process(tmp_path, 42, uid=0)
    assert resource_attributes(make(["python3", "shop.py"]), HOST, proc=tmp_path) == {
        "service.name": "shop",
        "service.instance.id": str(
            uuid.uuid5(uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320"), "4c1d7f9a3b/b00t/42/100")
        ),
        "process.pid": 42,
        "process.parent_pid": 7,
        "process.creation.time": "2023-11-14T22:13:20.450Z",
        "process.executable.name": "python3.11",
        "process.executable.path": "/usr/bin/python3.11",
        "process.command": "python3",
        "process.owner": "root",
        "process.runtime.name": "cpython",
        "host.id": "4c1d7f9a3b",
        "host.name": "node1",
        "host.arch": "amd64",
        "os.type": "linux",
        "telemetry.sdk.name": "ebpf-otlp-tracer",
        "telemetry.sdk.version": __version__,
        "telemetry.sdk.language": "python",
    }


def test_the_targets_own_attributes_win_over_ours_and_over_detection(tmp_path: Path) -> None:
    process = make(
        ["python3", "shop.py"],
        otel_resource_attributes="service.name=theirs,service.version=9,host.name=theirs,telemetry.sdk.name=otel",
    )
    added = {"host.name": "ours", "deployment.environment.name": "prod"}
    attributes = resource_attributes(process, HOST, added, proc=tmp_path)
    assert attributes["service.name"] == "theirs"
    assert attributes["service.version"] == "9"
    assert attributes["host.name"] == "theirs"
    assert attributes["deployment.environment.name"] == "prod"
    assert attributes["telemetry.sdk.name"] == "ebpf-otlp-tracer"
    named = replace(process, otel_service_name="mine")
    assert resource_attributes(named, HOST, proc=tmp_path)["service.name"] == "mine"
    assert service_name(named) == "mine"


def test_arguments_are_sent_only_when_asked_for(tmp_path: Path) -> None:
    process = make(["python3", "shop.py", "--password=hunter2"])
    assert "hunter2" not in repr(resource_attributes(process, HOST, proc=tmp_path))
    attributes = resource_attributes(process, HOST, command_args=True, proc=tmp_path)
    assert attributes["process.command_args"] == ["python3", "shop.py", "--password=hunter2"]


def test_a_command_that_says_nothing_takes_the_name_of_its_systemd_service(tmp_path: Path) -> None:
    process = make(["python3", "-c", "1"], cgroup="/system.slice/shop.service")
    assert service_name(process, tmp_path) == "shop"
    assert service_name(replace(process, cgroup="/"), tmp_path) == "unknown_service:python3.11"
    attributes = resource_attributes(replace(process, cgroup="/"), HOST, proc=tmp_path)
    assert attributes["service.name"] == "unknown_service:python3.11"


def test_the_owner_in_a_container_is_not_looked_up_among_our_accounts(tmp_path: Path) -> None:
    add_process(tmp_path, 42, uid=1)
    process = make(["a"], exe="/a", container_id=ID)
    attributes = resource_attributes(process, HOST, proc=tmp_path)
    assert "process.owner" not in attributes
    assert attributes["container.id"] == ID
    assert attributes["telemetry.sdk.language"] == "generic"


def test_an_instance_is_another_after_another_start() -> None:
    process = make(["a"])
    assert instance_id(process, HOST) == instance_id(make(["b"]), HOST)
    assert instance_id(process, HOST) != instance_id(replace(process, start_ticks=101), HOST)
    assert instance_id(process, HOST) != instance_id(process, replace(HOST, boot_id="other"))
    assert uuid.UUID(instance_id(process, HOST)).version == 5


def test_times_are_rfc3339() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00.000Z"
    assert rfc3339(951_782_400_010_000_000) == "2000-02-29T00:00:00.010Z"


def test_host_of_a_file_system(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("f2c668b579274409aa58c97b17d9bcb4\n")
    assert read_host(tmp_path).id == "f2c668b579274409aa58c97b17d9bcb4"
    (tmp_path / "etc/machine-id").write_text("uninitialized\n")
    assert read_host(tmp_path).id == ""


def test_the_keepers_part_stays_small() -> None:
    """Neither numpy, click, yaml, psutil nor OpenSSL may come along."""
    code = (
        "import os, sys\n"
        "from agent import discovery; from agent.enrichment import process as p\n"
        "p.resource_attributes(p.read_process(os.getpid()), p.read_host())\n"
        "print(sorted({'numpy', 'click', 'yaml', 'psutil', '_hashlib', 'agent.spans'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
