"""Tests of finding a Workflow's nodes, wherever its status keeps them."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli  # type: ignore[import-untyped] # it has none
import msgspec
import pytest
import zstandard
from hypothesis import example, given, strategies as st

from job.payload.nodes import MOST_BYTES, CannotUnpack, Held, Omitted, hydrated, unpacked

ROOT = Path(__file__).parents[2]
NODES = (
    '{"wf-1":{"id":"wf-1","name":"wf","type":"Pod","phase":"Succeeded",'
    '"outputs":{"parameters":[{"name":"password","value":"hunter2"}]}}}'
)
NODE = json.loads(NODES)["wf-1"]
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda text: gzip.compress(text, mtime=0),
    "zstd": lambda text: zstandard.ZstdCompressor().compress(text),
    "brotli": lambda text: brotli.compress(text, quality=1),
}
# What Go's libraries make of NODES, those that Argo compresses with.
FROM_GO = {
    "pgzip": (
        "H4sIAAAJbogA/zSMwQoCMQxE/2XO9aDHfoXgUTyEbWQFdxuaxCKl/y5RvM0bZt5Avx+OyAOPgvyDhJ02/hIS7C2Rz7UgQVbSoIsv"
        "C3Ph6KqbuGk4hBptbNwU+Tr+GiHVXltsX/T0+K++G7cT5m3O+QEAAP//AwD3xa0MhAAAAA=="
    ),
    "zstd, stored": (
        "KLUv/QQAIQQAeyJ3Zi0xIjp7ImlkIjoid2YtMSIsIm5hbWUiOiJ3ZiIsInR5cGUiOiJQb2QiLCJwaGFzZSI6IlN1Y2NlZWRlZCIs"
        "Im91dHB1dHMiOnsicGFyYW1ldGVycyI6W3sibmFtZSI6InBhc3N3b3JkIiwidmFsdWUiOiJodW50ZXIyIn1dfX193pdQ1g=="
    ),
    "zstd, default": (
        "KLUv/QQANQMAEgcWGXBpA2HZlpSTxAPE7Xu2HPGghCvqGFZVvRWtNUNbgKqSdYx3JVLxbZCypJSHFfCEqookyjPDk1pHLeXb1LSG"
        "sQjjTXmcb6MMxnsW6rtIJh9uEDM8ADgsswMArQSCMW8Bw1QC3pdQ1g=="
    ),
    "zstd, best": (
        "KLUv/QQARQMAkkUTGICJDWz8KCkl0cftoWxSqh8Am9w8jIE0MN1t6Avy1mDECVOkOlQNV6Fc8/aSpaEu47K6c2cME9QQnvyoAS72"
        "5JfMOCk/iK/yAOBwfAUJADaDPA2GEqSOEOZmcDfQS5SYt4BhKgHel1DW"
    ),
}

SHAPES: list[object] = [5, True, "x", [], [{}], {"a": 5}, {"a": None}, {"a": []}]
NOT_PACKED: list[object] = [5, {}, "REDACTED", "é", "H4sI", "KLUv/Q==", "AA", "AAA=", "!" + FROM_GO["pgzip"]]


def packed(text: bytes, compress: Callable[[bytes], bytes] = COMPRESSORS["gzip"]) -> str:
    return base64.b64encode(compress(text)).decode()


def hydrate(status: dict[str, Any]) -> list[dict[str, Any]] | Omitted | None:
    """The nodes as plain values; the reason where they are omitted."""
    nodes = hydrated(msgspec.json.decode(json.dumps(status), type=Held))
    if nodes is None or isinstance(nodes, Omitted):
        return nodes
    return [json.loads(msgspec.json.encode(node)) for node in nodes]


@pytest.mark.parametrize("text", FROM_GO.values(), ids=FROM_GO)
def test_what_argos_libraries_compressed_is_read(text: str) -> None:
    """Bytes of Go's own compressors, each known by its first ones."""
    assert unpacked(text).decode() == NODES
    assert hydrate({"compressedNodes": text}) == [NODE]


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_compressed_nodes_are_those_that_were_compressed(compress: Callable[[bytes], bytes]) -> None:
    """In their order, which is not that of their names."""
    text = b'{"b":{"id":"b"},"c":{"id":"c"},"a":{"id":"a"}}'

    assert hydrate({"compressedNodes": packed(text, compress)}) == [{"id": "b"}, {"id": "c"}, {"id": "a"}]


def test_only_what_a_summary_says_of_a_node_is_read() -> None:
    """Byte for byte."""
    status = '{"nodes":{"a":{"id": "a","templateName":"t","inputs":{"n":[1.50, 1E5]},"children":["\\u0061"]}}}'

    nodes = hydrated(msgspec.json.decode(status, type=Held))

    assert msgspec.json.encode(nodes) == b'[{"id":"a","inputs":{"n":[1.50, 1E5]},"children":["\\u0061"]}]'


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"nodes": None},
        {"nodes": None, "compressedNodes": None, "offloadNodeStatusVersion": None},
        {"compressedNodes": "", "offloadNodeStatusVersion": ""},
        {"compressedNodes": packed(b"null")},
    ],
)
def test_a_workflow_that_has_not_begun_has_no_nodes_and_omits_none(status: dict[str, Any]) -> None:
    """A fresh object has no status at all."""
    assert hydrate(status) is None


@pytest.mark.parametrize("nodes", [{}, {"nodes": None}, {"nodes": {}}])
def test_nodes_in_a_database_are_omitted(nodes: dict[str, Any]) -> None:
    """Argo leaves a version where they were."""
    assert hydrate({**nodes, "offloadNodeStatusVersion": "fnv:4167764853"}) == "offloaded"


@pytest.mark.parametrize("version", ["", "fnv:1"])
def test_nodes_that_are_there_are_not_omitted(version: str) -> None:
    """Whatever else the status says."""
    other = packed(b'{"b":{"id":"b"}}')
    rest = {"compressedNodes": other, "offloadNodeStatusVersion": version}

    assert hydrate({"nodes": {"a": {"id": "a"}}, **rest}) == [{"id": "a"}]
    assert hydrate({"nodes": {}, **rest}) == [{"id": "b"}]
    assert hydrate({"nodes": None, **rest}) == [{"id": "b"}]


def test_no_nodes_are_not_the_same_as_none_yet() -> None:
    """A status that says so has an empty list of nodes."""
    assert hydrate({"nodes": {}}) == []


@pytest.mark.parametrize(
    "status",
    [
        *({"nodes": shape} for shape in SHAPES),
        *({"compressedNodes": packed(json.dumps(shape).encode())} for shape in SHAPES),
        *({"compressedNodes": text} for text in NOT_PACKED),
        {"compressedNodes": base64.b64encode(b"not compressed").decode()},
        {"compressedNodes": packed(b"")},
        {"compressedNodes": packed(b"{")},
        {"compressedNodes": packed(b'{"a":{"id":"\xff"}}')},
        {"offloadNodeStatusVersion": 5},
    ],
)
def test_what_argo_does_not_write_is_unreadable(status: dict[str, Any]) -> None:
    """Nodes of another shape, damaged base64, streams or JSON, bytes that are no text."""
    assert hydrate(status) == "unreadable"


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_a_damaged_stream_is_unreadable(compress: Callable[[bytes], bytes]) -> None:
    """Cut off in the middle or at the end, with something behind its end, or with changed bytes."""
    text = json.dumps({f"n{number}": {"id": str(number * 7919)} for number in range(100)}).encode()
    data = compress(text)
    middle = len(data) // 2

    for damaged in (data[:middle], data[:-1], data + b"garbage", data[: middle - 8] + bytes(16) + data[middle + 8 :]):
        assert hydrate({"compressedNodes": base64.b64encode(damaged).decode()}) == "unreadable"


def test_a_stream_without_its_end_is_unreadable() -> None:
    """Even where every byte of the nodes is there already."""
    stream = brotli.Compressor()
    unfinished = stream.process(NODES.encode()) + stream.flush()

    assert hydrate({"compressedNodes": base64.b64encode(unfinished).decode()}) == "unreadable"
    assert hydrate({"compressedNodes": base64.b64encode(unfinished + stream.finish()).decode()}) == [NODE]


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_as_much_as_may_be_kept_is_kept(compress: Callable[[bytes], bytes]) -> None:
    """And one byte more is too large."""
    empty = b'{"a":{"id":"a","message":"%b"}}'
    most = MOST_BYTES - len(empty % b"")

    assert len(unpacked(packed(empty % (b"x" * most), compress))) == MOST_BYTES
    with pytest.raises(CannotUnpack, match="too-large"):
        unpacked(packed(empty % (b"x" * (most + 1)), compress))


def gzip_bomb() -> bytes:
    """A block that says a MiB, again and again."""
    stream = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    start = stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return start + block * ((1 << 20) // len(block))


def zstd_bomb() -> bytes:
    """A frame that says 16 MiB, again and again."""
    frame = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    return frame * ((1 << 20) // len(frame))


def brotli_bomb() -> bytes:
    """A KiB or so that says 256 MiB."""
    stream = brotli.Compressor(quality=1)
    return b"".join([*(stream.process(bytes(1 << 20)) for _ in range(256)), stream.finish()])


MEASURED = """
import sys, zstandard, brotli
from job.payload.nodes import CannotUnpack, unpacked
from tests.payload.peak import peak

text = sys.stdin.read()
before = peak()
try:
    unpacked(text)
except CannotUnpack as failed:
    print(failed.why, peak() - before)
"""


@pytest.mark.parametrize("bomb", [gzip_bomb, zstd_bomb, brotli_bomb])
def test_a_bomb_does_not_explode(bomb: Callable[[], bytes]) -> None:
    """A MiB that would unfold to hundreds or thousands takes a few times what may be kept."""
    text = base64.b64encode(bomb()).decode()

    command = [sys.executable, "-c", MEASURED]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT)

    why, grown = done.stdout.split()
    assert why == "too-large"
    assert int(grown) < 5 * MOST_BYTES


def test_a_frame_that_asks_for_a_huge_window_is_unreadable() -> None:
    """It would be reserved before a byte is known."""
    text = NODES.encode()
    block = (len(text) << 3 | 1).to_bytes(3, "little") + text  # the last one, stored
    small, huge = (bytes.fromhex("28b52ffd00") + bytes([window]) + block for window in (0x00, 0xA8))

    assert hydrate({"compressedNodes": base64.b64encode(small).decode()}) == [NODE]
    assert hydrate({"compressedNodes": base64.b64encode(huge).decode()}) == "unreadable"


def test_nodes_that_are_nested_too_deeply_are_unreadable() -> None:
    """Nothing limits the depth of what is compressed."""
    deep = b'{"a":{"inputs":' + b"[" * 400_000 + b"]" * 400_000 + b"}}"

    assert hydrate({"compressedNodes": packed(deep)}) == "unreadable"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
streams = st.builds(
    lambda start, rest: base64.b64encode(start + rest).decode(),
    st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"]),
    st.binary(max_size=60),
)


@given(
    nodes=anything,
    compressed=anything | streams | st.builds(lambda value: packed(json.dumps(value).encode()), anything),
)
@example(nodes=None, compressed=packed(b'{"a":{"id":"\\ud800"}}'))
def test_nothing_that_a_status_can_say_is_an_error(nodes: object, compressed: object) -> None:
    """There are nodes, none, or a reason."""
    found = hydrate({"nodes": nodes, "compressedNodes": compressed})

    assert found is None or isinstance(found, (list, Omitted))
