"""What the tests at the wire share."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bed.cluster import Cluster
from tests.wire.told import SinkFile

CreateMany = Callable[[str, int], list[dict[str, Any]]]


@pytest.fixture
def sink_file(tmp_path: Path) -> SinkFile:
    return SinkFile(tmp_path)


@pytest.fixture
def create_many(cluster: Cluster) -> CreateMany:
    """Create so many Workflows, named so that the API server lists them in this order."""

    def create(namespace: str, count: int) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(8) as executor:
            return list(executor.map(lambda number: cluster.create(namespace, f"w-{number:04}"), range(count)))

    return create
