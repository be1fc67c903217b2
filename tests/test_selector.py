"""Tests of label selectors."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from job.errors import UsageError
from job.selector import Selector

Labels = dict[str, str]

KEYS = ["a", "b", "app.kubernetes.io/name", "in", "notin"]
VALUES = ["", "x", "y", "1", "5", "12", "x.y-z_1"]
labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
blanks = st.sampled_from(["", " ", "  "])


@st.composite
def requirements(draw: st.DrawFn) -> str:
    """One requirement, with blanks where kubectl allows them."""
    key, first, second = draw(st.sampled_from(KEYS)), draw(st.sampled_from(VALUES)), draw(st.sampled_from(VALUES))

    def pad(text: str) -> str:
        return draw(blanks) + text + draw(blanks)

    form = draw(st.sampled_from(["=", "==", "!=", "in", "notin", "exists", "absent", ">", "<"]))
    match form:
        case "exists":
            return pad(key)
        case "absent":
            return pad(f"!{draw(blanks)}{key}")
        case "in" | "notin":
            return pad(f"{key} {form}{draw(blanks)}({pad(first)},{pad(second)})")
        case ">" | "<":
            return pad(f"{key}{pad(form)}{draw(st.integers(-3, 20))}")
    return pad(f"{key}{pad(form)}{first}")


def holds(requirement: str, found: Labels) -> bool:
    """What a requirement means, by the words of the Kubernetes documentation, one form after the other."""
    text = requirement.strip()
    if text.startswith("!"):
        return text[1:].strip() not in found
    if "(" in text:
        head, _, rest = text.partition("(")
        key, operator = head.split()
        has = key in found and found[key] in [value.strip() for value in rest.rstrip(") ").split(",")]
        return has if operator == "in" else not has
    operator = next((each for each in ("!=", "==", "=", ">", "<") if each in text), "")
    key, _, value = (part.strip() for part in text.partition(operator or "\0"))
    if operator in {">", "<"}:
        difference = int(found[key]) - int(value) if re.fullmatch("[0-9]+", found.get(key, "")) else 0
        return difference > 0 if operator == ">" else difference < 0
    return {"": key in found, "!=": found.get(key) != value}.get(operator, found.get(key) == value)


@given(st.lists(requirements(), min_size=1, max_size=3), labels)
def test_all_requirements_must_hold(parts: list[str], found: Labels) -> None:
    """As a second, plainer evaluator sees it."""
    assert Selector(",".join(parts)).matches(found) is all(holds(part, found) for part in parts)


@given(labels)
def test_no_selector_matches_everything(found: Labels) -> None:
    """The empty text, and blanks."""
    assert Selector("").matches(found)
    assert Selector("  ").matches(found)
    assert not Selector("")
    assert Selector("a")


@pytest.mark.parametrize(
    ("selector", "found", "matches"),
    [
        ("a=x", {"a": "x"}, True),
        ("a=x", {}, False),
        ("a=", {"a": ""}, True),
        ("a=", {}, False),
        ("a!=x", {}, True),
        ("a!=x", {"a": "y"}, True),
        ("a notin (x)", {}, True),
        ("a in (x, y)", {"a": "y"}, True),
        ("a in ()", {"a": ""}, True),
        ("a>5", {"a": "12"}, True),
        ("a>5", {"a": "5"}, False),
        ("a>5", {"a": "x"}, False),
        ("a>5", {}, False),
        ("a<5,a>1", {"a": "3"}, True),
        ("!a", {"a": ""}, False),
        ("workflows.argoproj.io/phase=Running,!b", {"workflows.argoproj.io/phase": "Running"}, True),
    ],
)
def test_examples_of_the_grammar(selector: str, found: Labels, matches: bool) -> None:
    """A missing label is not equal to anything, and not unequal to nothing."""
    assert Selector(selector).matches(found) is matches


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "a,",
        ",a",
        "a,,b",
        "a b",
        "=x",
        "a=x y",
        "a in x",
        "a in (x",
        "a>x",
        "a>",
        "a===b",
        "a=b=c",
        "!",
        "-a",
        "a/b/c",
    ],
)
def test_what_kubectl_refuses_is_refused(text: str) -> None:
    """A selector that is misread would select the wrong objects."""
    with pytest.raises(UsageError, match="selector"):
        Selector(text)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but a usage error comes of it."""
    with suppress(UsageError):
        Selector(text).matches({"a": "b"})
