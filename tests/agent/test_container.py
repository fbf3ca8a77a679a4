# SPDX-License-Identifier: Apache-2.0
"""Container ids out of the control groups and mounts that each runtime leaves, and what is no id."""

from __future__ import annotations

import pytest

from agent.enrichment import container

ID = "7be92808767a667f35c8505cbf40d14e931ef6db5b0210329cf193b15ba9d605"
OTHER = "0" * 63 + "1"
UID = "2f6d7f1c-3f3d-4c44-9a4c-1cf8fd0b5ab1"
STATIC_UID = "c704ef4c297ab11032b83ce52cbfc87b"  # of a static pod: the hash of its manifest
UID_ = UID.replace("-", "_")  # systemd reads "-" as a level of slices
FARGATE = "9ed1c0e3f3a64c9bb1b5e0b2a5d5e7c1-1234567890"
PODS = "/kubepods.slice"
MACHINE = "/machine.slice"
USER = "/user.slice/user-1000.slice/user@1000.service"

# The path of a control group, and the id in it.
PATHS = [
    # docker: with its own driver, with systemd's, under a parent of the user's
    (f"/docker/{ID}", ID),
    (f"/system.slice/docker-{ID}.scope", ID),
    (f"/batch/{ID}", ID),
    (f"/batch.slice/docker-{ID}.scope", ID),
    # what an init system within the container makes of it
    (f"/docker/{ID}/init.scope", ID),
    (f"/system.slice/docker-{ID}.scope/system.slice/nginx.service", ID),
    # docker in docker, kind (a node is a container), k3s in docker: the innermost
    (f"/docker/{OTHER}/docker/{ID}", ID),
    (f"/system.slice/docker-{OTHER}.scope/docker/{ID}", ID),
    (f"/docker/{OTHER}/kubelet/kubepods/besteffort/pod{UID}/{ID}", ID),
    (
        f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort"
        f".slice/kubelet-kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope",
        ID,
    ),
    (f"/docker/{ID}/docker/buildkit/v5x1n0kpu3v2tk0ch0h6gvmzo", ID),
    # Kubernetes, cgroupfs driver: besteffort, burstable, guaranteed, a static pod
    (f"/kubepods/besteffort/pod{UID}/{ID}", ID),
    (f"/kubepods/burstable/pod{UID}/{ID}", ID),
    (f"/kubepods/pod{UID}/{ID}", ID),
    (f"/kubepods/burstable/pod{STATIC_UID}/{ID}", ID),
    # the systemd driver, with containerd, docker (cri-dockerd), cri-o
    (f"{PODS}/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/cri-containerd-{ID}.scope", ID),
    (f"{PODS}/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/docker-{ID}.scope", ID),
    (f"{PODS}/kubepods-burstable.slice/kubepods-burstable-pod{STATIC_UID}.slice/crio-{ID}.scope", ID),
    (f"{PODS}/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope", ID),
    # containerd that takes systemd's names for paths
    (f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}", ID),
    (f"/kubepods-besteffort-pod{UID_}.slice:cri-containerd:{ID}", ID),
    # cri-o: a group more inside, cgroupfs, its monitor
    (f"{PODS}/kubepods-pod{UID_}.slice/crio-{ID}.scope/container", ID),
    (f"/kubepods/burstable/pod{UID}/crio-{ID}", ID),
    (f"/kubepods/burstable/pod{UID}/crio-{ID}/container", ID),
    (f"{PODS}/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope", ""),
    (f"/kubepods/burstable/pod{UID}/crio-conmon-{ID}", ""),
    # podman: systemd, cgroupfs, rootless, a quadlet (--cgroups=split)
    (f"{MACHINE}/libpod-{ID}.scope", ID),
    (f"{MACHINE}/libpod-{ID}.scope/container", ID),
    (f"/libpod_parent/libpod-{ID}", ID),
    (f"{USER}/user.slice/libpod-{ID}.scope/container", ID),
    (f"/system.slice/nginx.service/libpod-payload-{ID}", ID),
    (f"{USER}/app.slice/redis.service/libpod-payload-{ID}", ID),
    # in a pod of podman's, whose id is none of a container
    (f"{MACHINE}/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", ID),
    (f"/libpod_parent/{OTHER}/libpod-{ID}", ID),
    (f"/libpod_parent/{OTHER}", ""),
    # its monitor
    (f"{MACHINE}/libpod-conmon-{ID}.scope", ""),
    (f"{MACHINE}/machine-libpod_pod_{OTHER}.slice/libpod-conmon-{ID}.scope", ""),
    (f"{USER}/user.slice/libpod-conmon-{ID}.scope", ""),
    ("/libpod_parent/conmon", ""),
    (f"/libpod_parent/{OTHER}/conmon", ""),
    ("/system.slice/nginx.service/runtime", ""),
    ("/system.slice/nginx.service/supervisor", ""),
    # which in a container is a process of that one
    (f"{MACHINE}/libpod-{OTHER}.scope/libpod_parent/conmon", OTHER),
    (f"/docker/{OTHER}{MACHINE}/libpod-conmon-{ID}.scope", OTHER),
    # ctr and nerdctl: the former has names, which are no ids, the latter ids
    ("/k8s.io/web", ""),
    ("/default/web-1", ""),
    (f"/default/{ID}", ID),
    (f"/system.slice/nerdctl-{ID}.scope", ID),
    # Amazon ECS: on EC2 (docker), with the cluster's name, with systemd, on Fargate
    (f"/ecs/{UID}/{ID}", ID),
    (f"/ecs/shop-cluster/{FARGATE[:32]}/{ID}", ID),
    (f"/ecstasks.slice/ecstasks-{FARGATE[:32]}.slice/docker-{ID}.scope", ID),
    (f"/ecs/{FARGATE[:32]}/{FARGATE}", FARGATE),
    (f"/ecs/{FARGATE}", FARGATE),
    # seen from another control group namespace than the host's
    (f"/../../docker-{ID}.scope", ID),
    (f"/../{ID}", ID),
    # machines and containers that have names: systemd-nspawn, LXC, LXD
    (f"{MACHINE}/systemd-nspawn@web.service/payload", ""),
    (f"{MACHINE}/machine-web.scope", ""),
    ("/lxc/web", ""),
    ("/lxc.payload.web/system.slice/nginx.service", ""),
    (f"{MACHINE}/systemd-nspawn@web.service/payload/system.slice/docker-{ID}.scope", ID),
    # what is no container
    ("/", ""),
    ("/init.scope", ""),
    ("/system.slice/docker.service", ""),
    ("/system.slice/containerd.service", ""),
    ("/user.slice/user-1000.slice/session-3.scope", ""),
    (f"{USER}/init.scope", ""),
    (f"/kubepods/burstable/pod{UID}", ""),
    (f"/kubepods/burstable/pod{STATIC_UID}", ""),
    (f"{PODS}/kubepods-burstable.slice/kubepods-burstable-pod{STATIC_UID}.slice", ""),
    (f"/ecs/{FARGATE[:32]}", ""),
    (f"/ecstasks.slice/ecstasks-{FARGATE[:32]}.slice", ""),
    (f"/system.slice/var-lib-docker-containers-{ID}-mounts-shm.mount", ""),
    (f"/system.slice/run-containerd-io.containerd.runtime.v2.task-k8s.io-{ID}-rootfs.mount", ""),
    (f"/system.slice/run-{FARGATE}.service", ""),
    (f"/system.slice/backup-{FARGATE}.scope", ""),
    (f"/system.slice/docker-{ID}.service", ""),
    (f"/system.slice/x-{ID[:40]}.scope", ""),
    (f"/docker/{ID[:-1]}", ""),
    (f"/docker/{ID}0", ""),
    (f"/docker/{ID[:-1]}g", ""),
    (f"/docker/{ID.upper()}", ""),
    (f"/process_api/{STATIC_UID}", ""),
]


@pytest.mark.parametrize(("path", "expected"), PATHS)
@pytest.mark.parametrize("line", ["0::{}", "12:pids:{}", "1:name=systemd:{}", "4:cpu,cpuacct:{}"])
def test_container_id_of_a_cgroup(line: str, path: str, expected: str) -> None:
    assert container.from_cgroup(line.format(path) + "\n") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # both versions are mounted, and only one of them has the container
        (f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/docker.service\n", ID),
        (f"12:pids:/\n1:name=systemd:/\n0::/docker/{ID}\n", ID),
        (f"8:pids:/libpod_parent/conmon\n1:name=systemd:{MACHINE}/libpod-conmon-{ID}.scope\n0::/\n", ""),
        ("", ""),
        ("garbage\n:::\n", ""),
        (f"{ID}\n", ""),
        (f"0::{ID}", ID),  # no line end, no slash
    ],
)
def test_container_id_of_a_cgroup_file(text: str, expected: str) -> None:
    assert container.from_cgroup(text) == expected


ENGINE = "rw,relatime - ext4 /dev/vda rw"
MOUNTS = [
    (f"601 590 254:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname {ENGINE}\n", ID),
    (f"9 8 0:25 /containers/storage/overlay-containers/{ID}/userdata/hosts /etc/hosts {ENGINE}\n", ID),
    (f"9 8 0:25 /containers/storage/vfs-containers/{ID}/userdata/hosts /etc/hosts {ENGINE}\n", ID),
    (f"9 8 0:25 /containers/storage/btrfs-containers/{ID}/userdata/hosts /etc/hosts {ENGINE}\n", ID),
    # cri-o: the names are those of the pod's sandbox, the container's own file comes after them
    (
        f"9 8 0:25 /containers/storage/overlay-containers/{OTHER}/userdata/hostname /etc/hostname {ENGINE}\n"
        f"9 8 0:25 /containers/storage/overlay-containers/{ID}/userdata/.containerenv /run/.containerenv "
        f"{ENGINE}\n",
        ID,
    ),
    (f"9 8 0:25 /var/lib/docker/containers/{ID}/shm /dev/shm rw - tmpfs shm rw\n", ""),
    (f"9 8 0:2 /run/io.containerd.grpc.v1.cri/sandboxes/{ID}/hostname /etc/hostname {ENGINE}\n", ""),
    # a host on which a container's file lies open, an image layer, the kubelet's hosts
    (f"9 8 0:2 /containers/storage/overlay-containers/{ID}/userdata/hosts /mnt/hosts {ENGINE}\n", ""),
    (f"9 8 0:2 /var/lib/docker/overlay2/{ID}/merged /etc/hosts {ENGINE}\n", ""),
    (f"9 8 0:2 /var/lib/kubelet/pods/{UID}/etc-hosts /etc/hosts {ENGINE}\n", ""),
    ("short line\n", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), MOUNTS)
def test_container_id_of_a_mountinfo(text: str, expected: str) -> None:
    assert container.from_mountinfo(text) == expected


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/shop.service", "shop"),
        ("/system.slice/system-shop.slice/shop@blue.service", "shop"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service", "shop"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", ""),
        ("/user.slice/user-1000.slice/session-2.scope", ""),
        ("/", ""),
    ],
)
def test_systemd_service_of_a_cgroup(cgroup: str, unit: str) -> None:
    assert container.systemd_service(cgroup) == unit
