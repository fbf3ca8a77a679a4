# SPDX-License-Identifier: Apache-2.0
"""Container ids out of /proc/PID/cgroup, and out of mountinfo where a cgroup namespace hides the path.

What runtimes write (v1 lines have a controller, v2 has one line `0::PATH`):

    docker           /docker/<id>                        with systemd: /system.slice/docker-<id>.scope
    containerd, k8s  /kubepods/burstable/pod<uid>/<id>   with systemd: …/cri-containerd-<id>.scope
                     /…pod<uid>.slice:cri-containerd:<id>
    cri-o            /kubepods.slice/…/crio-<id>.scope
    podman           /machine.slice/libpod-<id>.scope/container, /libpod_parent/libpod-<id>
                     /libpod_parent/<pod>/libpod-<id>, and for systemd services /…/libpod-payload-<id>
    ECS on Fargate   /ecs/<task>/<task>-<number>

In the mountinfo, container engines bind files of `…/containers/<id>/` into the container. (containerd's
`…/sandboxes/<id>/` names the pod's pause container: not ours. So do the host's names of cri-o, but its
`.containerenv` is the container's.)
"""

from __future__ import annotations

import re

_HEX = r"[0-9a-f]{64}"
# One path component. A conmon scope holds the monitor of the container, which is outside of it.
_COMPONENT = re.compile(
    rf"^(?!crio-conmon-|libpod-conmon-)(?:(?:.*[-:])?(?P<id>{_HEX})(?:\.scope)?"
    r"|(?P<task>[0-9a-f]{32}-\d{8,10}))$"
)
_PODS = "libpod_parent"  # directly below stand the ids of podman's pods
_MOUNT = re.compile(rf"/(?:[a-z0-9]+-)?containers/({_HEX})/")
_OWN_MOUNT = "/run/.containerenv"
_MOUNTS = ("/etc/hostname", "/etc/resolv.conf", "/etc/hosts", _OWN_MOUNT)


def from_cgroup(text: str) -> str:
    """The container id in the text of /proc/PID/cgroup, or "". Of nested containers the innermost."""
    for line in text.splitlines():
        components = line.partition(":")[2].partition(":")[2].split("/")
        for i in range(len(components) - 1, -1, -1):
            match = _COMPONENT.match(components[i])
            if match and not (i and components[i - 1] == _PODS and match["id"] == components[i]):
                return match["id"] or match["task"]
    return ""


def from_mountinfo(text: str) -> str:
    """The container id in the text of /proc/PID/mountinfo, or "".

    Only field 4, the root of the mount within its file system, counts, and only on mounts of single
    files that engines make (hostname, resolv.conf, hosts): a host that mounts its storage has others.
    """
    found = ""
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] in _MOUNTS:
            match = _MOUNT.search(fields[3])
            if match and fields[4] == _OWN_MOUNT:
                return match[1]
            found = found or (match[1] if match else "")
    return found


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
