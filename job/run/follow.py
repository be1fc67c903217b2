"""The watch, frame by frame, until it ends."""

from __future__ import annotations

from job.errors import Expired, Stopped, Unavailable
from job.ports import Bookmark, Event, Failure
from job.run.commit import Effect
from job.run.observe import observe
from job.run.session import Session, timestamp
from job.run.watch import Ended, Reader

_TICK = 0.5
GONE = 410


def follow(session: Session, reader: Reader, *, target: int = 0) -> Ended | None:
    """Decide every frame of one watch; gives how it ended, or None once `target` is reached (0: there is none)."""
    session.deadline.on_signal = reader.wake
    while True:
        if session.deadline.stopped:
            raise Stopped
        session.publisher.check()
        session.commit.tick()
        lines = reader.take(_TICK)
        for line in lines:
            failure = _decide(session, line)
            if failure:
                return Ended(opened=True, frames=True, early=True, error=failure)
        if lines:
            session.heard_at = timestamp(session.now())
        session.ledger.acknowledge()
        if target and session.position >= target:
            return None
        if ended := reader.ended:
            return ended
        overdue = not session.deadline.left()  # a proxy that knows no timeoutSeconds, or a dead peer
        if overdue and not session.deadline.stopped:
            return Ended(opened=True, frames=True, early=False)


def _decide(session: Session, line: bytes) -> Exception | None:
    """Enter one frame into the stream; gives what an ERROR frame says."""
    frame = session.source.decode(line)
    match frame:
        case Event():
            version = frame.object.version
            change = observe(frame, session.seen, session.settings.selector, session.ledger.epoch)
            if change:
                session.publish(change, version=version)
            else:
                session.enter(Effect(version=version))
            session.position = version
        case Bookmark():
            if frame.version > session.position:
                session.enter(Effect(version=frame.version))
                session.position = frame.version
        case Failure():
            return Expired(frame.message) if frame.code == GONE else Unavailable(frame.message)
    return None
