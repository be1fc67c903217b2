"""Tests of the lines of a body that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, strategies as st

from job.sources.lines import Broken, lines

LINES = st.lists(st.binary(min_size=1, max_size=30).filter(lambda line: b"\n" not in line and line.strip()), max_size=8)
CUTS = st.lists(st.integers(1, 40), max_size=20)


def arriving(body: bytes, sizes: list[int]) -> Callable[[], bytes]:
    """A `read` that gives so many bytes at a time, then all the rest, then the end."""
    pieces = []
    for size in sizes:
        pieces.append(body[:size])
        body = body[size:]
    pieces = [piece for piece in (*pieces, body) if piece]
    return lambda: pieces.pop(0) if pieces else b""


def chunked(body: bytes, sizes: list[int], extension: bytes = b"") -> bytes:
    """The body in chunks of so many bytes, the last as large as it has to be."""
    chunks = []
    for size in (*sizes, len(body)):
        if piece := body[:size]:
            chunks.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
        body = body[size:]
    return b"".join(chunks) + b"0\r\n\r\n"


@given(LINES, CUTS, CUTS, st.sampled_from([b"", b";name=value"]))
@example([b"a", b"b"], [2], [5, 1, 1], b"")
def test_lines_are_whole_whatever_the_chunks_and_the_reads(
    expected: list[bytes], chunks: list[int], reads: list[int], extension: bytes
) -> None:
    """Chunks cut anywhere, received in pieces that are cut anywhere else: the same lines, in their order."""
    body = b"".join(line + b"\n" for line in expected)
    received = lines(arriving(chunked(body, chunks, extension), reads), chunked=True)
    assert [line for block in received for line in block] == expected


@given(LINES, CUTS)
def test_without_chunks_the_connections_end_is_the_bodys(expected: list[bytes], reads: list[int]) -> None:
    """As a proxy of HTTP/1.0 passes it on."""
    body = b"".join(line + b"\n" for line in expected)
    assert [line for block in lines(arriving(body, reads), chunked=False) for line in block] == expected


def test_each_read_gives_what_it_completes() -> None:
    """A line is not held back until the next one comes."""
    given = iter([b"2\r\na\n\r\n", b"6\r\nb\nc\nd", b"d\r\n2\r\n\n\n\r\n", b"0\r\n\r\n"])
    received = lines(lambda: next(given), chunked=True)

    assert list(received) == [[b"a"], [b"b", b"c"], [b"dd"]]


def test_blank_lines_are_no_lines() -> None:
    """They are legal between frames."""
    assert list(lines(arriving(chunked(b"\n \r\na\n\n", []), []), chunked=True)) == [[b"a"]]


@given(LINES.filter(bool), CUTS, CUTS, st.data())
def test_an_answer_that_is_cut_off_is_broken(
    expected: list[bytes], chunks: list[int], reads: list[int], data: st.DataObject
) -> None:
    """Wherever it is cut; the lines before are given."""
    whole = chunked(b"".join(line + b"\n" for line in expected), chunks)
    cut = data.draw(st.integers(0, len(whole) - len(b"0\r\n\r\n")))
    received: list[bytes] = []

    def read() -> None:
        for block in lines(arriving(whole[:cut], reads), chunked=True):
            received.extend(block)

    with pytest.raises(Broken, match="in the middle of the answer"):
        read()
    assert received == expected[: len(received)]


@pytest.mark.parametrize("body", [b"3\r\na\nb\r\n0\r\n\r\n", b"1\r\na\r\n0\r\n\r\n"])
def test_an_end_within_a_line_is_broken(body: bytes) -> None:
    """A frame without its end is none."""
    with pytest.raises(Broken, match="in the middle of a line"):
        list(lines(arriving(body, []), chunked=True))
    with pytest.raises(Broken, match="in the middle of a line"):
        list(lines(arriving(b"a\nb", []), chunked=False))


@pytest.mark.parametrize("body", [b"<html>\r\n", b"-1\r\n", b"\r\n\r\n", b"1" * 2000])
def test_what_is_not_in_chunks_is_broken(body: bytes) -> None:
    """Not taken for a size."""
    with pytest.raises(Broken, match="a chunk"):
        list(lines(arriving(body, []), chunked=True))


def test_a_long_line_is_joined_once() -> None:
    """1.5 MB in pieces of 16 KB: what is received is not copied again with each piece."""
    line = b"x" * 1_500_000
    body = chunked(line + b"\n", [100_000] * 20)
    assert list(lines(arriving(body, [16_384] * 200), chunked=True)) == [[line]]
