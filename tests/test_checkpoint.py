"""Tests of the checkpoint's form on disk."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from job import checkpoint
from job.change import Known
from job.checkpoint import KEPT_RUNS, Checkpoint, RunRecord, Scope
from job.errors import CheckpointUnusable
from job.payload import Content, Payload
from job.ports import Identity

GOLDEN = Path(__file__).parent / "golden" / "checkpoints" / "schema-1.json"

EXAMPLE = Checkpoint(
    scope=Scope("prod", "workflows.v1alpha1.argoproj.io", "argo", "team=a", "stdout:"),
    content=Content(Payload.SUMMARY, transitions=True, redact=("*token*",)),
    identity=Identity("0f8b2b62-7d0b-4f39-9c0e-31d7e1a4a111", None),
    epoch=1,
    version=2**64 + 1,
    listed=294,
    listed_for="expired",
    announced=263,
    gaps=2,
    inventory={
        "0da85475-868d-4978-80e0-b7d3b6ab5167": Known("argo", "steps", 1104, "Running", at="2026-11-23T07:59:00Z"),
        "5c9cb00a-99a4-4af0-a434-85d81c4403d1": Known("argo", "ttl", 1241, None, deleted=True),
        "ec740e7c-92ea-462f-b224-08e5425cb059": Known("argo", "pod-fail", 0, None, told=False),
    },
    run_id="6a1c3bd6-7f0e-4f51-b7d1-1a1f6a6f4d4e",
    sequence=3,
    saved_at="2026-11-23T08:00:54Z",
    current_at="2026-11-23T08:00:50Z",
    audited_at="2026-11-23T00:00:00Z",
    runs=(
        RunRecord(
            "6a1c3bd6-7f0e-4f51-b7d1-1a1f6a6f4d4e",
            "2026-11-23T08:00:00Z",
            55.1,
            "expired",
            306.0,
            0,
            {"added": 2},
            "complete",
        ),
        RunRecord("first", "2026-11-22T08:00:00Z", 55.0, "first", None, 75, {}),
    ),
)

texts = st.text(max_size=12)
versions = st.integers(0, 2**128 - 1)
times = st.datetimes().map(lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}".rjust(20, "0"))
records = st.builds(
    RunRecord,
    run_id=texts,
    started_at=texts,
    seconds=st.floats(0, 1e6),
    start=texts,
    age_seconds=st.none() | st.floats(0, 1e9),
    exit_code=st.integers(0, 255),
    published=st.dictionaries(texts, st.integers(0, 10**9), max_size=3),
    recovery=texts,
)
checkpoints = st.builds(
    Checkpoint,
    scope=st.builds(Scope, texts, texts, texts, texts, texts),
    identity=st.builds(Identity, st.none() | texts, st.none() | texts),
    epoch=st.integers(0, 1000),
    version=versions,
    listed=versions,
    announced=versions,
    gaps=st.integers(0, 1 << 40),
    inventory=st.dictionaries(
        texts,
        st.builds(Known, texts, texts, versions, st.none() | texts, st.booleans(), st.booleans(), texts),
        max_size=4,
    ),
    content=st.builds(Content, st.sampled_from(Payload), st.booleans(), st.lists(texts, max_size=2).map(tuple)),
    run_id=texts,
    sequence=st.integers(0, 10**6),
    saved_at=times,
    audited_at=st.just("") | times,
    runs=st.lists(records, max_size=3).map(tuple),
)


def stored(**changes: object) -> bytes:
    """The example's bytes with some members replaced; None removes one."""
    members = json.loads(gzip.decompress(checkpoint.encode(EXAMPLE)))
    members = {name: value for name, value in {**members, **changes}.items() if value is not None}
    return gzip.compress(json.dumps(members).encode())


@given(checkpoints)
def test_what_is_written_is_read_again(saved: Checkpoint) -> None:
    """Every member of every checkpoint."""
    assert checkpoint.decode(checkpoint.encode(saved)) == saved


@given(checkpoints)
def test_the_same_checkpoint_has_the_same_bytes(saved: Checkpoint) -> None:
    """Unchanged state is recognised by its bytes, also after it was read again."""
    data = checkpoint.encode(saved)

    assert checkpoint.encode(saved) == data
    assert checkpoint.encode(checkpoint.decode(data)) == data


def test_schema_1_stays_as_it_is() -> None:
    """The golden file is what people read with gunzip and jq, and what the next version must still read."""
    golden = GOLDEN.read_bytes()

    assert gzip.decompress(checkpoint.encode(EXAMPLE)) == golden.rstrip(b"\n")
    assert checkpoint.decode(gzip.compress(golden)) == EXAMPLE


def test_what_came_later_may_be_absent() -> None:
    """Checkpoints that were saved before there were contents, and times of phases, are read."""
    members = json.loads(GOLDEN.read_bytes())
    del members["content"], members["gaps"]
    members["inventory"] = {uid: entry[:6] for uid, entry in members["inventory"].items()}
    read = checkpoint.decode(gzip.compress(json.dumps(members).encode()))

    assert (read.content, read.gaps) == (Content(), 0)
    assert {known.at for known in read.inventory.values()} == {""}


def test_versions_are_strings() -> None:
    """They may have 128 bits, and most readers of JSON have 53."""
    members = json.loads(gzip.decompress(checkpoint.encode(EXAMPLE)))

    assert members["resourceVersion"] == "18446744073709551617"
    assert members["inventory"]["0da85475-868d-4978-80e0-b7d3b6ab5167"][2] == "1104"


def test_a_truncated_checkpoint_is_unreadable() -> None:
    """Cut at any length, the empty file included: never absent, never half of it."""
    data = checkpoint.encode(EXAMPLE)
    for length in range(len(data)):
        with pytest.raises(CheckpointUnusable, match=f"its {length} bytes cannot be read"):
            checkpoint.decode(data[:length])


@given(st.integers(0, len(checkpoint.encode(EXAMPLE)) - 1), st.integers(1, 255))
def test_a_flipped_byte_is_noticed_or_harmless(place: int, change: int) -> None:
    """gzip has a checksum; a byte of its header may differ."""
    data = bytearray(checkpoint.encode(EXAMPLE))
    data[place] ^= change
    try:
        read = checkpoint.decode(bytes(data))
    except CheckpointUnusable:
        return
    assert read == EXAMPLE
    assert place < 10


@pytest.mark.parametrize(
    "data",
    [
        b"not gzip",
        gzip.compress(b""),
        gzip.compress(b"not JSON"),
        gzip.compress(b"[]"),
        gzip.compress(b"{}"),
        gzip.compress(b'{"schema":"1"}'),
        gzip.compress(b'{"schema":1}'),
        gzip.compress(b'{"schema":1,"scope":"\xff"}'),
        checkpoint.encode(EXAMPLE) + b"rest",
    ],
)
def test_what_is_no_checkpoint_is_unreadable(data: bytes) -> None:
    """It must not be taken for an empty one."""
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        checkpoint.decode(data)


@pytest.mark.parametrize("version", ["", "-1", "1.0", "abc", " 1", "0x1", "\u0661", "9" * 5000])
def test_a_version_is_a_number(version: str) -> None:
    """A version that cannot be compared is damage."""
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        checkpoint.decode(stored(resourceVersion=version))


@pytest.mark.parametrize(
    "member", ["scope", "identity", "epoch", "resourceVersion", "listed", "inventory", "run_id", "runs"]
)
def test_no_member_has_a_default(member: str) -> None:
    """What is missing was lost: an empty inventory would make everything new."""
    with pytest.raises(CheckpointUnusable, match="cannot be read"):
        checkpoint.decode(stored(**{member: None}))


def test_another_schema_is_not_guessed_at() -> None:
    """Both numbers are named, also where nothing else of it can be understood."""
    with pytest.raises(CheckpointUnusable, match=r"schema 2.*schema 1"):
        checkpoint.decode(gzip.compress(b'{"schema":2,"everything":"else"}'))


def test_an_unknown_member_is_ignored() -> None:
    """A later program of the same schema may add what this one does not need."""
    assert checkpoint.decode(stored(more={"a": 1})) == EXAMPLE


def test_only_the_last_runs_are_kept() -> None:
    """However many a checkpoint is given."""
    runs = tuple(msgspec.structs.replace(EXAMPLE.runs[0], run_id=str(number)) for number in range(KEPT_RUNS + 1))
    read = checkpoint.decode(checkpoint.encode(msgspec.structs.replace(EXAMPLE, runs=runs)))

    assert read.runs == runs[1:]
