"""The ground truth that writers keep, and the comparison of a sink with it."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Set as AbstractSet
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

Message = dict[str, Any]


@dataclass(slots=True)
class Life:
    """One object, as its writer knows it."""

    versions: list[int] = field(default_factory=list)
    deleted: bool = False


class Truth:
    """uid -> what the API server confirmed to the writer of that object. Filled by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.lives: dict[str, Life] = defaultdict(Life)
        self.writes = 0

    def wrote(self, answer: dict[str, Any]) -> None:
        """The server answered a create or a patch with this object."""
        with self._lock:
            self.writes += 1
            versions = self.lives[answer["metadata"]["uid"]].versions
            version = int(answer["metadata"]["resourceVersion"])
            if not versions or version > versions[-1]:  # a patch that changes nothing makes no version
                versions.append(version)

    def deleted(self, uid: str) -> None:
        """The server confirmed the deletion."""
        with self._lock:
            self.writes += 1
            self.lives[uid].deleted = True


def stored(file: Path) -> list[Message]:
    """The messages of a `file:` sink; a line that is being written, or was when a run was killed, is none yet."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return [json.loads(line) for line in lines]


def in_order(messages: list[Message]) -> list[Message]:
    """As a consumer sorts what came without an order: by version, deletions last."""
    return sorted(messages, key=lambda message: (message["type"].endswith(".deleted"), _version(message)))


def gaps(messages: list[Message]) -> list[Message]:
    """The gap messages."""
    return [message for message in messages if message["type"].endswith(".gap")]


def told(messages: list[Message]) -> dict[str, list[Message]]:
    """uid -> its messages, in the order of the sink, repeats left out."""
    seen: set[str] = set()
    lives: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        if "k8suid" in message and message["id"] not in seen:
            seen.add(message["id"])
            lives[message["k8suid"]].append(message)
    return lives


def untold_versions(truth: Truth, messages: list[Message]) -> list[str]:
    """How the sink differs from the truth, where the whole history could be watched.

    Every version in order, every deletion last. Only what lies before the first listing may be missing: older versions
    of an object that is told as `initial`, and whole lives that ended before.
    """
    watched_from = min(int(message["resourceversion"]) for message in messages if message["provenance"] == "observed")
    lives = told(messages)
    wrong = []
    for uid, life in truth.lives.items():
        heard = [message for message in lives.get(uid, []) if "resourceversion" in message]
        versions = [int(message["resourceversion"]) for message in heard]
        deletions = [message for message in lives.get(uid, []) if message["type"].endswith(".deleted")]
        if deletions:
            versions = versions[:-1]
        wanted = life.versions
        if heard and heard[0]["provenance"] == "initial":
            wanted = [version for version in wanted if version >= versions[0]]
        elif not heard and life.deleted and life.versions[-1] < watched_from:
            continue
        if versions != wanted:
            wrong.append(f"{uid}: told {versions}, written {wanted}")
        wrong.extend(_wrong_end(uid, life, lives.get(uid, [])))
    wrong.extend(f"{uid}: told, and never written" for uid in lives.keys() - truth.lives.keys())
    return wrong


def wrong_ends(truth: Truth, messages: list[Message]) -> list[str]:
    """How the sink differs from the truth in last states and deletions: what must hold whatever history was lost.

    A consumer of gaps is looked at: what it was told last in the range of a gap, and not again since, is gone (R18).
    """
    lives = told(messages)
    places = {message["id"]: place for place, message in enumerate(messages)}
    holes = [(places[gap["id"]], int(gap["data"]["from"]), int(gap["data"]["to"])) for gap in gaps(messages)]
    wrong = []
    for uid, life in truth.lives.items():
        heard = lives.get(uid, [])
        if life.deleted and not heard:
            continue  # it lived unseen
        if life.deleted and not heard[-1]["type"].endswith(".deleted"):
            told_last, last = places[heard[-1]["id"]], int(heard[-1]["resourceversion"])
            if any(told_last < place and start < last <= end for place, start, end in holes):
                continue  # it ended unseen
        versions = [int(message["resourceversion"]) for message in heard if "resourceversion" in message]
        if versions != sorted(versions):
            wrong.append(f"{uid}: told out of order: {versions}")
        if not life.deleted and (not versions or versions[-1] != life.versions[-1]):
            wrong.append(f"{uid}: last told {versions[-1:]}, last written {life.versions[-1]}")
        wrong.extend(_wrong_end(uid, life, heard))
    wrong.extend(f"{uid}: told, and never written" for uid in lives.keys() - truth.lives.keys())
    return wrong


def short_lived(reference: list[Message], gap: Message) -> set[str]:
    """The lives of which a gap of samples need not tell: inside it, and shorter than its spacing."""
    start, end, spacing = (int(gap["data"][name]) for name in ("from", "to", "spacing"))
    return {
        uid
        for uid, life in told(reference).items()
        if _is_deletion(life[-1])
        and start < _version(life[0])
        and _version(life[-1]) <= end
        and _version(life[-1]) - _version(life[0]) < spacing
    }


def differences(
    reference: list[Message], messages: list[Message], *, excused: AbstractSet[str] = frozenset()
) -> list[str]:
    """How a sink differs from that of a job which watched all the time and began no later. Gaps are not looked at.

    Each message comes once, for each object in the same order, and says the same. Only what lies before the first
    listing may be missing, as in `untold_versions`, and the beginning or the end, or both, of the lives `excused`.
    """
    versions = [_version(message) for message in messages if "k8suid" in message and message["provenance"] != "initial"]
    watched_from = min(versions, default=0)
    heard, known = told(messages), told(reference)
    counts = Counter(message["id"] for message in messages if "k8suid" in message)
    wrong = [f"{name}: told {count} times" for name, count in counts.items() if count > 1]
    for uid, life in known.items():
        mine = heard.get(uid, [])
        wanted = life
        if mine and mine[0]["provenance"] == "initial":
            wanted = [each for each in life if _is_deletion(each) or _version(each) >= _version(mine[0])]
        elif not mine and _is_deletion(life[-1]) and _version(life[-1]) < watched_from:
            continue
        wrong.extend(_other_course(uid, _names(wanted), _names(mine), excused=uid in excused))
        copies = {message["id"]: message for message in life}
        wrong.extend(
            f"{message['id']}: differs in {', '.join(parts)}"
            for message in mine
            if message["id"] in copies and (parts := list(_other_parts(copies[message["id"]], message)))
        )
    wrong.extend(f"{uid}: told, and unknown to the reference" for uid in heard.keys() - known.keys())
    return wrong


def disorder(messages: list[Message]) -> list[str]:
    """Where the history, as the watch shows it and etcd has it, turns back: a sink with one lane keeps its order."""
    history = [message for message in messages if message["provenance"] in {"observed", "recovered"}]
    return [
        f"{after['id']} at {_version(after)} comes after {before['id']} at {_version(before)}"
        for before, after in pairwise(history)
        if _version(after) <= _version(before)
    ]


def _other_course(uid: str, wanted: list[str], mine: list[str], *, excused: bool) -> Iterator[str]:
    lost = [name for name in wanted if name not in mine]
    more = [name for name in mine if name not in wanted]
    common = [name for name in wanted if name in mine]
    if excused and common:
        first = wanted.index(common[0])
        lost = [name for name in wanted[first : wanted.index(common[-1])] if name not in mine]
    if lost and (common or not excused):
        yield f"{uid}: not told: {', '.join(lost)}"
    if more:
        yield f"{uid}: told, and unknown to the reference: {', '.join(more)}"
    if common != [name for name in mine if name in wanted]:
        yield f"{uid}: told out of order: {', '.join(mine)}"


def _other_parts(message: Message, copy: Message) -> Iterator[str]:
    """The attributes in which two copies differ and must not: each says for itself how it is known."""
    own = {"provenance"}
    if "initial" in {message["provenance"], copy["provenance"]}:
        own.add("type")  # a listing cannot tell what was added from what was modified
    for name in sorted((message.keys() | copy.keys()) - own):
        if message.get(name) != copy.get(name):
            yield name


def _names(messages: list[Message]) -> list[str]:
    return [message["id"] for message in messages]


def _is_deletion(message: Message) -> bool:
    return bool(message["type"].endswith(".deleted"))


def _version(message: Message) -> int:
    return int(message.get("resourceversion", 0))


def _wrong_end(uid: str, life: Life, heard: list[Message]) -> list[str]:
    deletions = [place for place, message in enumerate(heard) if message["type"].endswith(".deleted")]
    if life.deleted and deletions != [len(heard) - 1]:
        return [f"{uid}: deleted, and told so at {deletions} of {len(heard)} messages"]
    if not life.deleted and deletions:
        return [f"{uid}: alive, and told to be deleted"]
    return []
