"""Tests of docs/doctor.md: its examples are what the tests of this folder have seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.generate import DIAGNOSES, DOCTOR, doctor_page
from tests.doctor.seen import GOLDEN

HERE = Path(__file__).parent


def test_the_page_is_the_one_that_is_made() -> None:
    """`python docs/generate.py` writes it."""
    assert DOCTOR.read_text() == doctor_page()


def test_every_example_is_one_that_a_test_has_seen() -> None:
    """Each kind of set-up is made by a test, is in the golden file, and is shown."""
    source = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    seen = set(re.findall(r'documented\(\s*"([^"]+)"', source))
    seen |= {f"no right to {verb}" for verb in ("list", "watch")}
    seen |= {f"no right to {verb} the ConfigMap" for verb in ("get", "patch")}
    seen |= {f"no storage.objects.{verb}" for verb in ("get", "create", "delete")} | {"clock ahead", "clock behind"}
    seen |= {"no persistence", "snapshots only", "eviction", "spoilt checkpoint", "newer checkpoint"}
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))

    assert seen == set(golden) == {kind for kinds in DIAGNOSES.values() for kind in kinds}
