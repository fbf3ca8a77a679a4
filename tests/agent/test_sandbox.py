# SPDX-License-Identifier: Apache-2.0
"""The sandbox keeps each of its promises: a child enters it and tries; and what the pipeline needs works."""

import errno
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

PRELUDE = """
import ctypes, encodings.idna, json, mmap, os, resource, socket, ssl, sys, threading
import urllib3
from agent import sandbox
from agent.core._core import lib

libc = ctypes.CDLL(None, use_errno=True)
results = {}

def call(name, *arguments):
    ctypes.set_errno(0)
    value = getattr(libc, name)(*arguments)
    return ctypes.get_errno() if value == -1 else 0

def attempt(name, function, *arguments, **keywords):
    try:
        results[name] = function(*arguments, **keywords)
        if not isinstance(results[name], int | str | list):
            results[name] = 0
    except OSError as error:
        results[name] = error.errno
"""


def run_sandboxed(arguments: list[str], before: str, after: str) -> dict[str, Any]:
    """Runs `before` as root and `after` in the sandbox; returns what they put into `results`."""
    script = (
        PRELUDE
        + before
        + "\nsandbox.drop(65534, os.getppid(), lib)\n"
        + after
        + "\nprint(json.dumps(results))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """errno of each attempt, 0 where it succeeded."""
    target = tmp_path_factory.mktemp("sandbox") / "target"
    target.write_text("x")
    target.chmod(0o666)
    target.parent.chmod(0o777)
    return run_sandboxed(
        [str(target)],
        before="inherited = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)",
        after="""
target = sys.argv[1]
attempt("write a file in /tmp", os.open, f"/tmp/sandbox-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
attempt("write a file that anyone may write", os.open, target, os.O_WRONLY)
attempt("append to it", os.open, target, os.O_RDONLY | os.O_APPEND)
attempt("truncate it", os.open, target, os.O_RDONLY | os.O_TRUNC)
attempt("truncate it by path", os.truncate, target, 0)
attempt("unlink", os.unlink, target)
attempt("rename", os.rename, target, target + "2")
attempt("chmod", os.chmod, target, 0o600)
attempt("mkdir", os.mkdir, target + ".d")
attempt("symlink", os.symlink, target, target + ".l")
attempt("execve", os.execv, "/bin/true", ["/bin/true"])
attempt("fork", os.fork)
attempt("posix_spawn", os.posix_spawn, "/bin/true", ["/bin/true"], {})
attempt("setuid 0", os.setuid, 0)
attempt("read /etc/shadow", os.open, "/etc/shadow", os.O_RDONLY)
attempt("kill the parent", os.kill, os.getppid(), 0)
results["lower a limit"] = call("setrlimit", resource.RLIMIT_NOFILE, (ctypes.c_ulong * 2)(64, 64))
attempt("netlink", socket.socket, socket.AF_NETLINK, socket.SOCK_RAW)
attempt("raw packets", socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
attempt("writable code", mmap.mmap, -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
listener = socket.socket()
attempt("bind", listener.bind, ("127.0.0.1", 0))
attempt("listen", listener.listen)
results["bpf"] = call("syscall", 321 if os.uname().machine == "x86_64" else 280, 0, 0, 0)
results["ptrace"] = call("ptrace", 0, 0, 0, 0)
results["mount"] = call("mount", b"none", b"/mnt", b"tmpfs", 0, 0)
results["unshare"] = call("unshare", 0x10000000)
results["chroot"] = call("chroot", b"/")
results["memfd_create"] = call("memfd_create", b"x", 0)
results["dumpable again"] = call("prctl", 4, 1, 0, 0, 0)
results["mprotect to code"] = call("mprotect", ctypes.c_void_p(0), 0, 4)
attempt("write to an inherited file", os.write, inherited, b"y")
attempt("read a file", os.open, "/etc/passwd", os.O_RDONLY)
status = dict(line.split(":\\t", 1) for line in open("/proc/thread-self/status").read().splitlines())
results.update({key: status[key] for key in status if key.startswith("Cap") or key in
    ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp")})
results["owner of its maps"] = os.stat("/proc/self/maps").st_uid
results["core limit"] = list(resource.getrlimit(resource.RLIMIT_CORE))
""",
    )


@pytest.mark.parametrize(
    "deed",
    [
        "write a file in /tmp",
        "write a file that anyone may write",
        "append to it",
        "truncate it",
        "truncate it by path",
        "unlink",
        "rename",
        "chmod",
        "mkdir",
        "symlink",
        "execve",
        "fork",
        "posix_spawn",
        "setuid 0",
        "kill the parent",
        "lower a limit",
        "netlink",
        "raw packets",
        "writable code",
        "bind",
        "listen",
        "bpf",
        "ptrace",
        "mount",
        "unshare",
        "chroot",
        "memfd_create",
        "dumpable again",
        "mprotect to code",
    ],
)
def test_refused_with_eperm(attempts: dict[str, Any], deed: str) -> None:
    assert attempts[deed] == errno.EPERM


def test_shadow_is_refused_by_its_mode(attempts: dict[str, Any]) -> None:
    assert attempts["read /etc/shadow"] == errno.EACCES


def test_open_files_stay_writable_and_others_readable(attempts: dict[str, Any]) -> None:
    assert attempts["write to an inherited file"] == 1
    assert int(attempts["read a file"]) > 2


def test_identity_is_unprivileged(attempts: dict[str, Any]) -> None:
    assert attempts["Uid"] == "\t".join(["65534"] * 4)
    assert attempts["Gid"] == "\t".join(["65534"] * 4)
    assert str(attempts["Groups"]).strip() == ""
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(str(attempts[capabilities]), 16) == 0, capabilities
    assert attempts["NoNewPrivs"] == "1"
    assert attempts["Seccomp"] == "2"
    assert attempts["owner of its maps"] == 0  # root's, as it is not dumpable
    assert attempts["core limit"] == [0, 0]


def test_parent_gone_before_the_drop_ends_it() -> None:
    script = PRELUDE + "sandbox.drop(65534, 1 << 22, lib)\nprint('went on')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_dies_with_its_parent() -> None:
    """The keeper is killed with SIGKILL: the child's pipe closes though it would have waited for ever."""
    child = (
        PRELUDE + "sandbox.drop(65534, os.getppid(), lib)\nprint('in', flush=True)\nthreading.Event().wait()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"in\n"
    parent.kill()
    assert select.select([parent.stdout], [], [], 20)[0], "it lives on"
    assert parent.stdout.read() == b""  # end of file: the last writer is gone
    parent.wait()
    parent.stdout.close()


def test_threads_names_connections_and_tls_work(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = socket.create_server(("localhost", 0))
    server.settimeout(30)

    def answer() -> None:
        plain, _ = server.accept()
        with context.wrap_socket(plain, server_side=True) as connection:
            while not connection.recv(4096).endswith(b"\r\n\r\n"):
                pass
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")

    threading.Thread(target=answer, daemon=True).start()
    results = run_sandboxed(
        [str(certificate), str(server.getsockname()[1])],
        before="""
certificates, port = open(sys.argv[1]).read(), int(sys.argv[2])
smaps = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
""",
        after="""
done = threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(4)]
for thread in threads: thread.start()
done.set()
for thread in threads: thread.join()
results["threads"] = len(threads)
attempt("names", lambda: len(socket.getaddrinfo("localhost", port)))
attempt("unknown names", lambda: str(socket.getaddrinfo("does-not-exist.invalid", 1)))
context = ssl.create_default_context(cadata=certificates)
pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=10)
results["body"] = pool.request("GET", f"https://localhost:{port}/").data.decode()
results["smaps"] = os.pread(smaps, 4096, 0).decode()
""",
    )
    server.close()
    assert results["threads"] == 4
    assert results["names"] >= 1
    assert results["unknown names"] in (socket.EAI_NONAME, socket.EAI_AGAIN)
    assert results["body"] == "hello"
    assert "Private_Dirty" in results["smaps"]
