"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.wire.told import SinkFile


@pytest.fixture
def sink_file(tmp_path: Path) -> SinkFile:
    return SinkFile(tmp_path)
