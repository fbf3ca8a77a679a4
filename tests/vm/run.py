# SPDX-License-Identifier: Apache-2.0
"""Runs tests on Debian's own kernel, in a virtual machine: python -m tests.vm.run [pytest arguments]

QEMU in software emulation (virtme-ng) boots the kernel over this machine's file system; the guest has
this checkout and interpreter, writes to memory only, and runs pytest as root. Without arguments it runs
SELECTION. The exit status is that of pytest; a guest that does not boot, dies or hangs is a failure (3).
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.vm.kernel_image import KernelImage, KernelImageError, kernel_image
from tests.vm.verdict import NO_VERDICT, last_lines, verdict

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "vm"

# What must hold on another kernel: all of the kernel side, and one way through the whole agent.
SELECTION = (
    "tests/bpf/test_load.py",
    "tests/bpf/test_self_test.py::test_it_passes_here_and_nothing_of_it_remains",
    "tests/bpf/test_capture.py",
    "tests/bpf/test_kprobe.py",
    "tests/end_to_end/test_servers.py::test_curl_asks_nginx_23_times",
    "tests/end_to_end/test_backends.py",
)
# What cannot hold there, and why. Only for SELECTION: what is asked for by name is run.
COMPILES = "it compiles the programs anew, 20 s in emulation, for what does not depend on the kernel"
DESELECTED = {
    "tests/bpf/test_load.py::test_largest_tail_loads": COMPILES,
    "tests/bpf/test_load.py::test_nothing_is_left_of_the_loader": COMPILES,
    "tests/bpf/test_capture.py::test_a_full_ring_loses_no_count": COMPILES,
    "tests/bpf/test_capture.py::test_a_chunk_that_the_ring_refuses_half_way_adds_up": COMPILES,
    "tests/bpf/test_capture.py::test_tables_that_are_full_are_counted": COMPILES,
    "tests/end_to_end/test_backends.py::test_requests_through_io_uring_are_spans[auto-vectors]": COMPILES,
    "tests/end_to_end/test_backends.py::test_requests_through_io_uring_are_spans[kprobe-]": COMPILES,
    "tests/end_to_end/test_backends.py::test_without_kprobes_a_process_with_io_uring_is_named": "it has them",
    "tests/end_to_end/test_backends.py::test_capture_names_what_this_kernel_has_not": "it has it",
}

CPUS, MEMORY = "2", "2G"
# Of what a newer model can, much has to be emulated at length (vectors, guarded pages): imports of Python
# modules and the verifier took twice as long on virtme-ng's own choice, "max".
CPU_MODEL = "Nehalem"
TIME_FACTOR = 10  # emulation against the processor itself, roughly
BOOT_LIMIT_S = 180.0  # 10 s in practice
LIMIT_S = 900.0
STOP_S = 5.0


def guest_script(arguments: Sequence[str], share: Path) -> str:
    """What the guest runs. Its answers lie in `share`, the only folder where what it writes stays."""
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "kprobes or not kprobes",
        "-p",
        "no:cacheprovider",
        f"--junitxml={share}/report.xml",
    ]
    environment = {
        "CI": "1",  # a test that is skipped has failed
        "TESTS_TIME_FACTOR": str(TIME_FACTOR),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": os.environ["PATH"],
        "HOME": "/root",
    }
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    # The host's /tmp may hold traces of agents that run there. (Not where it holds the checkout itself.)
    own_tmp = [] if ROOT.is_relative_to("/tmp") else ["mount -t tmpfs -o mode=1777 tmpfs /tmp"]
    lines = [
        "#!/bin/sh",
        f"cd {shlex.quote(str(ROOT))} || exit",
        *own_tmp,
        "ulimit -n 20000",  # what this init gives is 4096 at most
        *exports,
        f"uname -r > {shlex.quote(str(share / 'release'))}",
        f"{shlex.join([*pytest, *arguments])} > {shlex.quote(str(share / 'output'))} 2>&1",
        f"echo $? > {shlex.quote(str(share / 'status'))}",
    ]
    return "\n".join(lines) + "\n"


def command(image: KernelImage, script: Path, share: Path) -> list[str]:
    """virtme-ng's. The script is a file, because a kernel's command line has 2048 bytes."""
    vng = Path(sys.executable).with_name("vng")
    if not vng.exists():
        raise KernelImageError(f"{vng} does not exist\nhint: make test-vm; or pip install -e '.[test]'")
    return [
        str(vng),
        "--disable-kvm",
        "--force-9p",  # its other way needs a newer virtiofsd than Debian 12 has: it waits for it, in vain
        "--disable-microvm",  # it needs drivers that Debian has as modules
        "--verbose",  # the kernel's messages, for the case that something goes wrong
        f"--run={image.vmlinuz}",
        f"--cpus={CPUS}",
        f"--memory={MEMORY}",
        f"--qemu-opts=-cpu {CPU_MODEL}",
        # Page tables that change with each system call cost the emulator most.
        "--append=mitigations=off",
        f"--overlay-rwdir={ROOT}",
        f"--rwdir={share}",
        f"--exec=/bin/sh {shlex.quote(str(script))}",
    ]


def follow(output: Path, shown: int) -> int:
    """Prints what was added to a file; returns how much of it has been printed."""
    if not output.exists():
        return shown
    with output.open("rb") as file:
        file.seek(shown)
        new = file.read()
    sys.stdout.buffer.write(new)
    sys.stdout.buffer.flush()
    return shown + len(new)


def stop(machine: subprocess.Popen[bytes]) -> None:
    """Ends the process group that was made for the machine, and nothing else."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(machine.pid, number)
            machine.wait(STOP_S)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            break


def boot(image: KernelImage, arguments: Sequence[str], share: Path) -> str:
    """One run of the machine. Returns what went wrong with the machine itself, or "".  Leaves in `share`:
    release, output, status and report.xml of the guest, and its console."""
    script = share / "guest.sh"
    script.write_text(guest_script(arguments, share))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
    with (share / "console").open("wb") as console:
        machine = subprocess.Popen(
            command(image, script, share),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path},  # it calls its own other commands by name
            start_new_session=True,
        )
    began, shown, wrong = time.monotonic(), 0, ""
    try:
        while machine.poll() is None and not wrong:
            try:
                machine.wait(0.2)
            except subprocess.TimeoutExpired:
                shown = follow(share / "output", shown)
            took = time.monotonic() - began
            if took > LIMIT_S:
                wrong = f"it was not done after {LIMIT_S:.0f} s, and was killed"
            elif took > BOOT_LIMIT_S and not (share / "release").exists():
                wrong = f"it had not booted after {BOOT_LIMIT_S:.0f} s, and was killed"
    finally:
        stop(machine)
        follow(share / "output", shown)
    if not wrong and not (share / "release").exists():
        wrong = f"it did not boot (virtme-ng ended with status {machine.returncode})"
    elif not wrong and not (share / "status").exists():
        wrong = f"it died while the tests ran (virtme-ng ended with status {machine.returncode})"
    return wrong


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `finally` is reached
    if not arguments:
        arguments = list(SELECTION)
        for test, reason in DESELECTED.items():
            arguments.append(f"--deselect={test}")
            print(f"not run in the VM: {test}\n  {reason}")
    try:
        image = kernel_image(CACHE)
        share = CACHE / "last"
        shutil.rmtree(share, ignore_errors=True)
        share.mkdir(parents=True)
        print(f"booting {image.release}, emulated (its console: {share}/console)", flush=True)
        began = time.monotonic()
        wrong = boot(image, arguments, share)
    except KernelImageError as error:
        print(f"VM: {error}", file=sys.stderr)
        return NO_VERDICT
    took = f"{time.monotonic() - began:.0f} s with the boot"
    if wrong:
        print(f"\nlast lines of the console:\n{last_lines(share / 'console', 60)}\n")
        print(f"VM {image.release}: failed: {wrong}; {took}")
        return NO_VERDICT
    sentence, status = verdict(share)
    print(f"VM {sentence}; {took}")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
