"""Tests of values that must not leave, by their names."""

from __future__ import annotations

import base64
import fnmatch
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from job.payload.nodes import MOST_BYTES, MOST_VALUES
from job.payload.redact import Redaction
from job.payload.summary import summary
from tests.payload.test_nodes import COMPRESSORS, FROM_GO, packed
from tests.payload.test_summary import every_kind, recorded, written

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "secrets.md"
SECRET = "hunter2"


def redacted(thing: object, *globs: str) -> Any:  # noqa: ANN401
    return json.loads(Redaction(globs)(written(thing)))


def within(status: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": "wf", "uid": "u"}, "status": status}


@pytest.mark.parametrize(
    ("held", "left"),
    [
        ({"value": SECRET}, {"value": "REDACTED"}),
        ({"default": SECRET}, {"default": "REDACTED"}),
        ({"value": SECRET, "default": SECRET}, {"value": "REDACTED", "default": "REDACTED"}),
        ({"enum": [SECRET, "b"]}, {"enum": ["REDACTED", "REDACTED"]}),
        ({"enum": SECRET}, {"enum": "REDACTED"}),
        ({"valueFrom": {"default": SECRET, "path": "/p"}}, {"valueFrom": {"default": "REDACTED", "path": "/p"}}),
        ({"raw": {"data": SECRET}, "path": "/p"}, {"raw": {"data": "REDACTED"}, "path": "/p"}),
        *(({"value": value}, {"value": "REDACTED"}) for value in (5, 1.5, None, True, {"a": [SECRET]}, [SECRET])),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        lambda named: {"spec": {"arguments": {"parameters": [named]}}},
        lambda named: {"spec": {"templates": [{"inputs": {"artifacts": [named]}}]}},
        lambda named: {"spec": {"templates": [{"dag": {"tasks": [{"arguments": {"parameters": [named]}}]}}]}},
        lambda named: {"spec": {"templates": [{"steps": [[{"arguments": {"parameters": [named]}}]]}]}},
        lambda named: {"spec": {"templates": [{"container": {"env": [named]}}]}},
        lambda named: {"spec": {"templates": [{"script": {"env": [named]}, "sidecars": [{"env": [named]}]}]}},
        lambda named: {"spec": {"templates": [{"http": {"headers": [named]}}]}},
        lambda named: {"status": {"storedTemplates": {"t": {"inputs": {"parameters": [named]}}}}},
        lambda named: {"status": {"storedWorkflowTemplateSpec": {"arguments": {"parameters": [named]}}}},
        lambda named: {"status": {"nodes": {"n": {"outputs": {"parameters": [named]}}}}},
        lambda named: {"status": {"outputs": {"artifacts": [named]}}},
        lambda named: {"nodes": [{"inputs": {"artifacts": [named]}}]},
        lambda named: [[named]],
        lambda named: named,
    ],
)
def test_values_are_replaced_wherever_a_named_thing_stands(
    place: Callable[[object], object], held: dict[str, Any], left: dict[str, Any]
) -> None:
    """Parameters, artifacts, environment and headers, in every place of a Workflow; and nothing beside them."""
    named = {"name": "db-Password", **held, "key": "k"}

    assert redacted(place(named), "*PASS*") == place({"name": "db-Password", **left, "key": "k"})
    assert redacted(place(named), "*PASS", "other") == place(named)


@pytest.mark.parametrize(
    ("glob", "name", "matches"),
    [
        ("token", "token", True),
        ("token", "TOKEN", True),
        ("TOKEN", "token", True),
        ("token", "my-token", False),
        ("token", "token\n", False),
        ("*token", "my-token", True),
        ("*token*", "a\ntoken\nb", True),
        ("t?ken", "taken", True),
        ("t[ao]ken", "TAKEN", True),
        ("t[!a]ken", "taken", False),
        ("*", "", True),
        ("a.b", "axb", False),
        ("é*", "ÉCOLE", True),
    ],
)
def test_a_glob_matches_the_whole_name_in_any_case(glob: str, name: str, matches: bool) -> None:
    """As a shell's."""
    value = redacted({"name": name, "value": "v"}, "nothing", glob)["value"]

    assert (value == "REDACTED") is matches


@pytest.mark.parametrize("name", ["my-secret-key", "API_TOKEN_2", "a]b", "a|b"])
def test_one_of_several_globs_is_enough(name: str) -> None:
    """Each is read by itself, however many stars and brackets it has."""
    globs = ["*secret*key*", "a[]]b", "*api*token*", "a|b"]

    assert redacted({"name": name, "value": SECRET}, *globs)["value"] == "REDACTED"
    assert redacted({"name": f"{name}, no more", "value": SECRET}, *globs[1::2])["value"] == SECRET


@pytest.mark.parametrize(
    "thing", [{"name": 5, "value": "v"}, {"name": None, "value": "v"}, {"name": ["a"], "value": 1}]
)
def test_a_name_is_a_string(thing: dict[str, Any]) -> None:
    """Anything else names nothing."""
    assert redacted(thing, "*") == thing


@pytest.mark.parametrize(
    "thing",
    [
        {"name": "a", "valueFrom": {"secretKeyRef": {"name": "a", "key": "k"}}},
        {"name": "a", "valueFrom": "default", "raw": "data"},
        {"name": "a", "valueFrom": None, "raw": None, "enum": []},
        {"name": "a", "phase": "Running", "message": "m"},
        {"outputs": {"exitCode": "0"}},
        {"outputs": "result"},
        {"results": {"result": "r"}},
    ],
)
def test_what_holds_no_value_stays(thing: dict[str, Any]) -> None:
    """A reference to a Kubernetes Secret above all; not a byte is touched."""
    data = written(thing)

    assert Redaction(["*"])(data) is data


@pytest.mark.parametrize(("glob", "left"), [("result", "REDACTED"), ("RES*", "REDACTED"), ("exit*", SECRET)])
def test_the_result_of_a_node_goes_by_the_name_result(glob: str, left: str) -> None:
    """It has no name of its own."""
    thing = within({"nodes": {"n": {"name": "n", "outputs": {"result": SECRET, "exitCode": "0"}}}})
    kept = within({"nodes": {"n": {"name": "n", "outputs": {"result": left, "exitCode": "0"}}}})

    assert redacted(thing, glob) == kept


def test_without_globs_nothing_is_done() -> None:
    """It is false, and the bytes are the very same, whatever they are."""
    data = b"no JSON"

    assert not Redaction([])
    assert Redaction(["a"])
    assert Redaction([])(data) is data


def test_numbers_and_order_stay() -> None:
    """A float keeps its digits, an integer beyond 64 bits its value."""
    start = b'{"z":[1.50,1E5,-0.0,1e400,123456789012345678901234567890,-9223372036854775809],"name":"a","value":'
    end = b',"a":0.10}'

    assert Redaction(["a"])(start + b"1.50" + end) == start + b'"REDACTED"' + end


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_compressed_nodes_are_redacted_inside(compress: Callable[[bytes], bytes]) -> None:
    """However they were compressed; they come back as gzip, the same from the same."""
    nodes = {"n": {"id": "n", "inputs": {"parameters": [{"name": "token", "value": SECRET}]}}}
    thing = within({"compressedNodes": packed(written(nodes), compress), "phase": "Running"})

    left = redacted(thing, "token")
    gzipped = base64.b64decode(left["status"].pop("compressedNodes"))

    assert left == within({"phase": "Running"})
    assert json.loads(gzip.decompress(gzipped)) == {
        "n": {"id": "n", "inputs": {"parameters": [{"name": "token", "value": "REDACTED"}]}}
    }
    assert gzipped[4:8] == bytes(4)  # the time at which it was made


@pytest.mark.parametrize("text", FROM_GO.values(), ids=FROM_GO)
def test_what_argos_libraries_compressed_is_redacted(text: str) -> None:
    """As the controller writes it; the summary of it says so, too."""
    data = Redaction(["pass*"])(written(within({"compressedNodes": text})))

    assert json.loads(summary(data, workflow=True))["nodes"][0]["outputs"] == {
        "parameters": [{"name": "password", "value": "REDACTED"}]
    }


def test_compressed_nodes_in_which_nothing_matches_stay_byte_for_byte() -> None:
    """They are not compressed anew, whatever matches elsewhere."""
    status = {"compressedNodes": FROM_GO["zstd, best"]}
    data = written(within(status))

    assert Redaction(["other"])(data) is data
    assert redacted({"spec": {"name": "a", "value": SECRET}, "status": status}, "a")["status"] == status


@pytest.mark.parametrize(
    "text",
    [
        SECRET,
        "H4sI" + SECRET,
        base64.b64encode(SECRET.encode()).decode(),
        packed(f'{{"n":{{"message":"{SECRET}"'.encode()),
        packed(b'{"a":"\\ud800"}'),
        packed(b"[" * 100_000 + b"]" * 100_000),
        packed(bytes(16_000_001)),
    ],
)
def test_compressed_nodes_that_cannot_be_read_are_replaced_as_a_whole(text: str) -> None:
    """They may hold anything."""
    assert redacted(within({"compressedNodes": text}), "a") == within({"compressedNodes": "REDACTED"})


@pytest.mark.parametrize(
    "status", [{"compressedNodes": ""}, {"compressedNodes": None}, {"compressedNodes": [5]}, "x", []]
)
def test_a_status_without_compressed_nodes_stays(status: object) -> None:
    """Of whatever type it is."""
    data = written({"status": status})

    assert Redaction(["a"])(data) is data


@pytest.mark.parametrize(
    "data", [b"", b"{", SECRET.encode(), b'{"a":"\xff"}', b'{"a":"\\ud800"}', b"[" * 100_000 + b"]" * 100_000]
)
def test_data_that_cannot_be_read_are_replaced_as_a_whole(data: bytes) -> None:
    """What cannot be searched is not let through."""
    assert Redaction(["a"])(data) == b'{"redacted":"unreadable"}'


MEASURED = """
import sys
from job.change import Resource
from job.payload import Content, Payload, renderer
from tests.payload.peak import peak

sys.setrecursionlimit(15_000)
thing = sys.stdin.buffer.read()
render = renderer(Content(Payload(sys.argv[1]), redact=("token",)), Resource("workflows", "v1alpha1", "argoproj.io"))
before = peak()
render(thing)
print(peak() - before)
"""


@pytest.mark.parametrize("payload", ["object", "summary"])
@pytest.mark.parametrize("value", ["[" * 4000 + "]" * 4000, '{"a":' * 2000 + "1" + "}" * 2000, '{"a":1}', "0"])
@pytest.mark.parametrize("share", [0.9, 30], ids=["kept", "refused"])
def test_small_values_in_great_numbers_do_not_explode(payload: str, value: str, share: float) -> None:
    """A few KB of compressed nodes may hold millions of lists: what is made of those fits into a small pod."""
    weight = sum(map(value.count, "[{,")) + 1
    count = min(int(share * MOST_VALUES / weight), MOST_BYTES // (len(value) + 1) - 10)
    nodes = gzip.compress(b'{"a":{"inputs":[' + ",".join([value] * count).encode() + b"]}}")
    thing = written({"metadata": {}, "status": {"compressedNodes": base64.b64encode(nodes).decode()}})

    command = [sys.executable, "-c", MEASURED, payload]
    done = subprocess.run(command, input=thing, capture_output=True, check=True, cwd=ROOT)

    assert int(done.stdout) < 8 * MOST_BYTES


DEEP = """
import sys
from job.payload.redact import Redaction

sys.setrecursionlimit(15_000)
named = b'{"name":"token","value":"hunter2"}'
for start, end in ((b"[", b"]"), (b'{"a":', b"}")):
    for levels in (9_000, 9_990):
        hidden = named.replace(b"hunter2", b"REDACTED")
        assert Redaction(["token"])(start * levels + named + end * levels) == start * levels + hidden + end * levels
        other = start * levels + b"1" + end * levels
        assert Redaction(["token"])(other) is other
    assert Redaction(["token"])(start * 20_000 + named + end * 20_000) == b'{"redacted":"unreadable"}'
print("done")
"""


def test_an_object_as_deep_as_the_api_server_takes_it_is_redacted() -> None:
    """Ten thousand levels, in a process that allows for them as the program does; deeper ones do not get through."""
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=True)

    assert done.stdout == "done\n"


@pytest.mark.parametrize("thing", [*recorded(), pytest.param(every_kind(), id="every kind")])
@pytest.mark.parametrize("globs", [["nothing"], ["p"], ["*"]])
def test_a_summary_may_be_made_before_or_after(thing: dict[str, Any], globs: list[str]) -> None:
    """Both orders say the same of real Workflows, and of one with everything in it."""
    data, redaction = written(thing), Redaction(globs)

    after, before = redaction(summary(data, workflow=True)), summary(redaction(data), workflow=True)

    assert json.loads(after) == json.loads(before)


names = st.sampled_from(["token", "TOKEN", "my-token", "day", "name"])
members = st.sampled_from(
    ["name", "value", "default", "enum", "valueFrom", "raw", "data", "outputs", "result", "inputs", "x"]
)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | names
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(members, inner, max_size=4)
        | st.builds(lambda name, rest: {**rest, "name": name}, names, st.dictionaries(members, inner, max_size=4))
    ),
    max_leaves=20,
)


def model(tree: Any, glob: str) -> Any:  # noqa: ANN401
    """The same rule, said once more, for a few levels only."""
    if isinstance(tree, list):
        return [model(value, glob) for value in tree]
    if not isinstance(tree, dict):
        return tree
    left = {name: model(value, glob) for name, value in tree.items()}
    if isinstance(tree.get("name"), str) and fnmatch.fnmatchcase(tree["name"].lower(), glob):
        enum = tree.get("enum")
        hidden = {"value": "REDACTED", "default": "REDACTED"}
        hidden |= {"enum": ["REDACTED"] * len(enum) if isinstance(enum, list) else "REDACTED"}  # type: ignore[dict-item]
        left |= {name: value for name, value in hidden.items() if name in tree}
        for holder, member in (("valueFrom", "default"), ("raw", "data")):
            if isinstance(left.get(holder), dict) and member in left[holder]:
                left[holder][member] = "REDACTED"
    if fnmatch.fnmatchcase("result", glob) and isinstance(left.get("outputs"), dict) and "result" in left["outputs"]:
        left["outputs"]["result"] = "REDACTED"
    return left


@settings(max_examples=400)
@given(trees, st.sampled_from(["token", "*token*", "result", "*"]))
def test_every_matching_value_is_replaced_and_nothing_else(tree: object, glob: str) -> None:
    """In any JSON; members stay in their order; and once more changes nothing."""
    redaction = Redaction([glob])

    left = redaction(json.dumps(tree).encode())

    assert json.dumps(json.loads(left)) == json.dumps(model(tree, glob))
    assert redaction(left) == left


@given(trees, st.booleans())
def test_where_nothing_matches_the_bytes_are_the_very_same(tree: object, ascii_only: bool) -> None:
    """However they are written."""
    data = json.dumps(tree, ensure_ascii=ascii_only).encode()

    assert Redaction(["nothing"])(data) is data


@given(trees, st.sampled_from(["token", "*"]))
def test_compressed_nodes_are_redacted_as_those_in_clear(tree: object, glob: str) -> None:
    """One rule for both forms."""
    left = redacted(within({"compressedNodes": packed(json.dumps(tree).encode())}), glob)

    inside = gzip.decompress(base64.b64decode(left["status"]["compressedNodes"]))
    assert json.loads(inside) == model(tree, glob)


def test_the_example_of_the_page_is_what_happens() -> None:
    """The command of docs/secrets.md turns the one object into the other."""
    page = PAGE.read_text()
    (command,) = re.findall(r"```console\n(.*)\n```", page)
    before, after = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))

    assert redacted(before, *re.findall(r"--redact '([^']*)'", command)) == after
