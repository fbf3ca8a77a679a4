# SPDX-License-Identifier: Apache-2.0
"""Compiles and loads the kernel programs with BCC, hands their descriptors over, and exits.

The only file that imports bcc, which brings 70 MiB of LLVM: so it is a process of its own, and runs under
whichever Python has BCC. It uses the standard library, agent/btf.py, agent/errors.py and
agent/permissions.py, nothing else.

    /usr/bin/python3 agent/loader.py --socket-fd N

reads one JSON object (the configuration, see `constants`) from the socket N and answers with one:
`{"programs": ..., "maps": ..., "refused": ..., "kernel": ..., "seconds": ...}`, or `{"error", "hint"}`.
The descriptors follow in order, programs first, in messages of at most FDS_PER_MESSAGE.
"""

from __future__ import annotations

import array
import ctypes
import errno
import json
import os
import platform
import re
import shutil
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__:
    from agent import btf
    from agent.errors import AgentError, PrivilegeError
    from agent.permissions import why_refused
else:  # run as a script
    sys.path.insert(0, str(Path(__file__).parent))
    import btf  # type: ignore[import-not-found, no-redef]
    from errors import AgentError, PrivilegeError  # type: ignore[import-not-found, no-redef]
    from permissions import why_refused  # type: ignore[import-not-found, no-redef]

BPF_FOLDER = Path(__file__).parent.parent / "bpf"
FDS_PER_MESSAGE = 200  # the kernel takes 253 (SCM_MAX_FD)
LOG_BYTES = 16 << 20  # of the verifier; touched only when it refuses
BPF_MAP_CREATE, BPF_MAP_TYPE_PROG_ARRAY, BPF_MAP_TYPE_RINGBUF = 0, 3, 27
TAILS = ("chunk", "send", "messages", "at_end", "pipelined", "answered")  # enum tail of bpf/maps.bpf.h
SYS_BPF = {"x86_64": 321, "aarch64": 280}
PROGRAM_TYPES = {"kprobe": 2, "kretprobe": 2, "tracepoint": 5, "raw_tracepoint": 17}

# Which system calls, or functions of the kernel, a program serves. One named raw_X is attached to the raw
# tracepoint X.
SENDS = ("write", "writev", "pwritev2", "sendto", "sendmsg", "sendmmsg", "sendfile64", "splice")
TARGETS = {
    "exit_receive": ("read", "readv", "preadv2", "recvfrom", "recvmsg", "recvmmsg", "splice", "sendfile64"),
    "enter_send": SENDS,
    "exit_send": SENDS,
    "enter_close": ("close",),
    "enter_shutdown": ("shutdown",),
    "exit_io_uring_setup": ("io_uring_setup",),
    "kprobe_send": ("tcp_sendmsg", "udp_sendmsg", "udpv6_sendmsg"),
    "kprobe_send_socket": ("unix_stream_sendmsg",),
    "kprobe_send_pages": ("tcp_sendpage",),
    "kprobe_send_pages_socket": ("unix_stream_sendpage",),
    "kprobe_receive": ("tcp_recvmsg", "udp_recvmsg", "udpv6_recvmsg"),
    "kprobe_receive_socket": ("unix_stream_recvmsg",),
    "kprobe_splice": ("tcp_splice_read", "unix_stream_splice_read"),
    "kprobe_unix_release": ("unix_release",),
}
TARGETS["kretprobe_moved"] = tuple(
    target
    for name in TARGETS
    if name.startswith(("kprobe_send", "kprobe_rec", "kprobe_sp"))
    for target in TARGETS[name]
)
# Functions that came or went with some version of the kernel: without them nothing is missing.
OPTIONAL_TARGETS = ("tcp_sendpage", "unix_stream_sendpage", "udpv6_sendmsg", "udpv6_recvmsg")


def join_includes(path: Path, seen: set[Path] | None = None) -> str:
    """Text of `path` with its local includes put in place, each once.

    BCC rewrites map calls only in the main file, so it is given one text. The #line marks keep compiler
    messages pointing at the real file and line.
    """
    seen = set() if seen is None else seen
    seen.add(path)
    out = [f'#line 1 "{path}"']
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        include = re.match(r'\s*#include "([^"]+)"', line)
        if include is None:
            out.append("" if line.strip() == "#pragma once" else line)
            continue
        target = path.parent / include[1]
        if target not in seen:
            out.append(join_includes(target, seen))
        out.append(f'#line {number + 1} "{path}"')
    return "\n".join(out) + "\n"


def layout(text: str) -> dict[str, int]:
    """What the text asks of this kernel's BTF: OFFSET_structure__field, HAS_structure__field, ENUM_type__X.

    A field that is also asked for by HAS_ may be missing.
    """
    wanted, optional = fields_read(text), fields_optional(text)
    enumerators = sorted(set(re.findall(r"\bENUM\((\w+), (\w+)\)", text)) - {("type", "name")})
    offsets, numbers = btf.read(wanted, optional, enumerators)
    found = {f"OFFSET_{structure}__{field}": offset for (structure, field), offset in offsets.items()}
    found |= {
        f"HAS_{structure}__{field}": int((structure, field) in offsets) for structure, field in optional
    }
    return found | {f"ENUM_{kind}__{name}": number for (kind, name), number in numbers.items()}


def fields_read(text: str) -> list[tuple[str, str]]:
    """Every (structure, field) of the kernel that the programs read, for this architecture."""
    if platform.machine() != "aarch64":
        text = re.sub(r"#if defined\(__TARGET_ARCH_arm64\).*?#else", "", text, flags=re.DOTALL)
    named = re.findall(r"\bOFFSET\((\w+), (\w+)\)", text)
    named += re.findall(r"\b(?:READ|LOAD)\(\w+, [^;]*?, (\w+), (\w+)\)", text)
    return sorted({pair for pair in named if pair != ("structure", "field")})


def fields_optional(text: str) -> set[tuple[str, str]]:
    """Those that some kernels lack: the text asks HAS_structure__field."""
    return set(re.findall(r"\bHAS_(\w+?)__(\w+)", text)) - {("structure", "field")}


def programs(text: str, syscalls: bool = True, kprobes: bool = True) -> list[dict[str, Any]]:
    """Name, kind and targets of each program in the text, in its order; of the hooks that are wanted."""
    found: list[dict[str, Any]] = []
    for name in re.findall(r"^int (\w+)\(", text, flags=re.MULTILINE):
        kind, _, rest = name.partition("_")
        if kind == "tail":
            for of in ["tracepoint"] * syscalls + ["kprobe"] * (kprobes and rest != "messages"):
                found.append({"name": name, "kind": of, "targets": [], "tail": TAILS.index(rest)})
        elif kind == "raw":
            found.append({"name": name, "kind": "raw_tracepoint", "targets": [rest]})
        elif kind in ("kprobe", "kretprobe"):
            if kprobes:
                found.append(
                    {"name": name, "kind": kind, "targets": list(TARGETS[name]), "optional": OPTIONAL_TARGETS}
                )
        elif syscalls:
            targets = [f"syscalls/sys_{kind}_{call}" for call in TARGETS[name]]
            found.append({"name": name, "kind": "tracepoint", "targets": targets})
    return found


def constants(config: dict[str, int]) -> dict[str, int]:
    """The configuration as the constants of the kernel programs; rings are made apart."""
    ring = config["ring_bytes"]
    wake = config.get("wake_bytes") or ring // 8
    return {
        "EVENTS_BYTES": ring,
        "WAKE_SHIFT": max(wake.bit_length() - 1, 6),  # the power of two below
        "ALLOWANCE": config["allowance_bytes"],
        "TAIL_BYTES": config["tail_bytes"],
        "CAPTURE_SYSCALLS": int(config["syscalls"]),
        "CAPTURE_KPROBES": int(config["kprobes"]),
        "KPROBES_FOR_ALL": int(config["kprobes_for_all"]),
        "SHED": int(config["shed"]),
        "CONNECTIONS_MAX": config["connections_max"],
        "UNIX_CONNECTIONS_MAX": config["unix_connections_max"],
        "THREADS_MAX": config["threads_max"],
        "PROCESSES_MAX": config["processes_max"],
        "CPUS": possible_cpus(),
    }


def possible_cpus() -> int:
    """CPUs that may ever be there: the highest number, plus one."""
    return int(re.split("[-,]", Path("/sys/devices/system/cpu/possible").read_text().strip())[-1]) + 1


def map_create(kind: int, width: int, entries: int, name: str) -> int:
    """A map with keys and values of `width` bytes; its descriptor, or -1 with errno set."""
    attributes = struct.pack("=IIIIIII16s", kind, width, width, entries, 0, 0, 0, name.encode()[:15])
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"))
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(SYS_BPF[platform.machine()], BPF_MAP_CREATE, buffer, 72)
    return fd


def tails_create(name: str) -> int:
    """A program array for the programs that others jump to."""
    fd = map_create(BPF_MAP_TYPE_PROG_ARRAY, 4, len(TAILS), name)
    if fd < 0:
        raise map_refused(f"the program array {name}", f"{len(TAILS)} entries", ctypes.get_errno(), "")
    return fd


def ring_create(name: str, size: int) -> int:
    """A ring buffer map; the size is a power of two and at least a page."""
    if size >= 1 << 32:
        raise map_refused(f"the ring buffer {name}", f"{size} bytes", errno.E2BIG, "capture.ring_bytes")
    fd = map_create(BPF_MAP_TYPE_RINGBUF, 0, size, name)
    if fd >= 0:
        return fd
    raise map_refused(f"the ring buffer {name}", f"{size} bytes", ctypes.get_errno(), "capture.ring_bytes")


# Which option decides how large a map is; the others have a size of their own.
MAP_OPTIONS = {
    "traced": "capture.processes_max",
    "threads": "capture.threads_max",
    "moves": "capture.threads_max",
    "connections": "capture.connections_max",
    "unix_connections": "capture.unix_connections_max",
}


def map_refused(what: str, size: str, error: int, option: str) -> AgentError:
    """The kernel did not make a map: which, how large, and what to do."""
    why = "more than this kernel allows" if error == errno.E2BIG else os.strerror(error)
    reason = f"cannot make {what} of {size}: {why}"
    if error in (errno.EPERM, errno.EACCES):
        return PrivilegeError(reason, why_refused())
    if error == errno.EINVAL and option == "capture.ring_bytes":
        return AgentError(reason, f"{option} must be a power of two; ring buffers need Linux 5.8")
    if error in (errno.E2BIG, errno.EINVAL) and option:
        return AgentError(reason, f"lower {option}")
    if option:
        return AgentError(reason, f"lower {option}, or give the agent's control group more memory")
    return AgentError(reason, "give the agent's control group more memory; `dmesg` may say more")


def refused_by_bcc(said: str, config: dict[str, int]) -> AgentError | None:
    """BCC makes the maps while it compiles, and says on standard error which one the kernel refused."""
    match = re.search(r"could not open bpf map: (\w+), error: (.+)", said)
    if match is None:
        return None
    name, text = match[1], match[2].strip()
    error = next((number for number in errno.errorcode if os.strerror(number) == text), 0)
    option = MAP_OPTIONS.get(name, "")
    size = f"{config[option.removeprefix('capture.')]} entries" if option else "its fixed size"
    return map_refused(f"the map {name}", size, error, option)


def header_tree(folder: Path) -> None:
    """What BCC takes for the kernel's headers: ours, before the UAPI headers of the distribution.

    Only links, but for the version of the running kernel, which BCC gives to the programs.
    """
    uapi = Path("/usr/include")
    machine = f"{platform.machine()}-linux-gnu"
    asm = next((p for p in (uapi / machine / "asm", uapi / "asm") if (p / "posix_types.h").exists()), None)
    if asm is None or not (uapi / "linux" / "posix_types.h").exists():
        raise AgentError(
            "the kernel's UAPI headers (/usr/include/linux, asm) were not found",
            "apt install linux-libc-dev (Fedora: dnf install kernel-headers)",
        )
    ours = BPF_FOLDER / "headers"
    include = folder / "include"
    for path in ours.rglob("*.h"):
        target = include / path.relative_to(ours)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    (include / "uapi").mkdir()
    for name, target in (("linux", uapi / "linux"), ("asm-generic", uapi / "asm-generic"), ("asm", asm)):
        (include / "uapi" / name).symlink_to(target)
    # <uapi/linux/bpf.h> must not be the distribution's; the folder of the architecture is searched first
    arch = folder / "arch" / {"x86_64": "x86", "aarch64": "arm64"}[platform.machine()] / "include/uapi/linux"
    arch.mkdir(parents=True)
    (arch / "bpf.h").symlink_to(ours / "linux" / "bpf.h")
    major, minor, patch = (int(n) for n in (re.findall(r"\d+", platform.release()) + ["0"] * 3)[:3])
    (include / "linux" / "version.h").write_text(
        f"#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + min(patch, 255)}\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n"
    )


class NoBccError(AgentError):
    """This Python has no BCC; another one may."""


def import_bcc() -> tuple[Any, Any]:
    """BCC's class and its C library; the `bcc` of PyPI is another project."""
    try:
        from bcc import BPF
        from bcc.libbcc import lib  # type: ignore[import-not-found, unused-ignore]

        lib.bpf_table_name.restype = ctypes.c_char_p  # which BCC 0.26 leaves at int
        lib.bpf_table_name.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    except ImportError as error:
        raise NoBccError(
            f"BCC is not installed for {sys.executable}: {error}",
            "apt install python3-bpfcc (Fedora: dnf install python3-bcc); it is not on PyPI",
        ) from error
    return BPF, lib


def compile_text(text: str, defines: dict[str, Any], config: dict[str, int]) -> Any:
    """The compiled module, with its maps. BCC writes its messages to standard error, which is kept for us."""
    folder = Path(tempfile.mkdtemp(prefix="ebpf-otlp-tracer-headers-"))
    messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed below, after standard error is back)
    stderr = os.dup(2)
    try:
        header_tree(folder)
        os.environ["BCC_KERNEL_SOURCE"] = str(folder)
        bpf, _ = import_bcc()
        os.dup2(messages.fileno(), 2)
        flags = [f"-D{name}={value}" for name, value in defines.items()]
        return bpf(text=text, cflags=[*flags, "-Wno-macro-redefined"])
    except Exception as error:
        if isinstance(error, AgentError):
            raise
        messages.seek(0)
        said = messages.read().decode(errors="replace").strip()
        refused = refused_by_bcc(said, config)
        if refused is not None:
            raise refused from error
        first = next((line for line in said.splitlines() if "error:" in line), str(error))
        raise AgentError(f"cannot compile {BPF_FOLDER / 'agent.bpf.c'}: {first}", said[-2000:]) from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        messages.close()
        shutil.rmtree(folder, ignore_errors=True)


def with_map(code: bytes, compiled: int, wanted: int) -> bytes:
    """The instructions of a program with one map in the place of another.

    A descriptor stands in a 16 byte load (opcode 0x18) whose source register is BPF_PSEUDO_MAP_FD (1).
    """
    patched = bytearray(code)
    for at in range(0, len(code), 8):
        opcode, registers, offset, value = struct.unpack_from("=BBhi", code, at)
        if opcode == 0x18 and registers >> 4 == 1 and value == compiled:
            struct.pack_into("=BBhi", patched, at, opcode, registers, offset, wanted)
    return bytes(patched)


def load_program(lib: Any, module: Any, name: str, kind: str, tails: tuple[int, int]) -> tuple[int, str]:
    """(descriptor, "") or (-1, why): the error and the verifier's last lines.

    tails: the array of programs to jump to that was compiled in, and the one of this type of program.
    """
    number = PROGRAM_TYPES[kind]
    code = name.encode()
    size = lib.bpf_function_size(module, code)
    start = with_map(ctypes.string_at(lib.bpf_function_start(module, code), size), *tails)
    licence, version = lib.bpf_module_license(module), lib.bpf_module_kern_version(module)
    log = ctypes.create_string_buffer(LOG_BYTES)
    # Level 0: the log is written by a second try, after a refusal. Without a buffer BCC would make its own,
    # try again for each size of it (10 s), and print it all.
    # When the log is longer than that, BCC prints it; a user has no use for 30,000 lines.
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    fd = lib.bcc_func_load(module, number, code, start, size, licence, version, 0, log, LOG_BYTES, None, -1)
    error = ctypes.get_errno()
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(nowhere)
    if fd >= 0:
        return fd, ""
    lines = log.value.decode(errors="replace").strip().splitlines()
    return -1, "; ".join([os.strerror(error), *lines[-4:]])


def put_tail(lib: Any, map_fd: int, index: int, program: int) -> None:
    """Into a program array, which holds it from now on: as long as a process has the array open."""
    if (
        lib.bpf_update_elem(map_fd, ctypes.byref(ctypes.c_int(index)), ctypes.byref(ctypes.c_int(program)), 0)
        != 0
    ):
        raise AgentError(
            f"cannot fill a program array: {os.strerror(ctypes.get_errno())}", "please report it"
        )
    os.close(program)


def load(config: dict[str, int]) -> tuple[dict[str, Any], list[int]]:
    """Everything: (the answer, descriptors of its programs, then of its maps)."""
    began = time.monotonic()
    if os.geteuid() != 0:
        raise PrivilegeError("loading kernel programs needs root", "run with sudo")
    text = join_includes(BPF_FOLDER / "agent.bpf.c")
    defines: dict[str, Any] = dict(constants(config))
    secret = int.from_bytes(os.urandom(8), "little") | 1
    defines |= layout(text) | {"UNIX_SECRET": f"{secret}ULL"}
    rings = {
        "events": ring_create("events", config["ring_bytes"]),
        "process_events": ring_create("process_events", config["process_ring_bytes"]),
    }
    defines |= {f"{name.upper()}_FD": fd for name, fd in rings.items()}
    tails = {kind: tails_create(f"{kind}_tails") for kind in ("tracepoint", "kprobe")}
    defines["TAILS_FD"] = tails["tracepoint"]
    read = time.monotonic()
    bpf = compile_text(text, defines, config)
    compiled = time.monotonic()
    _, lib = import_bcc()
    maps = {**rings, **{f"{kind}_tails": fd for kind, fd in tails.items()}}
    for i in range(lib.bpf_num_tables(bpf.module)):
        name = lib.bpf_table_name(bpf.module, i).decode()
        maps[name] = lib.bpf_table_fd(bpf.module, name.encode())
    loaded, refused, fds = [], [], []
    for program in programs(text, bool(config["syscalls"]), bool(config["kprobes"])):
        jumps = tails["tracepoint"], tails["kprobe" if "probe" in program["kind"] else "tracepoint"]
        fd, why = load_program(lib, bpf.module, program["name"], program["kind"], jumps)
        if fd < 0 and "tail" in program:
            hint = "nothing can be captured without it: please report it with the output of `uname -r`"
            raise AgentError(f"this kernel refuses the program {program['name']}: {why}", hint)
        if "tail" in program:
            put_tail(lib, maps[f"{program['kind']}_tails"], program["tail"], fd)
        elif fd >= 0:
            loaded.append(program)
            fds.append(fd)
        else:
            refused.append({"name": program["name"], "reason": why})
    answer = {
        "programs": loaded,
        "maps": [{"name": name} for name in maps],
        "process_ring_bytes": config["process_ring_bytes"],
        "refused": refused,
        "kernel": {"release": platform.release(), "machine": platform.machine(), "cpus": defines["CPUS"]},
        "constants": constants(config),
        "seconds": {
            "btf": read - began,
            "compile": compiled - read,
            "load": time.monotonic() - compiled,
        },
    }
    return answer, [*fds, *maps.values()]


def send(channel: socket.socket, answer: dict[str, Any], fds: list[int]) -> None:
    """The length of the answer (4 bytes, network order) and the answer; then the descriptors."""
    text = json.dumps(answer).encode()
    channel.sendall(struct.pack("!I", len(text)) + text)
    for first in range(0, len(fds), FDS_PER_MESSAGE):
        part = array.array("i", fds[first : first + FDS_PER_MESSAGE])
        channel.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, part)])


def main(arguments: list[str]) -> int:
    channel = socket.socket(fileno=int(arguments[arguments.index("--socket-fd") + 1]))
    config = json.loads(channel.makefile("r").readline())
    try:
        send(channel, *load(config))
    except AgentError as error:
        answer = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        send(channel, {**answer, "no_bcc": isinstance(error, NoBccError)}, [])
        return error.exit_code
    except Exception as error:  # a user meets a sentence, not a traceback
        answer = {"error": f"the loader failed: {error!r}", "hint": "please report it", "exit_code": 1}
        send(channel, answer, [])
        return 1
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # LLVM takes 20 ms to take itself apart
