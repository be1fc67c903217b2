"""What must be true of a sink and a checkpoint, given everything that the cluster ever did (P1 to P4)."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass

from job import checkpoint as codec
from job.change import Kind
from job.checkpoint import Checkpoint
from job.message import Message
from tests.fakes.source import Write
from tests.run.scene import Scene

Coverage = tuple[int, int]
"""Versions in (first, second] of which something may never be told."""


@dataclass(frozen=True, slots=True)
class Hole:
    """What a gap message says: of lives shorter than `spacing` versions, or of everything if that is 0."""

    first: int
    last: int
    spacing: int
    epoch: int

    def excuses(self, life: Coverage, version: int) -> bool:
        """Whether this version of a life, which is from its creation to its deletion, may be missing."""
        born, died = life
        if self.spacing:
            return self.first < born and died <= self.last and died - born < self.spacing
        return self.first < version <= self.last


NEVER = 1 << 128
"""A version after all others."""


@dataclass(frozen=True, slots=True)
class View:
    """What a latest-wins consumer knows of one uid: compared from left to right."""

    epoch: int
    deleted: bool
    version: int


def untold(scene: Scene) -> list[str]:
    """P1 and P4: what is neither stored, nor covered by a gap message, nor older than the first listing."""
    ids = {message.id for message in scene.messages}
    final = scene.saved
    suffix = f"~{final.epoch}" if final.epoch else ""
    holes = [hole for hole in _holes(scene.messages) if hole.epoch == final.epoch]
    holes.append(Hole(0, _first_listing(scene), 0, final.epoch))
    lives, wrong = _lives(scene), []
    for write in _in_scope(scene):
        if write.version > final.version or any(hole.excuses(lives[write.uid], write.version) for hole in holes):
            continue
        if f"{write.uid}/{_id(write)}{suffix}" not in ids:
            wrong.append(f"{write.kind} {write.uid} at {write.version} is untold")
    alive = {write.uid for write in _state(scene, final.version)}
    wrong += [
        f"the last state of {write.uid} is untold"
        for write in _state(scene, final.version)
        if f"{write.uid}/{write.version}{suffix}" not in ids
    ]
    wrong += [
        f"{uid} was known, and its deletion is untold"
        for uid in _ever_known(scene, final.epoch) - alive
        if f"{uid}/deleted{suffix}" not in ids and lives[uid][1] > _forgotten(scene, final.epoch)
    ]
    return wrong


def ahead(scene: Scene, data: bytes) -> list[str]:
    """P2: what a checkpoint says that is about to be written, and that the sink has not stored, or is not so."""
    saved = codec.decode(data)
    ids = {message.id for message in scene.messages}
    suffix = f"~{saved.epoch}" if saved.epoch else ""
    wrong = [
        f"{uid} at {entry.version} is known, and not stored"
        for uid, entry in saved.inventory.items()
        if entry.version and f"{uid}/{'deleted' if entry.deleted else entry.version}{suffix}" not in ids
    ]
    if saved.listed <= saved.version and saved.version and saved.whole:
        known = {uid: entry.version for uid, entry in saved.inventory.items() if not entry.deleted}
        true = {
            write.uid: write.version
            for write in _state(scene, saved.version)
            if write.uid in known or not _overlooked(scene, write)
        }
        if known != true:
            wrong.append(f"at {saved.version} the inventory is {known}, and the cluster was {true}")
    before = [codec.decode(value) for value in scene.store.values[-1:]]
    wrong += [
        f"from {_progress(last)} back to {_progress(saved)}" for last in before if _progress(last) > _progress(saved)
    ]
    return wrong


def ambiguous(messages: list[Message]) -> list[str]:
    """P3: ids that stand for two contents.

    A deletion that was only inferred may say less than one that was seen.
    """
    contents: dict[str, set[bytes]] = defaultdict(set)
    for message in messages:
        schema, data = message.attributes["dataschema"], message.data
        contents[f"{message.id} {schema}"].add(data)
    return [name for name, found in contents.items() if len(found) > 1]


def disordered(messages: list[Message]) -> list[str]:
    """P3: uids of which something was first stored after something newer."""
    newest: dict[str, View] = {}
    seen: set[str] = set()
    wrong = []
    for message in messages:
        if "k8suid" not in message.attributes or message.id in seen:
            continue
        seen.add(message.id)
        uid, view = message.attributes["k8suid"], _view(message)
        if uid in newest and _rank(view) < _rank(newest[uid]):
            wrong.append(f"{message.id} after {newest[uid]}")
        newest[uid] = view
    return wrong


def diverged(scene: Scene) -> list[str]:
    """How a consumer that believes the latest version differs from the cluster, after a quiet run.

    It treats what it was last told in the range of a gap, and not again since, as gone (R18). A gap that ends no later
    than another before it says nothing more of that, unless everything may be missing for the first time: it is about
    less of the same history, or the late repeat of a run that was overtaken.
    """
    views: dict[str, View] = {}
    newest_gap = (0, 0, False)
    doubted: set[str] = set()
    for message in scene.messages:
        if uid := message.attributes.get("k8suid"):
            views[uid] = max(views.get(uid, View(-1, False, 0)), _view(message), key=_rank)
            doubted.discard(uid)
        else:
            hole = _hole(message)
            extent = (hole.epoch, hole.last, not hole.first)
            if extent <= newest_gap:
                continue
            newest_gap = extent
            doubted |= {
                uid for uid, view in views.items() if view.epoch < hole.epoch or hole.first < view.version <= hole.last
            }
    believed = {uid: view.version for uid, view in views.items() if not view.deleted and uid not in doubted}
    true = {write.uid: write.version for write in _state(scene, scene.saved.version)}
    return [
        f"{uid} is believed to be at {believed.get(uid)}, and is at {true.get(uid)}"
        for uid in sorted(believed.keys() | true.keys())
        if believed.get(uid) != true.get(uid)
    ]


def gaps(messages: list[Message], epoch: int = 0) -> list[Coverage]:
    """The gaps that were announced in an epoch."""
    return [(hole.first, hole.last) for hole in _holes(messages) if hole.epoch == epoch]


def _holes(messages: list[Message]) -> list[Hole]:
    return [_hole(message) for message in messages if "k8suid" not in message.attributes]


def _hole(message: Message) -> Hole:
    gap = json.loads(message.data)
    first = 0 if gap["missing"] == "all" else int(gap["from"])
    assert (gap["missing"] == "short-lived") == ("spacing" in gap)
    return Hole(first, int(gap["to"]), int(gap.get("spacing", 0)), _view(message).epoch)


def _forgotten(scene: Scene, epoch: int) -> int:
    """Up to here a gap message has said that nobody knows any more who was there, and has told of all that was left."""
    told = [
        (json.loads(message.data), _hole(message)) for message in scene.messages if "k8suid" not in message.attributes
    ]
    return max((hole.last for gap, hole in told if gap["reason"] == "forgotten" and hole.epoch == epoch), default=0)


def _lives(scene: Scene) -> dict[str, Coverage]:
    """From its creation to its deletion, by uid."""
    lives: dict[str, Coverage] = {}
    for write in _in_scope(scene):
        born, _ = lives.get(write.uid, (write.version, NEVER))
        lives[write.uid] = (born, write.version if write.kind is Kind.DELETED else NEVER)
    return lives


def _overlooked(scene: Scene, write: Write) -> bool:
    """Whether a gap message has said that this life may be missing: one that was too short for the samples."""
    life = _lives(scene)[write.uid]
    return any(hole.spacing and hole.excuses(life, write.version) for hole in _holes(scene.messages))


def _first_listing(scene: Scene) -> int:
    """The version of the first listing of which anything was saved: before it, no history was promised."""
    for value in scene.store.values:
        saved = codec.decode(value)
        if saved.listed or saved.version:
            return saved.listed or saved.version
    return 0


def _ever_known(scene: Scene, epoch: int) -> set[str]:
    return {
        uid
        for value in scene.store.values
        for saved in [codec.decode(value)]
        if saved.epoch == epoch
        for uid, entry in saved.inventory.items()
        if not entry.deleted
    }


def _in_scope(scene: Scene) -> list[Write]:
    return [write for write in scene.cluster.writes if scene.namespace in {"", write.namespace}]


def _state(scene: Scene, version: int) -> list[Write]:
    return [write for write in scene.cluster.state(version).values() if scene.namespace in {"", write.namespace}]


def _id(write: Write) -> str:
    return "deleted" if write.kind is Kind.DELETED else str(write.version)


def _view(message: Message) -> View:
    _, _, epoch = message.id.partition("~")
    deleted = message.attributes["type"].endswith(".deleted")
    return View(int(epoch or 0), deleted, int(message.attributes.get("resourceversion", 0)))


def _rank(view: View) -> tuple[int, bool, int]:
    return view.epoch, view.deleted, view.version


def _progress(saved: Checkpoint) -> tuple[int, int, int]:
    return saved.epoch, saved.version, saved.listed
