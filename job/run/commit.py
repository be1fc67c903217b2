"""What the sink has acknowledged, and its saving.

The version and the inventory move together, by effects that take place only below the watermark (P2). A save replaces
exactly the bytes that were loaded or saved before; who finds other bytes there has lost the race, and stops (R13).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress

import msgspec

from job import checkpoint as codec
from job.change import Known
from job.checkpoint import Checkpoint, RunRecord
from job.errors import CheckpointUnusable, Superseded, Unavailable
from job.logs import event
from job.ports import Conflict, Identity, Store, Stored
from job.run.background import in_background
from job.run.deadline import SAVE
from job.run.watermark import Position, Watermark

SAVE_INTERVAL = 10.0
"""Seconds between two saves of one run; object stores take about one write a second and bill each."""
_FIRST_PAUSE = 0.25
"""Seconds before a save is tried again, doubled each time."""
NEARLY = 0.8
"""The part of a store's room that a checkpoint may fill without a word."""
_SHORTEST = 0.1
"""Seconds for an attempt, also where none are left: a run that wakes up late finds out that it has a successor."""

log = logging.getLogger(__name__)


class Effect(msgspec.Struct, frozen=True, gc=False):
    """What becomes true when a position is acknowledged."""

    version: int = 0
    """Everything up to here is acknowledged."""
    since: str | None = None
    """When `version` was last known to be the present, where that is not the moment of the save; empty: unknown."""
    announced: int = 0
    """What is lost up to here was announced by a gap message."""
    uid: str = ""
    known: Known | None = None
    """What is known of `uid` now; None: nothing any more."""
    inventory: dict[str, Known] | None = None
    """Replaces the inventory as a whole."""
    audited_at: str = ""
    """When the inventory was compared with a listing: it lacks nothing then."""
    identity: Identity | None = None
    """The cluster and the definition that the inventory is about now."""
    counted: tuple[str, str] | None = None
    """The kind and provenance of a published message."""


class Ledger:
    """The acknowledged state of a run. Entered by the main thread, acknowledged by any."""

    def __init__(self, start: Checkpoint) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._watermark: Watermark[Effect] = Watermark()
        self._inventory = dict(start.inventory)
        self._tombstones = {uid: known.version for uid, known in start.inventory.items() if known.deleted}
        self._identity = start.identity
        self._whole = start.whole
        self.audited_at = start.audited_at
        """When the inventory and the server's past were last found to agree."""
        self.epoch = start.epoch
        """How often the cluster was rewound."""
        self.version = start.version
        self.listed = start.listed
        self.listed_for = start.listed_for
        self.announced = start.announced
        self.gaps = start.gaps
        """How many gap messages there were; what is told again behind another one is no repeat."""
        self._since: str | None = None
        self.moves = 0
        """Goes up with every effect: tells whether there is anything to save."""
        self.published: Counter[str] = Counter()
        self.provenances: Counter[str] = Counter()

    def enter(self, effect: Effect, *, done: bool = False) -> Position[Effect]:
        """The next position of the stream."""
        return self._watermark.enter(effect, done=done)

    def acknowledge(self, positions: Iterable[Position[Effect]] = ()) -> None:
        """The messages of these positions are stored."""
        with self._lock:
            if self._closed:
                return
            for effect in self._watermark.rise(positions):
                self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        self.moves += 1
        if effect.inventory is not None:
            self._inventory = dict(effect.inventory)
            self._tombstones.clear()
        self._whole = self._whole or effect.inventory is not None or bool(effect.audited_at)
        if effect.uid:
            if effect.known is None:
                self._inventory.pop(effect.uid, None)
            else:
                self._inventory[effect.uid] = effect.known
                if effect.known.deleted:
                    self._tombstones[effect.uid] = effect.known.version
        self.announced = effect.announced or self.announced
        if effect.version:
            self.version, self._since = effect.version, effect.since
            if self._tombstones:
                self._bury()
        if effect.audited_at:
            self.audited_at, self.listed_for = effect.audited_at, ""
        self._identity = effect.identity or self._identity
        if effect.counted:
            kind, provenance = effect.counted
            self.published[kind] += 1
            self.provenances[provenance] += 1

    def _bury(self) -> None:
        """Drop the tombstones that the version has passed: no watch from it can bring their objects back (R2)."""
        for uid in [uid for uid, version in self._tombstones.items() if version <= self.version]:
            del self._tombstones[uid], self._inventory[uid]

    def close(self) -> None:
        """Count nothing more: what is acknowledged during the last save is not in it, and will be told again."""
        with self._lock:
            self._closed = True

    def inventory(self) -> dict[str, Known]:
        """A copy of what is acknowledged."""
        with self._lock:
            return dict(self._inventory)

    def foresee(self, new: dict[str, Known], *, listed: int, listed_for: str, announced: int) -> None:
        """Enter what a listing is about to tell of, behind a gap if it has a reason for one. Nothing is in flight."""
        with self._lock:
            self._inventory |= new
            self.listed, self.listed_for, self._whole = listed, listed_for, True
            self.announced = announced or self.announced
            self.gaps += bool(listed_for)
            self.moves += 1

    def rewind(self, inventory: dict[str, Known]) -> None:
        """Begin another epoch with what is left of the inventory. Nothing is in flight."""
        with self._lock:
            self._inventory = dict(inventory)
            self._tombstones.clear()
            self.epoch += 1
            self.moves += 1
            self.version = self.listed = self.announced = 0
            self._since = None

    def onto(self, saved: Checkpoint, now: str) -> tuple[Checkpoint, int]:
        """What was `saved` last, with all that is acknowledged by now, and the number of moves this includes."""
        with self._lock:
            # A version that has not moved is not known to be the present any longer.
            current_at = saved.current_at if self.version == saved.version else now
            return msgspec.structs.replace(
                saved,
                epoch=self.epoch,
                version=self.version,
                listed=self.listed,
                listed_for=self.listed_for,
                announced=self.announced,
                gaps=self.gaps,
                inventory=dict(self._inventory),
                whole=self._whole,
                audited_at=self.audited_at,
                identity=self._identity,
                saved_at=now,
                current_at=current_at if self._since is None else self._since,
            ), self.moves


class Commit:
    """Saves the ledger: now and then in the background, and once at the end."""

    def __init__(
        self,
        store: Store,
        stored: Stored | None,
        start: Checkpoint,
        *,
        run_id: str,
        elapsed: Callable[[], float],
        now: Callable[[], str],
    ) -> None:
        self._store = store
        self._token = stored.token if stored else None
        self._saved = msgspec.structs.replace(start, run_id=run_id, inventory={})
        """What is stored, or was there at the beginning; the inventory is the ledger's."""
        self._runs = start.runs
        self._sequence = 0
        self._elapsed = elapsed
        self._now = now
        self._saved_moves = 0
        self._saved_when = elapsed()
        self._saving = threading.Lock()
        self._pending: Future[None] | None = None
        self.ledger = Ledger(start)
        self.saves = 0
        self.size = 0
        """Bytes of the last save."""
        self.note = ""
        """What a person should know of the room that was left in the store for the last save."""
        self._left_out = False
        """Whether it says that there was too little."""

    @property
    def moved(self) -> bool:
        """Whether anything was acknowledged that is not saved."""
        return self.ledger.moves != self._saved_moves

    def tick(self) -> None:
        """Save in the background if there is something new and the last save is long enough ago.

        Raises `Superseded`, and what a person must mend. An unreachable store is tried again with the next tick.
        """
        if self._pending:
            if not self._pending.done():
                return
            pending, self._pending = self._pending, None
            with suppress(Unavailable):
                pending.result()
        if self.moved and self._elapsed() - self._saved_when >= SAVE_INTERVAL:
            self._saved_when = self._elapsed()
            until = self._elapsed() + SAVE
            self._pending = in_background("save", lambda: self._save(until))

    def save(self, record: RunRecord | None = None) -> None:
        """Save now, again and again while there is time for it, at the end with the record of the run.

        Raises `Superseded` and what the store raises.
        """
        until = self._elapsed() + SAVE
        if self._pending:
            pending, self._pending = self._pending, None
            with suppress(Unavailable, TimeoutError):
                pending.result(timeout=SAVE / 2)
        if record:
            self._runs = (*self._runs, record)[-codec.KEPT_RUNS :]
        self._saved_when = self._elapsed()
        saving = in_background("save", lambda: self._save_until(until))
        try:
            saving.result(timeout=max(0.0, until - self._elapsed()))
        except TimeoutError as error:
            message = f"the checkpoint could not be saved within {SAVE:g} s"
            raise Unavailable(message) from error

    def _save_until(self, until: float) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                return self._save(until)
            except Unavailable as error:
                if self._elapsed() + pause >= until:
                    raise
                log.warning("%s; trying again", error, extra=event("store.retry"))
                time.sleep(pause)
                pause *= 2

    def _save(self, until: float) -> None:
        """One attempt. A conflict is looked into once: our own bytes may be there, and their answer lost (R13)."""
        with self._saving:
            # Half of the time: an attempt whose answer does not come leaves enough for another.
            timeout = max(_SHORTEST, (until - self._elapsed()) / 2)
            self._sequence += 1
            checkpoint, moves = self.ledger.onto(self._saved, self._now())
            checkpoint = msgspec.structs.replace(checkpoint, sequence=self._sequence, runs=self._runs)
            data = self._encoded(checkpoint)
            try:
                self._token = self._store.save(data, self._token, timeout)
            except Conflict as conflict:
                if not self._is_stored(checkpoint, timeout):
                    message = "an earlier save of this run was stored without an answer"
                    raise Unavailable(message) from conflict
            self._saved = msgspec.structs.replace(checkpoint, inventory={})
            self._saved_moves = moves
            self.saves += 1
            self.size = len(data)

    def _encoded(self, checkpoint: Checkpoint) -> bytes:
        """The bytes to save; without the inventory, where the store has no room for that."""
        data, most = codec.encode(checkpoint), self._store.most_bytes
        if most is None or len(data) <= most * NEARLY:
            self.note = ""
            return data
        note, left_out = f"The checkpoint has {len(data)} bytes, and its store takes {most}: ", len(data) > most
        if left_out:
            note += "the inventory was left out. What is deleted while etcd's history is lost will never be told."
            data = codec.encode(msgspec.structs.replace(checkpoint, inventory={}, whole=False))
        else:
            note += "use another store before the inventory must be left out."
        if not self.note or left_out != self._left_out:
            log.warning(note, extra=event("store.full", bytes=len(data), most=most))
        self.note, self._left_out = note, left_out
        return data

    def _is_stored(self, ours: Checkpoint, timeout: float) -> bool:
        """Look whose bytes are there after a conflict: true if they are these."""
        stored = self._store.load(timeout)
        if stored is None:
            message = "the checkpoint was removed while this run was under way"
            raise Superseded(message)
        try:
            theirs = codec.decode(stored.data)
        except CheckpointUnusable as error:
            message = "something else was written over the checkpoint while this run was under way"
            raise Superseded(message) from error
        if theirs.run_id != ours.run_id:
            message = f"run {theirs.run_id} has moved the checkpoint while this run was under way"
            raise Superseded(message)
        self._token = stored.token
        return theirs.sequence == ours.sequence
