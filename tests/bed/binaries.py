"""Finds the servers' programs, or builds them once from the pinned Go modules; also the CRDs of Argo Workflows.

`python -m tests.bed.binaries` does all of it and prints where each came from. The order is: BED_ and the program's
name, as in BED_KUBE_APISERVER; the folder KUBEBUILDER_ASSETS, where setup-envtest puts etcd and kube-apiserver; PATH;
the cache; a build.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bed.cache import BuildError, built_once, cache_folder, run_with_progress
from tests.bed.go import go, go_environment

_log = logging.getLogger(__name__)

_BED = Path(__file__).parent
_CLOUD = _BED / "cloud"
_ARGO = _BED / "argo"
_BENCHMARKS = _BED.parent / "benchmarks"
_SCORE = _BED / "score"
_PACKAGES = {
    "kube-apiserver": (_BED, "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": (_BED, "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kube-scheduler": (_BED, "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kubectl": (_BED, "k8s.io/kubernetes/cmd/kubectl"),
    "kubelet": (_BED, "k8s.io/kubernetes/cmd/kubelet"),
    "etcd": (_BED, "go.etcd.io/etcd/server/v3"),
    "pstest": (_CLOUD, "./pstest"),
    "fake-gcs-server": (_CLOUD, "github.com/fsouza/fake-gcs-server"),
    # Not by the name of upstream's program, which takes other flags and may be in the PATH.
    "argo-controller": (_ARGO, "./controller"),
    "replay": (_BENCHMARKS, "./replay"),
    "informer": (_BENCHMARKS, "./informer"),
    "kube-score": (_SCORE, "github.com/zegl/kube-score/cmd/kube-score"),
}
"""Each program, the module that pins it, and the package in it."""
# Without these the server calls itself v0.0.0-master+$Format at /version, and clients take decisions by that.
_VERSION = {
    "gitVersion": "v1.37.2",
    "gitMajor": "1",
    "gitMinor": "37",
    "gitTreeState": "clean",
    "gitCommit": "0" * 40,
    "buildDate": "1970-01-01T00:00:00Z",
}
_STAMPS = " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in _VERSION.items())
# The same flags for every program: with others, Go compiles all the shared packages again.
_FLAGS = ["-trimpath", "-ldflags", f"-s -w {_STAMPS}"]
_ARGO_MODULE = "github.com/argoproj/argo-workflows/v3"
_ARGO_CRDS = "manifests/base/crds/minimal"


@dataclass(frozen=True, slots=True)
class Binary:
    """A program and how it was found, in words."""

    path: Path
    origin: str


def kube_apiserver() -> Binary:
    """Find or build the API server's program."""
    return _find("kube-apiserver")


def kube_controller_manager() -> Binary:
    """Find or build the program of the controllers: CronJobs, Jobs, service accounts."""
    return _find("kube-controller-manager")


def kube_scheduler() -> Binary:
    """Find or build the scheduler's program."""
    return _find("kube-scheduler")


def kubelet() -> Binary:
    """Find or build the program that runs pods on a node."""
    return _find("kubelet")


def kubectl() -> Binary:
    """Find or build the people's program."""
    return _find("kubectl")


def etcd() -> Binary:
    """Find or build the program of etcd."""
    return _find("etcd")


def pstest() -> Binary:
    """Find or build the Pub/Sub server that Google's Go client is tested with."""
    return _find("pstest")


def fake_gcs_server() -> Binary:
    """Find or build fsouza's Google Cloud Storage."""
    return _find("fake-gcs-server")


def workflow_controller() -> Binary:
    """Find or build the controller of Argo Workflows."""
    return _find("argo-controller")


def replay() -> Binary:
    """Find or build the server that replays a recorded watch to the benchmarks."""
    return _find("replay")


def informer() -> Binary:
    """Find or build the watcher that the benchmarks compare with: client-go and Google's Pub/Sub client."""
    return _find("informer")


def kube_score() -> Binary:
    """Find or build the linter of manifests."""
    return _find("kube-score")


def argo_crds() -> list[Path]:
    """Return the minimal CustomResourceDefinitions of the pinned Argo Workflows, one YAML file each."""
    folder = built_once(cache_folder() / f"argo-crds-{_key(_BED / 'argo')}", _copy_argo_crds)
    return sorted(folder.glob("*.yaml"))


def _find(name: str) -> Binary:
    binary = _from_variable(name) or _from_kubebuilder(name) or _from_path(name) or _from_cache(name)
    # Only the last is certain to be of the pinned version; who reads a failing test wants to know which one served.
    _log.info("bed.binary name=%s path=%s origin=%s", name, binary.path, binary.origin)
    return binary


def _from_variable(name: str) -> Binary | None:
    variable = f"BED_{name.upper().replace('-', '_')}"
    value = os.environ.get(variable)
    if not value:
        return None
    if not os.access(value, os.X_OK):
        message = f"{variable} is {value}, which is no program; correct it or unset it"
        raise BuildError(message)
    return Binary(Path(value).absolute(), variable)


def _from_kubebuilder(name: str) -> Binary | None:
    found = shutil.which(name, path=os.environ.get("KUBEBUILDER_ASSETS") or os.devnull)
    return Binary(Path(found).absolute(), "KUBEBUILDER_ASSETS") if found else None


def _from_path(name: str) -> Binary | None:
    found = shutil.which(name)
    return Binary(Path(found).absolute(), "PATH") if found else None


def _from_cache(name: str) -> Binary:
    module, package = _PACKAGES[name]

    def build(target: Path) -> None:
        run_with_progress(
            go("build", *_FLAGS, "-o", str(target), package),
            name,
            note="this is done once, and takes up to 8 minutes when Go has nothing in its cache",
            cwd=module,
            env=go_environment(),
        )

    return Binary(built_once(cache_folder() / _key(module) / name, build), "built from the pinned module")


def _key(module: Path) -> str:
    """Name the folder for what is built from a module: with another version, flag or machine it is another folder."""
    ingredients = [
        (module / "go.mod").read_bytes(),
        (module / "go.sum").read_bytes(),
        *(source.read_bytes() for source in sorted(module.glob("*/*.go"))),
        " ".join(_FLAGS).encode(),
        f"{platform.system()}-{platform.machine()}".encode(),
    ]
    return hashlib.sha256(b"\0".join(ingredients)).hexdigest()[:12]


def _copy_argo_crds(target: Path) -> None:
    # From the module whose go.sum makes go refuse anything but the pinned content.
    answer = run_with_progress(
        go("mod", "download", "-json", _ARGO_MODULE),
        "the CRDs of Argo Workflows",
        cwd=_ARGO,
        env=go_environment(),
    )
    source = Path(json.loads(answer)["Dir"]) / _ARGO_CRDS
    target.mkdir()
    for crd in sorted(source.glob("argoproj.io_*.yaml")):
        # Not copy(): files of the module cache are read-only.
        shutil.copyfile(crd, target / crd.name)


def main() -> int:
    """Find or build everything and print where it came from."""
    for find in (etcd, kube_apiserver, pstest, fake_gcs_server, workflow_controller, kubectl, kube_score):
        binary = find()
        sys.stdout.write(f"{binary.path}  ({binary.origin})\n")
    crds = argo_crds()
    sys.stdout.write(f"{crds[0].parent}  ({len(crds)} CRDs of Argo Workflows)\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
