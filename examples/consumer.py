"""To be copied: `python -m examples.consumer projects/P/subscriptions/S` works changes off (docs/consuming.md)."""

import json
import logging
import signal
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from google.cloud import pubsub_v1

Event = dict[str, Any]
log = logging.getLogger(__name__)


def show(event: Event) -> None:
    """The work of one event, a gap's too. What this raises brings the event back."""
    print(f"{event['type']} {event.get('subject', '')} {event.get('phase', '')} {event['id']}\n", end="", flush=True)


class Memory:
    """What was done. A real system keeps it in its database, and writes it in the transaction of the work."""

    def __init__(self, size: int = 100_000, lanes: int = 64) -> None:
        self._size, self._lanes = size, [threading.Lock() for _ in range(lanes)]
        self._done: OrderedDict[tuple[str, ...], Any] = OrderedDict()

    def process(self, event: Event, published: datetime, handle: Callable[[Event], None]) -> None:
        """Hand the event over, unless that was done before, or was done for something later of the same object."""
        identity = (event["source"], event["id"], event.get("subject", ""))
        thing = (event["source"], event.get("k8suid") or event["id"])  # a gap has no object, and is never outdated
        epoch, deleted = event["id"].rpartition("~")[2], event["type"].endswith(".deleted")
        place = (int(epoch) if epoch.isdecimal() else 0, deleted, int(event.get("resourceversion", 0)))
        with self._lanes[hash(thing) % len(self._lanes)]:  # an object's events one at a time
            # Published again behind a gap, which may arrive later, it says that the object is still there.
            again = published > self._done.get(identity, published) and event["provenance"] in {"recovered", "inferred"}
            if (identity in self._done and not again) or place < self._done.get(thing, place):
                log.info("skipped %s", event["id"])
                return
            handle(event)
            self._done.pop(thing, None)
            self._done |= {identity: published, thing: place}
            while len(self._done) > self._size:
                self._done.popitem(last=False)


def read(attributes: Mapping[str, str], data: bytes) -> Event:
    """A CloudEvent in binary mode: each attribute without its prefix, and `data`."""
    return {name[3:]: value for name, value in attributes.items() if name[:3] == "ce-"} | {"data": json.loads(data)}


def consume(subscription: str, handle: Callable[[Event], None] = show) -> None:
    """Work events off until SIGTERM: what was begun is finished, all else goes back."""
    memory, flow = Memory(), pubsub_v1.types.FlowControl(max_messages=100)

    def receive(message: pubsub_v1.subscriber.message.Message) -> None:
        try:
            memory.process(read(message.attributes, message.data), message.publish_time, handle)
            message.ack()
        except Exception:
            log.exception("failed: message %s", message.message_id)
            message.nack()  # comes back after the subscription's retry delay

    ends: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: ends.append(number))
    with pubsub_v1.SubscriberClient() as client:
        pulling = client.subscribe(subscription, receive, flow_control=flow, await_callbacks_on_shutdown=True)
        while not (ends or pulling.done()):  # looking up each second: not every signal wakes who waits without an end
            threading.Event().wait(1)
        pulling.cancel()
        pulling.result()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    consume(sys.argv[1])
