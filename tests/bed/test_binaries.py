"""The programs are taken from where the developer says, in the documented order."""

from pathlib import Path

import pytest

from tests.bed import binaries
from tests.bed.cache import BuildError


@pytest.fixture
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BED_ETCD", "KUBEBUILDER_ASSETS", "PATH"):
        monkeypatch.delenv(variable, raising=False)


def program(folder: Path) -> Path:
    """Make a program called etcd in a folder."""
    folder.mkdir()
    path = folder / "etcd"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.usefixtures("_nothing_set")
def test_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PATH comes after KUBEBUILDER_ASSETS, which comes after the variable that names one program."""
    on_path, of_kubebuilder, named = (program(tmp_path / name) for name in ("path", "kubebuilder", "named"))

    monkeypatch.setenv("PATH", str(on_path.parent))
    assert binaries.etcd() == binaries.Binary(on_path, "PATH")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(of_kubebuilder.parent))
    assert binaries.etcd() == binaries.Binary(of_kubebuilder, "KUBEBUILDER_ASSETS")
    monkeypatch.setenv("BED_ETCD", str(named))
    assert binaries.etcd() == binaries.Binary(named, "BED_ETCD")


def test_named_program_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that names no program is an error, not a reason to build one."""
    monkeypatch.setenv("BED_ETCD", str(tmp_path / "etcd"))
    with pytest.raises(BuildError, match="BED_ETCD"):
        binaries.etcd()


def test_argo_crds() -> None:
    """The CRDs of Argo Workflows are there, Workflow among them."""
    assert "argoproj.io_workflows.yaml" in [path.name for path in binaries.argo_crds()]
