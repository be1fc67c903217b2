"""Label selectors in kubectl's grammar, evaluated here (pure).

They are never sent to the server: there, an object that leaves the selection looks deleted, and its true deletion is
not reported any more. The grammar is that of k8s.io/apimachinery/pkg/labels: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a
notin (b,c)`, `a`, `!a`, `a>1`, `a<1`, joined by commas, all of which must hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from job.errors import UsageError

Labels = Mapping[str, str]
Requirement = Callable[[Labels], bool]

_KEY = r"(?:[A-Za-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_REQUIREMENT = re.compile(
    rf"""\s*(?:
        (?P<absent>!\s*(?P<absent_key>{_KEY}))
      | (?P<key>{_KEY})
        (?: \s*(?P<compare>==|=|!=)\s*(?P<value>{_VALUE})
          | \s*(?P<order>[<>])\s*(?P<number>-?\d+)
          | \s+(?P<set>in|notin)\s*\((?P<values>\s*{_VALUE}\s*(?:,\s*{_VALUE}\s*)*)\)
        )?
    )\s*(?:,|\Z)""",
    re.VERBOSE,
)


class Selector:
    """Which objects enter."""

    def __init__(self, text: str = "") -> None:
        """Parse `text`; the empty text matches everything. Raises `UsageError`."""
        self.text = text.strip()
        self._requirements = list(_parse(self.text)) if self.text else []

    def __bool__(self) -> bool:
        return bool(self._requirements)

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels enters."""
        return all(holds(labels) for holds in self._requirements)


def _parse(text: str) -> list[Requirement]:
    requirements, position = [], 0
    while position < len(text):
        found = _REQUIREMENT.match(text, position)
        if not found:
            message = f"cannot read the label selector {text!r} from {text[position:]!r} on"
            raise UsageError(message)
        requirements.append(_requirement(found))
        position = found.end()
    if text.endswith(","):
        message = f"the label selector {text!r} ends with a comma"
        raise UsageError(message)
    return requirements


def _requirement(found: re.Match[str]) -> Requirement:
    if found["absent"]:
        absent = found["absent_key"]
        return lambda labels: absent not in labels
    key = found["key"]
    if found["compare"]:
        value, wanted = found["value"], found["compare"] != "!="
        return lambda labels: (labels.get(key) == value) is wanted
    if found["order"]:
        number, above = int(found["number"]), found["order"] == ">"
        return lambda labels: _ordered(labels.get(key), number, above=above)
    if found["set"]:
        values, inside = {value.strip() for value in found["values"].split(",")}, found["set"] == "in"
        return lambda labels: (labels.get(key) in values) is inside
    return lambda labels: key in labels


def _ordered(value: str | None, number: int, *, above: bool) -> bool:
    """Values that are not integers never match, as in Kubernetes."""
    if value is None or not re.fullmatch(r"[+-]?\d+", value):
        return False
    return int(value) > number if above else int(value) < number
