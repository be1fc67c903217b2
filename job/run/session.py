"""What a run has in its hands while it goes on, and the one stream that every change goes through.

Two views of the inventory exist at that time: `seen`, ahead, decides what a frame or a listing means; the ledger's,
behind, is what is saved. Whenever nothing is in flight they say the same of every living object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from job.change import UNKNOWN, Change, Gap, Kind, Known, Missing, Object, Reason
from job.errors import OutOfTime, Stopped
from job.message import Envelope
from job.payload.transition import passage
from job.ports import Identity, Sink, Source
from job.run.commit import Commit, Effect
from job.run.deadline import Deadline
from job.run.publish import DeadLetters, Publisher
from job.run.summary import Summary
from job.settings import Settings


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Session:
    """One run under way. Changed by the main thread only."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        sink: Sink,
        commit: Commit,
        *,
        dead_letters: Sink | None = None,
        deadline: Deadline,
        summary: Summary,
        now: Callable[[], datetime],
    ) -> None:
        self.settings = settings
        self.source = source
        self.commit = commit
        self.ledger = commit.ledger
        self.deadline = deadline
        self.summary = summary
        self.now = now
        kept = DeadLetters(dead_letters, str(settings.dead_letter), settings.scope.sink) if dead_letters else None
        self.publisher = Publisher(sink, self.ledger, deadline, kept)
        self.seen: dict[str, Known] = self.ledger.inventory()
        self.position = self.ledger.version
        """The version of the last frame or listing that was decided: where a watch goes on."""
        self.heard_at = ""
        """When the last frame was decided, RFC 3339."""
        self.since = ""
        """When `position` was last known to be current, RFC 3339; empty where nobody knows."""
        self.identity = Identity()
        """What is known of the cluster by now."""
        self.proven = False
        """Whether this is certainly the cluster of the checkpoint."""
        self._envelope = Envelope(settings.scope.cluster, settings.resource, settings.scope.namespace, settings.content)

    @property
    def first(self) -> bool:
        """Whether no listing was ever published whole."""
        return not self.ledger.version and not self.ledger.epoch

    def publish(self, change: Change, *, version: int = 0, since: str | None = None, listed: int = 0) -> None:
        """Queue a change: an event at `version`, known to be the present `since` then, or a difference at `listed`.

        Where only transitions are told, it may be none: then it is known, and that is all.
        """
        thing, transitions = change.object, self.settings.content.transitions
        known: Known | None = Known(thing.namespace, thing.name, thing.version, thing.phase)
        transition = None
        if transitions:
            transition, known = passage(change, self.seen.get(thing.uid))
        if change.kind is Kind.DELETED:
            # The version has passed an observed deletion once it is acknowledged; a listed one needs a tombstone.
            known = Known(thing.namespace, thing.name, listed, deleted=True) if listed else None
        if known:
            self.seen[thing.uid] = known
        else:
            self.seen.pop(thing.uid, None)
        told = transition is not None or not transitions
        counted = (change.kind.value, change.provenance.value) if told else None
        effect = Effect(version=version, since=since, uid=thing.uid, known=known, counted=counted)
        if told:
            self.publisher.put(self._envelope.change(change, self.ledger.gaps, transition), effect)
        else:
            self.enter(effect)

    def announce(self, reason: Reason, start: int, end: int, *, since: str) -> None:
        """Tell that a listing replaces the history between two versions, before it is told of."""
        missing = Missing.ALL if reason in UNKNOWN or not start else Missing.INTERMEDIATE
        self._announce(Gap(reason, start, end, since, missing, epoch=self.ledger.epoch), announced=end)

    def announce_samples(self, reason: Reason, start: int, end: int, spacing: int) -> None:
        """Tell that of the history between two versions only some will be looked at, before it is told.

        Saved before, as what a listing is about to tell (R17): who was overtaken meanwhile must not announce anything.
        """
        self.settle()
        self.ledger.gaps += 1
        self.commit.save()
        self._announce(Gap(reason, start, end, self.since, Missing.SHORT_LIVED, spacing, self.ledger.epoch))

    def _announce(self, gap: Gap, announced: int = 0) -> None:
        """Publish a gap message, and wait for it: it stands before everything that it is the reason for."""
        self.summary.gaps.append(gap.reason.value)
        message = self._envelope.gap(gap, self.ledger.gaps)
        self.publisher.put(message, Effect(announced=announced, counted=("gap", "inferred")))
        self.settle()

    def foresee(
        self, new: Iterable[Object], *, listed: int, listed_for: Reason | None = None, announced: int = 0
    ) -> None:
        """Save what a listing is about to tell of, before it does (R17). Nothing is in flight.

        A run that is killed while it publishes a listing leaves objects told that no save knows. If they are gone when
        the next one lists, nobody would tell so. And the version before the listing must not be watched again (R1).
        """
        entries = {thing.uid: Known(thing.namespace, thing.name, 0, told=False) for thing in new}
        self.seen |= entries
        self.ledger.foresee(entries, listed=listed, listed_for=listed_for or "", announced=announced)
        self.commit.save()

    def rewind(self) -> None:
        """Begin another epoch: what is known of versions means nothing any more, uids and names still do (R9).

        So everything that survives is published anew: a version may stand for other content than it did before. Saved
        at once: when the cluster has counted past the saved version, nothing else shows that it was rewound.
        """
        self.seen = {
            uid: msgspec.structs.replace(known, version=0, phase=None, at="")
            for uid, known in self.seen.items()
            if not known.deleted
        }
        self.ledger.rewind(self.seen)
        self.commit.save()
        self.position = 0

    def enter(self, effect: Effect) -> None:
        """Enter what has nothing to publish."""
        self.ledger.enter(effect, done=True)

    def settle(self) -> None:
        """Wait until nothing is in flight. Raises `Stopped` or `OutOfTime` when that does not come."""
        if not self.publisher.drain():
            if self.deadline.stopped:
                raise Stopped
            message = "the sink did not acknowledge everything before the deadline"
            raise OutOfTime(message)
