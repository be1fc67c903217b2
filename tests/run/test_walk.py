"""Tests of the walk: what happened between two versions, found by looking at some of those in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings, strategies as st

from job.change import Kind, Object
from job.ports import Event
from job.run.walk import NONE, Clues, Inexact, Piece, Span, State, chain, closer, crowded, events, lives, spans

PATIENT = settings(max_examples=400)
Told = tuple[int, Kind, str]
"""A version, what happened at it, and to which uid."""


@dataclass
class Past:
    """What was written of a few names, and who has looked at it when."""

    version: int = 10
    written: list[Event] = field(default_factory=list)
    looked: list[tuple[str, int]] = field(default_factory=list)

    def happen(self, what: str) -> None:
        """One version: `+a` writes object a, `-a` deletes it if there is one, anything else is about another one."""
        self.version += 1
        kind, name = what[0], what[1:]
        alive = self.state(self.version).get(name)
        if kind == "+":
            uid = alive.uid if alive else f"{name}{self.version}"
            thing = Object(uid, "", name, self.version)
            self.written.append(Event(Kind.MODIFIED if alive else Kind.ADDED, thing))
        elif kind == "-" and alive:
            self.written.append(Event(Kind.DELETED, Object(alive.uid, "", name, self.version)))

    def state(self, version: int) -> dict[str, Object]:
        """What existed at a version."""
        alive: dict[str, Object] = {}
        for each in self.written:
            if each.object.version <= version:
                alive.pop(each.object.name, None)
                if each.kind is not Kind.DELETED:
                    alive[each.object.name] = each.object
        return alive

    def look(self, name: str, version: int) -> Object | None:
        self.looked.append((name, version))
        return self.state(version).get(name)

    def walked(self, found: Iterable[tuple[Object, Span]], clues: Clues = NONE) -> list[Event]:
        """The events of some spans, each name by itself."""
        return [
            each
            for thing, span in found
            for each in events(span, lambda version, whole, name=thing.name: self.look(name, version), clues)
        ]

    def counts(self, versions: Iterable[int]) -> dict[int, int]:
        return {version: len(self.state(version)) for version in versions}

    def deletions(self, start: int, end: int) -> list[int]:
        versions = [each.object.version for each in self.written if each.kind is Kind.DELETED]
        return [version for version in versions if start < version <= end]

    def piece(self, start: int, end: int) -> Piece:
        return Piece(start, self.state(start), end, self.state(end))

    def between(self, start: int, end: int, counted: Iterable[int] = ()) -> list[Told]:
        """What must be told of that: all but the lives that no end, look or count has fallen upon."""
        at = [self.state(version) for version in {start, end, *counted}]
        looks = [self.state(version).get(name) for name, version in self.looked]
        seen = {thing.uid for things in (looks, *(state.values() for state in at)) for thing in things if thing}
        return [told(each) for each in self.written if start < each.object.version <= end and each.object.uid in seen]


def told(each: Event) -> Told:
    return each.object.version, each.kind, each.object.uid


@st.composite
def pasts(draw: st.DrawFn, names: str = "abc") -> tuple[Past, int, int]:
    """A history of some names, and two of its versions."""
    past = Past()
    steps = [*(f"{sign}{name}" for sign in "++-" for name in names), " "]
    for what in draw(st.lists(st.sampled_from(steps), min_size=1, max_size=40)):
        past.happen(what)
    start = draw(st.integers(10, past.version - 1))
    return past, start, draw(st.integers(start + 1, past.version))


@st.composite
def clues(draw: st.DrawFn, past: Past, start: int, end: int) -> Clues:
    """What may be known of a piece before anybody looks: some states, and where there was one less than before."""
    versions = draw(st.sets(st.integers(start + 1, end - 1), max_size=3)) if end > start + 1 else set()
    falls = past.deletions(start, end) if draw(st.booleans()) else None
    return Clues({version: past.state(version) for version in versions}, falls)


@PATIENT
@given(pasts("ab"), st.data())
def test_r11_all_of_a_name_is_found_but_lives_that_nobody_looked_at(
    made: tuple[Past, int, int], data: st.DataObject
) -> None:
    """Created, changed, deleted, created again: each with its own version, the newest first, and for few looks."""
    past, start, end = made
    known = data.draw(clues(past, start, end))
    span = Span(start, past.state(start).get("a"), end, past.state(end).get("a"))

    found = [told(each) for each in events(span, lambda version, whole: past.look("a", version), known)]

    assert found[::-1] == [each for each in past.between(start, end) if each[2].startswith("a")]
    deletions = sum(kind is Kind.DELETED for _, kind, _ in found)
    assert len(past.looked) <= len(found) + deletions * (1 + (end - start).bit_length())
    assert all(start < version < end for _, version in past.looked)


@PATIENT
@given(pasts(), st.data())
def test_r11_a_count_that_falls_is_a_deletion(made: tuple[Past, int, int], data: st.DataObject) -> None:
    """Each of them, if all versions were counted at which nothing is known to have been written."""
    past, start, end = made
    known = {each.object.version: each.kind for each in past.written if data.draw(st.booleans())}
    counts = past.counts(version for version in range(start + 1, end) if version not in known)

    assert past.piece(start, end).falls(counts, known) == past.deletions(start, end)


@PATIENT
@given(pasts("a"))
def test_r11_a_chain_goes_back_to_a_creation_or_to_the_start(made: tuple[Past, int, int]) -> None:
    """From the end: every write of who has the name there; what is left is what was before that."""
    past, start, end = made
    span = Span(start, past.state(start).get("a"), end, past.state(end).get("a"))

    found, rest = chain(span, lambda version, whole: past.look("a", version))

    whole = [told(each) for each in past.written if start < each.object.version <= end]
    assert [told(each) for each in found][::-1] == whole[len(whole) - len(found) :]
    assert not span.after or {each.object.uid for each in found} <= {span.after.uid}
    assert (rest.start, rest.before, rest.after) == (start, span.before, past.state(rest.end).get("a"))
    assert rest.after is None or rest.after == rest.before
    assert rest.ended == (rest.before is not None and rest.after is None)


def test_r11_falls_that_are_no_deletions_are_noticed() -> None:
    """The object that they would be about is there behind them, was not there before them, or there is none."""
    past = Past()
    for what in ("+a", " ", " ", " ", "-a", "+a", "-a"):
        past.happen(what)
    span = Span(11, past.state(11)["a"], 17, None)
    for falls in ([], [17], [16]):
        with pytest.raises(Inexact):
            past.walked([(past.state(11)["a"], span)], Clues(falls=falls))


def test_r11_predecessors_are_read_whole_and_halves_are_not() -> None:
    """What a look finds is told if it is a predecessor; a look for a deletion only asks whether it is there."""
    past = Past()
    for what in ("+a", "+a", " ", "+a", " ", " ", "-a", " "):
        past.happen(what)
    asked: dict[int, bool] = {}

    def look(version: int, *, whole: bool) -> Object | None:
        asked[version] = whole
        return past.look("a", version)

    list(events(Span(11, past.state(11)["a"], 18, None), look))
    assert {version for version, whole in asked.items() if whole} <= {13, 16}
    assert not all(asked.values())

    asked.clear()
    list(events(Span(11, past.state(11)["a"], 18, None), look, Clues(falls=[17])))
    assert asked == {16: True, 13: True}


def test_r11_the_object_of_a_deletion_is_the_one_that_was_found() -> None:
    """With its data, if it has any, and another version."""
    last = Object("uid", "argo", "a", 7, "Running", {"colour": "blue"}, b"{}")
    (deletion,) = events(Span(7, last, 8, None), lambda version, whole: pytest.fail("there is nothing to look at"))

    assert deletion == Event(Kind.DELETED, Object("uid", "argo", "a", 8, "Running", {"colour": "blue"}, b"{}"))


@PATIENT
@given(pasts())
def test_r11_the_ends_of_a_piece_show_all_but_lives_within_it(made: tuple[Past, int, int]) -> None:
    """Of names with a difference the whole span is walked; names without one were not written, or lived within."""
    past, start, end = made
    piece = past.piece(start, end)

    found = past.walked(spans(piece))

    assert sorted(map(told, found)) == past.between(start, end)
    assert piece.uids == {thing.uid for state in (piece.before, piece.after) for thing in state.values()}


@PATIENT
@given(pasts(), st.data())
def test_r11_a_look_within_a_piece_shows_who_lives_then(made: tuple[Past, int, int], data: st.DataObject) -> None:
    """From their beginning to their end, what they wrote is found."""
    past, start, end = made
    version = data.draw(st.integers(start, end))
    piece, state = past.piece(start, end), past.state(version)

    known = piece.uids

    found = {told(each) for each in past.walked(lives(piece, known, {version: state}))}

    new = {thing.uid for thing in state.values()} - piece.uids
    assert found >= {each for each in past.between(start, end, [version]) if each[2] in new}
    assert known == piece.uids | new
    assert list(lives(piece, known, {version: state})) == []


def explained(past: Past, piece: Piece, counts: dict[int, int], clues: Clues) -> set[Told]:
    """What is found by looking at where it is crowded, until it is not."""
    found = past.walked(spans(piece), clues)
    known = piece.uids | {each.object.uid for each in found}
    found += past.walked(lives(piece, known, clues.states), clues)
    while versions := crowded(counts, len(piece.before), {told(each): each for each in found}.values()):
        new = list(lives(piece, known, {version: past.state(version) for version in versions}))
        assert new, f"at {versions} nobody is new"
        found += past.walked(new, clues)
    return {told(each) for each in found}


@PATIENT
@given(pasts(), st.data())
def test_r11_with_all_versions_counted_nothing_is_missed(made: tuple[Past, int, int], data: st.DataObject) -> None:
    """Each look at a version with more than is known finds somebody, and in the end everything is explained."""
    past, start, end = made
    counts = past.counts(range(start + 1, end))
    known = data.draw(clues(past, start, end))

    assert explained(past, past.piece(start, end), counts, known) == set(past.between(start, end, range(start, end)))


@PATIENT
@given(pasts("abcdef"), st.integers(2, 6))
def test_r11_with_some_versions_counted_no_life_is_missed_that_is_long_enough(
    made: tuple[Past, int, int], spacing: int
) -> None:
    """Who lives for as many versions as the counts are apart is there when it is counted."""
    past, start, end = made
    counts = past.counts(range(start + spacing, end, spacing))

    assert explained(past, past.piece(start, end), counts, NONE) >= set(past.between(start, end, counts))


@PATIENT
@given(pasts(), st.data())
def test_r11_a_count_that_is_too_low_is_noticed(made: tuple[Past, int, int], data: st.DataObject) -> None:
    """There cannot be fewer than are known to have lived then."""
    past, start, end = made
    version = data.draw(st.integers(start + 1, end))
    counts = {version: len(past.state(version)) - 1}
    everything = [each for each in past.written if start < each.object.version <= end]

    with pytest.raises(Inexact):
        crowded(counts, len(past.state(start)), everything)


def test_r11_the_first_of_the_fullest_versions_of_each_stretch_is_looked_at() -> None:
    """A look at one version of a crowd shows all who are there."""
    counts = {11: 1, 12: 2, 13: 3, 14: 3, 15: 1, 16: 2, 17: 0, 18: 1}

    assert crowded(counts, 1, [Event(Kind.DELETED, Object("uid", "", "a", 17))]) == [13, 16, 18]


def test_r11_what_is_known_explains_a_count() -> None:
    """A change makes nobody more; a creation and a deletion do, from their own version on."""
    written = [(Kind.MODIFIED, 12), (Kind.ADDED, 13), (Kind.DELETED, 15)]
    known = [Event(kind, Object("uid", "", "a", version)) for kind, version in written]

    assert crowded({12: 4, 13: 5, 14: 5, 15: 4}, 4, known) == []
    assert crowded({12: 5, 13: 5, 14: 5, 15: 5}, 4, known) == [12, 15]


STATE: State = {}


@pytest.mark.parametrize(
    ("counted", "edges", "more"),
    [
        ([], [], []),
        ([], [15], [15]),
        ([14], [12], [12]),
        ([14], [14], [12]),
        ([14], [15], [17]),
        ([14], [20], [17]),
        ([14], [12, 13, 15, 16], [12, 17]),
        ([11, 12], [11, 12], []),
    ],
)
def test_r11_closer_looks_halve_the_stretches_in_which_lives_begin_and_end(
    counted: list[int], edges: list[int], more: list[int]
) -> None:
    """A stretch is what lies between two counts, or a count and an end of the piece; short ones are known."""
    assert closer(Piece(10, STATE, 20, STATE), counted, edges) == more
