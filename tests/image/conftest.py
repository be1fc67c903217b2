"""The image, built once, its file system, laid out once, and containers of it for each test."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.bed.image import Image, watcher_image
from tests.image.container import Containers

Files = dict[str, tarfile.TarInfo]


@pytest.fixture(scope="session")
def image() -> Image:
    """That of the Dockerfile."""
    return watcher_image()


@pytest.fixture(scope="session")
def files(image: Image) -> Files:
    """Every file, folder and link of the image, by its path without a slash before it; the highest layer wins."""
    return {member.name.removeprefix("./"): member for layer in image.layers() for member in layer}


@pytest.fixture(scope="session")
def _root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image") / "root"
    image.unpack(root)
    return root


@pytest.fixture
def containers(image: Image, _root: Path, tmp_path: Path) -> Containers:
    """Containers of the image, that share their files."""
    return Containers(image, _root, tmp_path)
