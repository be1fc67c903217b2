"""The contract of `job.ports.Subscription`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta

from job.ports import Received, Subscription
from tests.bed.waiting import wait_until

SHORT, LONG = 4.0, 10.0
SOON = timedelta(seconds=60)
Publish = Callable[[Mapping[str, str], bytes], None]


def pulled(subscription: Subscription, count: int) -> list[Received]:
    """So many deliveries, in however many answers they come."""
    found: list[Received] = []

    def enough() -> bool:
        found.extend(subscription.pull(count - len(found), LONG))
        return len(found) >= count

    wait_until(enough, SOON, f"{count} messages")
    return found


class SubscriptionContract:
    """What every subscription does. A subclass has the fixtures `subscription`, at first empty, and `publish`."""

    def test_a_message_comes_as_it_was_published(self, subscription: Subscription, publish: Publish) -> None:
        """Attributes and data, and when: in order for two that were published one after the other."""
        publish({"name": "ü"}, b"\x00\xff")
        publish({"name": "later"}, b"")
        first, second = sorted(pulled(subscription, 2), key=lambda each: each.published)

        assert (dict(first.attributes), first.data) == ({"name": "ü"}, b"\x00\xff")
        assert (dict(second.attributes), second.data) == ({"name": "later"}, b"")
        assert first.published.utcoffset() == timedelta()
        assert first.message_id != second.message_id

    def test_nothing_comes_where_nothing_is(self, subscription: Subscription) -> None:
        """After the time that was given, or earlier."""
        assert list(subscription.pull(10, SHORT)) == []

    def test_no_more_come_than_were_asked_for(self, subscription: Subscription, publish: Publish) -> None:
        """The others come with the next pull."""
        for number in range(3):
            publish({"number": str(number)}, b"{}")

        assert len(subscription.pull(1, LONG)) == 1
        assert len(pulled(subscription, 2)) == 2

    def test_what_is_leased_is_not_delivered(self, subscription: Subscription, publish: Publish) -> None:
        """Nobody else gets it meanwhile."""
        publish({}, b"leased")
        (held,) = pulled(subscription, 1)
        subscription.extend([held.ack_id], 60)

        assert list(subscription.pull(1, SHORT)) == []

    def test_what_is_acknowledged_is_gone(self, subscription: Subscription, publish: Publish) -> None:
        """Only that."""
        publish({}, b"one")
        publish({}, b"two")
        held = {each.data: each.ack_id for each in pulled(subscription, 2)}
        subscription.acknowledge([held[b"one"]])
        subscription.refuse([held[b"two"]])

        assert [each.data for each in pulled(subscription, 1)] == [b"two"]
        assert list(subscription.pull(1, SHORT)) == []

    def test_what_is_refused_comes_again(self, subscription: Subscription, publish: Publish) -> None:
        """As the same message, also after its lease was made longer."""
        publish({}, b"again")
        (first,) = pulled(subscription, 1)
        subscription.extend([first.ack_id], 60)
        subscription.refuse([first.ack_id])
        (second,) = pulled(subscription, 1)

        assert (second.message_id, second.data, second.published) == (first.message_id, first.data, first.published)

    def test_ids_that_are_no_longer_valid_are_taken(self, subscription: Subscription, publish: Publish) -> None:
        """Among others, too, for which everything is done."""
        publish({}, b"once")
        (first,) = pulled(subscription, 1)
        subscription.refuse([first.ack_id])
        (second,) = pulled(subscription, 1)
        subscription.acknowledge([second.ack_id])
        for ask in (subscription.acknowledge, subscription.refuse):
            ask([first.ack_id, second.ack_id])
        subscription.extend([first.ack_id, second.ack_id], 60)

        assert list(subscription.pull(1, SHORT)) == []

    def test_nothing_to_say_is_said(self, subscription: Subscription) -> None:
        """No ids are no error."""
        subscription.acknowledge([])
        subscription.refuse([])
        subscription.extend([], 60)
