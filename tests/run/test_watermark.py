"""Tests of the acknowledged prefix."""

from __future__ import annotations

from hypothesis import given, strategies as st

from job.run.watermark import Position, Watermark


@given(st.data(), st.lists(st.booleans(), max_size=30))
def test_effects_are_those_of_the_longest_acknowledged_prefix(data: st.DataObject, done_at_once: list[bool]) -> None:
    """Whatever the order of acknowledgements, an effect takes place as soon as it and all before it are done."""
    watermark: Watermark[int] = Watermark()
    positions = [watermark.enter(number, done=done) for number, done in enumerate(done_at_once)]
    done = {number for number, at_once in enumerate(done_at_once) if at_once}
    taken = list(watermark.rise())
    waiting = data.draw(st.permutations([number for number in range(len(positions)) if number not in done]))
    while waiting:
        batch, waiting = waiting[: (size := data.draw(st.integers(1, len(waiting))))], waiting[size:]
        done.update(batch)
        taken += watermark.rise(positions[number] for number in batch)

        prefix = next(number for number in range(len(positions) + 1) if number not in done)
        assert taken == list(range(prefix))
        assert len(watermark) == len(positions) - prefix


def test_what_is_entered_late_waits_for_what_is_open() -> None:
    """A position that is done when it is entered has no effect before the open one in front of it."""
    watermark: Watermark[str] = Watermark()
    open_position: Position[str] = watermark.enter("message")
    watermark.enter("bookmark", done=True)

    assert list(watermark.rise()) == []
    assert list(watermark.rise([open_position])) == ["message", "bookmark"]
