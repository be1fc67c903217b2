"""Tests of the object as it passes through: byte for byte, less two members."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from job.payload.object import at_version
from job.ports import Event
from job.sources import frames

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
START = b'{"type":"MODIFIED","object":'

# What a JSON string can hold that a search for bytes could take for something else.
texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            '"managedFields":',
            '"managedFields":[]',
            f'"{APPLIED}":"x"',
            '"annotations":{',
            '"metadata":{',
            '\\"',
            "\\",
            "},",
            "\u2028<&>é😀",
        ]
    ),
)
names = st.one_of(
    texts, st.sampled_from(["managedFields", "annotations", "metadata", "labels", APPLIED, "aaa", "zzz", "phase"])
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
managed = st.lists(
    st.fixed_dictionaries(
        {
            "manager": texts,
            "fieldsV1": st.fixed_dictionaries({"f:metadata": st.dictionaries(names, values, max_size=2)}),
        }
    ),
    max_size=2,
)


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """An object with its members in any order: no server shuffles them, but custom resources may have any."""
    annotations = draw(st.dictionaries(names, texts, max_size=3))
    annotations.pop(APPLIED, None)
    if draw(st.booleans()):
        annotations[APPLIED] = draw(texts)
    metadata: dict[str, Any] = {
        "labels": draw(st.dictionaries(names, texts, max_size=3)),
        "annotations": _shuffled(draw, annotations),
        "managedFields": draw(managed),
        "name": draw(texts),
        "uid": "u",
        "resourceVersion": str(draw(st.integers(0, 2**128))),
        "finalizers": draw(st.lists(texts, max_size=2)),
    }
    left_out = draw(st.sets(st.sampled_from(["labels", "annotations", "managedFields", "finalizers"])))
    metadata = {name: value for name, value in metadata.items() if name not in left_out}
    # The API server writes labels before annotations in built-in types, and keys in order in custom ones.
    if draw(st.booleans()):
        metadata = dict(sorted(metadata.items()))
    top = draw(st.dictionaries(names, values, max_size=3))
    top |= {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": metadata, "spec": draw(values)}
    top["status"] = draw(st.none() | st.text(max_size=3) | st.fixed_dictionaries({"phase": texts}) | values)
    return _shuffled(draw, top) if draw(st.booleans()) else dict(sorted(top.items()))


def _shuffled(draw: st.DrawFn, members: dict[str, Any]) -> dict[str, Any]:
    return dict(draw(st.permutations(list(members.items()))))


def written(document: dict[str, Any], *, ascii_only: bool = False) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def passed(data: bytes) -> bytes:
    """The data of the event of a watch frame."""
    frame = frames.frame(START + data + b"}")
    assert isinstance(frame, Event)
    return frame.object.data


def expected(document: dict[str, Any]) -> dict[str, Any]:
    metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
    if "annotations" in metadata:
        metadata["annotations"] = {name: value for name, value in metadata["annotations"].items() if name != APPLIED}
    return {**document, "metadata": metadata}


def is_cut_from(short: bytes, long: bytes, cuts: int) -> bool:
    """Whether `short` is `long` without at most `cuts` pieces."""
    if not cuts:
        return short == long
    first = next(
        (place for place, (left, right) in enumerate(zip(short, long, strict=False)) if left != right), len(short)
    )
    return any(
        short[:kept] == long[:kept] and is_cut_from(short[kept:], long[kept + dropped :], cuts - 1)
        for kept in range(max(0, first - 2), first + 1)
        for dropped in range(len(long) - len(short) + 1)
    )


@settings(max_examples=400)
@given(objects(), st.booleans())
def test_two_members_are_dropped_and_nothing_else_is_touched(document: dict[str, Any], ascii_only: bool) -> None:
    """What is left is what a program would print that knows the order of keys and drops the two members."""
    data = written(document, ascii_only=ascii_only)
    try:
        data.decode()
    except UnicodeDecodeError:
        return

    assert passed(data) == written(expected(document), ascii_only=ascii_only)


@pytest.mark.parametrize(
    ("annotations", "left"),
    [
        ('{"%s":"x","b":"c"}', '{"b":"c"}'),
        ('{"a":"b","%s":"x","b":"c"}', '{"a":"b","b":"c"}'),
        ('{"a":"b","%s":"x"}', '{"a":"b"}'),
        ('{"%s":"x"}', "{}"),
        ('{"%s":""}', "{}"),
    ],
)
def test_the_applied_configuration_goes_with_one_comma(annotations: str, left: str) -> None:
    """In the first, a middle, the last, and the only place."""
    data = '{"metadata":{"annotations":%s,"uid":"u"}}'

    assert passed((data % annotations % APPLIED).encode()) == (data % left).encode()


@pytest.mark.parametrize(
    ("metadata", "left"),
    [
        ('{"managedFields":[{"a":1}],"uid":"u"}', '{"uid":"u"}'),
        ('{"name":"a","managedFields":[],"uid":"u"}', '{"name":"a","uid":"u"}'),
        ('{"uid":"u","managedFields":[{}]}', '{"uid":"u"}'),
        ('{"managedFields":[]}', "{}"),
    ],
)
def test_managed_fields_go_with_one_comma(metadata: str, left: str) -> None:
    """In the first, a middle, the last, and the only place."""
    assert passed(b'{"metadata":%b}' % metadata.encode()) == b'{"metadata":%b}' % left.encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"metadata":{"labels":{"managedFields":"x"},"uid":"u"}}',
        b'{"metadata":{"annotations":{"managedFields":"[]"},"uid":"u"}}',
        b'{"metadata":{"labels":{"kubectl.kubernetes.io/last-applied-configuration":"x"},"uid":"u"}}',
        b'{"metadata":{"uid":"u"},"spec":{"metadata":{"managedFields":[],"annotations":{"a":"b"}}}}',
        b'{"metadata":{"uid":"u"},"spec":{"managedFields":[1]},"number":1.50,"big":123456789012345678901234567890}',
        b'{"metadata":{"uid":"u"},"text":"\\u00e9\\/\\ud83d\\ude00"}',
        b'{"metadata":{"uid":"u"},"e":[1E5,-0,0.10]}',
    ],
)
def test_what_only_looks_like_the_two_members_stays(data: bytes) -> None:
    """Labels, annotations and templates of those names; and no number, escape or order is printed anew."""
    assert passed(data) == data


def test_a_label_of_the_same_name_as_the_annotation_stays() -> None:
    """Labels may stand before annotations."""
    member = b'"kubectl.kubernetes.io/last-applied-configuration":"x"'
    data = b'{"metadata":{"labels":{%b},"annotations":{%b},"uid":"u"}}' % (member, member)

    assert passed(data) == b'{"metadata":{"labels":{%b},"annotations":{},"uid":"u"}}' % member


@pytest.mark.parametrize("key", ["aaa", "\\u0061", '\\"metadata\\":{', "apiVersion2", "kind "])
@pytest.mark.parametrize("value", ['{"managedFields":[1]}', '"\\"managedFields\\":[1]"', "[{}]", "1.0"])
def test_members_before_metadata_are_walked_over(key: str, value: str) -> None:
    """A custom resource may have top-level keys that sort before it, with anything in them."""
    front = f'{{"{key}":{value},"apiVersion":"a/v1","kind":"K","metadata":{{'.encode()

    assert passed(front + b'"managedFields":[1],"uid":"u"}}') == front + b'"uid":"u"}}'


@settings(max_examples=400)
@given(objects(), st.booleans(), st.integers(1, 2**128))
def test_r8_another_version_is_written_in_and_nothing_else_is_touched(
    document: dict[str, Any], ascii_only: bool, version: int
) -> None:
    """As the API server does with the last state of an object that is deleted."""
    data = written(document, ascii_only=ascii_only)
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    document["metadata"]["resourceVersion"] = str(version)

    assert at_version(data, version) == written(document, ascii_only=ascii_only)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"resourceVersion":"%s"}',
        '{"annotations":{"resourceVersion":"7"},"resourceVersion":"%s","uid":"u"}',
        '{"labels":{"a":"\\"resourceVersion\\":\\"7\\""},"name":"a","resourceVersion":"%s","uid":"resourceVersion"}',
        '{"ownerReferences":[{"resourceVersion":"7"}],"resourceVersion":"%s"}',
    ],
)
@pytest.mark.parametrize(
    "front", ["", '"apiVersion":"a/v1","kind":"K",', '"aaa":{"metadata":{"resourceVersion":"7"}},']
)
def test_r8_only_the_objects_own_version_is_written(front: str, metadata: str) -> None:
    """Members of that name elsewhere stay, and strings that look like it."""
    data = f'{{{front}"metadata":{metadata},"status":{{"resourceVersion":"7"}}}}'

    assert at_version((data % "41").encode(), 1042) == (data % "1042").encode()


@pytest.mark.parametrize("data", [b"{}", b'{"metadata":{"uid":"u"}}', b'{"spec":{"resourceVersion":"1"}}'])
def test_r8_an_object_without_a_version_is_an_error(data: bytes) -> None:
    """No API server writes one."""
    with pytest.raises(ValueError, match="an object without"):
        at_version(data, 5)
