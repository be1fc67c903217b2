"""A real node: the controllers, the scheduler, a kubelet, and containerd, which runs containers with runc.

`python -m tests.bed.node COMMAND…`, as root, builds what is needed and runs a command where `Node` can be used, once:
in a network, with mounts and process ids of its own. When the command ends, or whoever started it dies, every process,
mount and container of it is gone; a few empty folders may stay, mount points and cgroups.

In that network there is a bridge and nothing else: no way out, no kube-proxy, no DNS. The bridge has the node's address
and that of the Service `kubernetes`, so that pods reach the API server as everywhere; whatever else they are to reach
listens on `ADDRESS`. There is nobody who would enforce a NetworkPolicy.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Self

from tests.bed import binaries, image
from tests.bed.control_plane import ControlPlane
from tests.bed.credentials import SERVICE
from tests.bed.image import Image
from tests.bed.process import Server
from tests.bed.waiting import wait_until

ADDRESS = "10.88.0.1"
"""The node's, on the bridge."""
NAME = "n1"

_log = logging.getLogger(__name__)
_BRIDGE, _MAC = "cni0", "0a:58:0a:58:00:01"
_PLUGINS = Path("/usr/lib/cni")
_PROGRAMS = {"containerd": "containerd", "runc": "runc", "ip": "iproute2", "setpriv": "util-linux"}
"""What it takes, and Debian's package of it; that of the plug-ins has no program."""
PACKAGES = frozenset({*_PROGRAMS.values(), *image.PACKAGES, "containernetworking-plugins"})
"""Debian's packages that a machine needs to be a node, and to build the image."""
_BUILT = (
    *(binaries.etcd, binaries.kube_apiserver, binaries.kube_controller_manager, binaries.kube_scheduler),
    *(binaries.kubelet, binaries.kubectl, binaries.workflow_controller, binaries.pstest, binaries.fake_gcs_server),
    binaries.argo_crds,
)
_SOCKET = "/run/containerd/containerd.sock"
_FIXED = (
    *("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods"),
)
"""Folders that cannot be chosen: each is one of ours here."""
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP_VARIABLE = "BED_NODE_CGROUP"
"""Names the cgroup of all pods, and says that this is a place for a node."""
_MEMORY_FILES = (("memory.current", "memory.max"), ("memory.usage_in_bytes", "memory.limit_in_bytes"))
_SETTINGS = (
    *("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops"),
    *("kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"),
)
"""What a kubelet sets for the whole machine, and here in files of ours."""
_READY = timedelta(seconds=90)
# The last command of `bash` would take its place: as the first process of all, it has to wait for the orphans.
_INIT = ("bash", "-c", 'ip link set lo up && "$@"; exit $?', "bash")


class Node:
    """A cluster of one node, with its files in `folder` and these images on it; a context manager."""

    def __init__(self, folder: Path, images: Sequence[Image], *, api_flags: Sequence[str] = ()) -> None:
        self.plane = ControlPlane(
            folder / "control-plane", api_flags=["--advertise-address", ADDRESS, *api_flags], for_pods=True
        )
        self.pod_logs = _ours(folder, "/var/log/pods")
        """A folder NAMESPACE_NAME_UID for each pod that is there, with a folder for each container."""
        self._folder = folder
        self._images = images
        self._servers: list[Server] = []

    def __enter__(self) -> Self:
        began = time.monotonic()
        if _CGROUP_VARIABLE not in os.environ:
            message = "this is the machine's own network: run the tests by `python -m tests.bed.node COMMAND…`"
            raise RuntimeError(message)
        _make_network()
        _make_folders(self._folder)
        try:
            config = _written(self._folder / "containerd.toml", _containerd(self._folder))
            containerd = self._start("containerd", "--config", config)
            containerd.wait_until_ready(lambda: _ctr("version"))
            for each in self._images:
                _ctr(*each.import_command, check=True)
            self.plane.start()
            self._start_controllers()
            self._start_kubelet()
            with self.plane.cluster() as admin:
                wait_until(lambda: _is_ready(admin.request("GET", "/api/v1/nodes")), _READY, "the node to be ready")
        except BaseException:
            self.__exit__()
            raise
        _log.info("bed.node.ready seconds=%.1f", time.monotonic() - began)
        return self

    def __exit__(self, *_: object) -> None:
        while self._servers:
            self._servers.pop().kill()
        self.plane.stop()

    def leave_memory(self, pod_uid: str, container_id: str, spare_bytes: int) -> None:
        """Let a running container, without `containerd://`, have so much more memory than it has now, and no more."""
        for hierarchy in _hierarchies():
            for cgroup in (hierarchy / os.environ[_CGROUP_VARIABLE]).rglob(f"pod{pod_uid}/{container_id}"):
                for used, limit in _MEMORY_FILES:
                    if (cgroup / limit).exists():
                        has = int((cgroup / used).read_text())
                        (cgroup / limit).write_text(str(has + spare_bytes))
                        return
        message = f"no container {container_id} runs here"
        raise LookupError(message)

    def _start_controllers(self) -> None:
        kubeconfig = ["--kubeconfig", str(self.plane.kubeconfig())]
        self._start(
            str(binaries.kube_controller_manager().path),
            *kubeconfig,
            *("--leader-elect=false", "--use-service-account-credentials=true"),
            *("--service-account-private-key-file", str(self.plane.signing_key_file)),
            *("--root-ca-file", str(self.plane.ca_file)),
        )
        self._start(str(binaries.kube_scheduler().path), *kubeconfig, "--leader-elect=false")

    def _start_kubelet(self) -> None:
        config = _written(self._folder / "kubelet.json", json.dumps(_kubelet(self._folder)))
        kubelet = [str(binaries.kubelet().path), "--config", config, "--kubeconfig", str(self.plane.kubeconfig())]
        kubelet += ["--hostname-override", NAME, "--node-ip", ADDRESS, "--root-dir", str(self._folder / "kubelet")]
        kubelet += ["--cert-dir", str(self._folder / "kubelet-pki")]
        self._start(*kubelet)

    def _start(self, *command: str) -> Server:
        server = Server(command, self._folder / f"{Path(command[0]).name}.log")
        server.start()
        self._servers.append(server)
        return server


def missing() -> list[str]:
    """What this machine lacks, in words; nothing if it can be a node, and build the image."""
    lacking = image.lacking(_PROGRAMS)
    if not (_PLUGINS / "bridge").exists():
        lacking.append(f"{_PLUGINS}/bridge (apt-get install containernetworking-plugins)")
    return lacking + image.missing()


def _make_network() -> None:
    commands = [
        # With one of its own: else it has the lowest of its pods', who would look for it at that of one that is gone.
        f"link add {_BRIDGE} address {_MAC} type bridge",
        f"address add {ADDRESS}/16 dev {_BRIDGE}",
        f"address add {SERVICE}/32 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
        # Servers that ask which address is theirs ask for this route.
        f"route add default dev {_BRIDGE}",
    ]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)


def _make_folders(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in _FIXED:
        ours = _ours(folder, path)
        ours.mkdir()
        Path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(ours), path], check=True)
    for name in _SETTINGS:
        setting = Path("/proc/sys", name)
        subprocess.run(
            ["mount", "--bind", _written(_ours(folder, name), setting.read_text()), str(setting)], check=True
        )
    # The plug-ins mount a pod's network here, for containers that start later to see.
    subprocess.run(["mount", "--make-shared", "/run/netns"], check=True)
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": _BRIDGE,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.88.0.0/16", "gateway": ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }
    (folder / "cni").mkdir()
    _written(folder / "cni" / "pods.conflist", json.dumps(network))
    _written(folder / "resolv.conf", "nameserver 127.0.0.1\n")


def _ours(folder: Path, fixed: str) -> Path:
    return folder / fixed.strip("/").replace("/", "-")


def _written(file: Path, text: str) -> str:
    file.write_text(text, encoding="utf-8")
    return str(file)


def _containerd(folder: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""\
version = 2
root = "{folder}/containerd"
state = "/run/containerd/state"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
[{cri}]
  sandbox_image = "{image.PAUSE}"
  disable_apparmor = true
  # A sandbox may lack the capability to lower it.
  restrict_oom_score_adj = true
[{cri}.cni]
  bin_dir = "{_PLUGINS}"
  conf_dir = "{folder}/cni"
[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def _kubelet(folder: Path) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{os.environ[_CGROUP_VARIABLE]}",
        "containerRuntimeEndpoint": f"unix://{_SOCKET}",
        "enforceNodeAllocatable": [],
        # The disk is the machine's, and may be nearly full without hurting anybody here.
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "resolvConf": f"{folder}/resolv.conf",
        "volumePluginDir": f"{folder}/volume-plugins",
    }


def _ctr(*arguments: str, check: bool = False) -> bool:
    command = ["ctr", "--address", _SOCKET, "--namespace", "k8s.io", *arguments]
    return subprocess.run(command, check=check, capture_output=not check).returncode == 0


def _is_ready(nodes: dict[str, list[dict[str, dict[str, list[dict[str, str]]]]]]) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for node in nodes["items"]
        for condition in node["status"]["conditions"]
    )


@contextmanager
def _cgroup() -> Iterator[str]:
    """Make a cgroup for all pods, and remove it with all of theirs."""
    name = f"workflow-watcher-bed-{os.getpid()}"
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir()
    try:
        yield name
    finally:
        for hierarchy in _hierarchies():
            for cgroup, _, _ in os.walk(hierarchy / name, topdown=False):
                with suppress(OSError):  # a process of it may not be quite gone
                    Path(cgroup).rmdir()


def _hierarchies() -> list[Path]:
    """The mounts of cgroups: one, or in the first version one for each controller."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [folder for folder in _CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink()]


def main(command: Sequence[str]) -> int:
    """Run a command where a node can be, and return its exit code; 1 with a word of what is missing where none can."""
    if lacking := missing():
        sys.stderr.write(f"there can be no node here; missing: {'; '.join(lacking)}\n")
        return 1
    # There is no way out afterwards.
    for build in _BUILT:
        build()
    image.main()
    apart = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child", "--fork", "--net", "--pid", "--mount-proc"]
    apart += ["--mount", "--propagation", "private"]
    with _cgroup() as name:
        variables = os.environ | {_CGROUP_VARIABLE: name, **image.found_by()}
        return subprocess.run([*apart, *_INIT, *command], check=False, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
