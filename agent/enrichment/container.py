# SPDX-License-Identifier: Apache-2.0
"""Container ids out of /proc/PID/cgroup, and out of mountinfo where a cgroup namespace hides the path.

What runtimes write (v1 lines have a controller, v2 has one line `0::PATH`):

    docker           /docker/<id>                        with systemd: /system.slice/docker-<id>.scope
    containerd, k8s  /kubepods/burstable/pod<uid>/<id>   with systemd: …/cri-containerd-<id>.scope
                     /…pod<uid>.slice:cri-containerd:<id>
    cri-o            /kubepods.slice/…/crio-<id>.scope
    podman           /machine.slice/libpod-<id>.scope/container
    ECS on Fargate   /ecs/<task>/<task>-<number>

In the mountinfo, container engines bind files of `…/containers/<id>/` into the container. (containerd's
`…/sandboxes/<id>/` names the pod's pause container: not ours.)
"""

from __future__ import annotations

import re

_HEX = r"[0-9a-f]{64}"
# One path component. A conmon scope holds the monitor of the container, which is outside of it.
_COMPONENT = re.compile(
    rf"^(?!crio-conmon-|libpod-conmon-)(?:.*[-:])?(?P<id>{_HEX}|[0-9a-f]{{32}}-\d{{8,10}})(?:\.scope)?$"
)
_MOUNT = re.compile(rf"/(?:overlay-)?containers/({_HEX})/")


def from_cgroup(text: str) -> str:
    """The container id in the text of /proc/PID/cgroup, or "". Of nested containers the innermost."""
    for line in text.splitlines():
        for component in reversed(line.partition(":")[2].partition(":")[2].split("/")):
            match = _COMPONENT.match(component)
            if match:
                return match["id"]
            if "-conmon-" in component:
                break
    return ""


def from_mountinfo(text: str) -> str:
    """The container id in the text of /proc/PID/mountinfo, or "".

    Only field 4, the root of the mount within its file system, counts, and only on mounts of single
    files that engines make (hostname, resolv.conf, hosts): a host that mounts its storage has others.
    """
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in ("/etc/hostname", "/etc/resolv.conf", "/etc/hosts"):
            match = _MOUNT.search(fields[3])
            if match:
                return match[1]
    return ""


def cgroup_path(text: str) -> str:
    """The path that says most: of cgroup v2, else of systemd's v1 hierarchy, else the first but "/"."""
    paths = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controller, _, path = rest.partition(":")
        paths[controller] = path
    for controller in ("", "name=systemd"):
        if paths.get(controller, "/") != "/":
            return paths[controller]
    return next((path for path in paths.values() if path != "/"), "/" if paths else "")


# `user@1000.service` and `session-3.scope` say who logged in, not what runs.
_UNIT = re.compile(r"^(?P<name>[A-Za-z0-9:_.\\-]+?)(?:@[^/]*)?\.service$")


def systemd_service(cgroup: str) -> str:
    """The systemd service that a cgroup path belongs to, without ".service" and instance, or ""."""
    for component in reversed(cgroup.split("/")):
        match = _UNIT.match(component)
        if match:
            return "" if component.startswith("user@") else match["name"]
    return ""
