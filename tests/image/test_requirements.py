"""Tests of what the image is made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    """Package -> version and markers."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return dict(line.removesuffix(" \\").split("==", 1) for line in lines if "==" in line and line[0].isalnum())


def test_the_image_has_the_versions_that_are_tested() -> None:
    """Every pin of the image's packages is that of the development's environment, markers included."""
    assert pins("requirements-image.txt").items() <= pins("requirements.txt").items()
    assert pins("requirements-image.txt")


@pytest.mark.parametrize("name", ["requirements-image.txt", "requirements-build.txt"])
def test_every_package_has_hashes(name: str) -> None:
    """pip is told to want them, and is told of no place to get packages from."""
    text = (REPOSITORY / name).read_text()

    assert len(re.findall(r"^\S+==.+\\\n    --hash=sha256:", text, re.MULTILINE)) == len(pins(name))
    assert "://" not in text


def test_what_it_starts_from_is_named_by_digest() -> None:
    """A tag moves; both images can be replaced when it is built."""
    text = (REPOSITORY / "Dockerfile").read_text()

    assert set(re.findall(r"^ARG (BUILDER|BASE)=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)) == {"BUILDER", "BASE"}
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BUILDER}", "${BASE}", "tools", "dependencies"}
