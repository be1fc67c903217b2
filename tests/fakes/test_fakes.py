"""The fakes pass the contracts of what they stand for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from job.change import Kind
from job.errors import Refused, Unavailable
from job.message import Message
from job.ports import Bookmark, Event, Failure, Query, Sink, Source, Store, Subscription
from tests.bed.waiting import wait_until
from tests.contracts.sink import SinkContract, message
from tests.contracts.source import SourceContract, World, frames, watched
from tests.contracts.store import StoreContract
from tests.contracts.subscription import Publish, SubscriptionContract
from tests.fakes.sink import Answer, MemorySink
from tests.fakes.source import PODS, ModelCluster, ModelSource, Refusal
from tests.fakes.store import MemoryStore, Save
from tests.fakes.subscription import MemorySubscription

RECORDINGS = Path(__file__).parents[1] / "recordings"


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def connect(self) -> Callable[[], Store]:
        store = MemoryStore()
        return lambda: store

    @pytest.fixture
    def broken(self) -> MemoryStore:
        store = MemoryStore()
        store.unreachable = True
        return store

    def test_a_lost_answer_was_written(self) -> None:
        """The value is there, and the caller does not know."""
        store = MemoryStore()
        store.answer(Save.LOST)
        with pytest.raises(Unavailable):
            store.save(b"one", None, 1)

        assert store.values == [b"one"]


class TestMemorySubscription(SubscriptionContract):
    @pytest.fixture
    def subscription(self) -> Subscription:
        return MemorySubscription()

    @pytest.fixture
    def publish(self, subscription: Subscription) -> Publish:
        assert isinstance(subscription, MemorySubscription)
        publish = subscription.publish

        def put(attributes: Mapping[str, str], data: bytes) -> None:
            publish(attributes, data)

        return put


class TestMemorySink(SinkContract):
    @pytest.fixture
    def sink(self) -> Iterator[MemorySink]:
        with MemorySink() as sink:
            yield sink

    @pytest.fixture
    def stored(self, sink: Sink) -> Callable[[], list[Message]]:
        assert isinstance(sink, MemorySink)
        return lambda: sink.stored

    @pytest.fixture
    def broken(self) -> Iterator[MemorySink]:
        with MemorySink() as sink:
            sink.otherwise = Answer.BARRED
            yield sink

    @pytest.mark.parametrize(
        ("answer", "error", "kept"),
        [
            (Answer.UNAVAILABLE, Unavailable, 0),
            (Answer.LOST, Unavailable, 2),
            (Answer.HALF, Unavailable, 1),
            (Answer.REFUSED, Refused, 0),
        ],
    )
    def test_its_script_is_followed(self, sink: Sink, answer: Answer, error: type[Exception], kept: int) -> None:
        """One answer for one batch, and then it is well again."""
        assert isinstance(sink, MemorySink)
        sink.answer(answer)
        with pytest.raises(error):
            sink.publish(0, [message(1), message(2)], 1)
        assert len(sink.stored) == kept
        sink.publish(0, [message(3)], 1)
        assert len(sink.stored) == kept + 1

    def test_two_batches_of_a_lane_at_once_break_the_contract(self, sink: Sink) -> None:
        """Its caller is told."""
        assert isinstance(sink, MemorySink)
        sink.hold(0)
        first = threading.Thread(target=sink.publish, args=(0, [message(1)], 1))
        first.start()
        wait_until(lambda: sink.asked == 1, timedelta(seconds=10), "the first batch")
        with pytest.raises(AssertionError):
            sink.publish(0, [message(2)], 1)
        sink.release(0)
        first.join()

        assert sink.broken == ["two batches of lane 0 at once"]


class ModelWorld:
    """The world of the contract, in a model cluster."""

    def __init__(self, cluster: ModelCluster) -> None:
        self._cluster = cluster
        self.namespace = cluster.namespace
        self.kind = cluster.kind

    def create(self, name: str, **labels: str) -> None:
        self._cluster.create(name, labels=labels)

    def change(self, name: str) -> None:
        self._cluster.change(name)

    def delete(self, name: str) -> None:
        self._cluster.delete(name)

    def expire(self) -> None:
        self._cluster.compact()


class TestModelSource(SourceContract):
    @pytest.fixture(params=["custom", "built-in"])
    def cluster(self, request: pytest.FixtureRequest) -> ModelCluster:
        return ModelCluster() if request.param == "custom" else ModelCluster(resource=PODS, kind="Pod")

    @pytest.fixture
    def world(self, cluster: ModelCluster) -> World:
        return ModelWorld(cluster)

    @pytest.fixture
    def source(self, cluster: ModelCluster) -> Source:
        return ModelSource(cluster)

    @pytest.fixture
    def broken(self) -> Source:
        cluster = ModelCluster()
        cluster.namespace_exists = False
        return ModelSource(cluster)

    @pytest.mark.parametrize("refusal", list(Refusal))
    def test_every_refusal_is_one_that_the_contract_allows(self, refusal: Refusal) -> None:
        """As the real one has them."""
        cluster = ModelCluster()
        cluster.refusal = refusal
        self.test_a_watch_from_a_forgotten_version_is_refused(ModelWorld(cluster), ModelSource(cluster))

    def test_an_old_server_does_not_say_how_many_remain(self) -> None:
        """Its pages are whole all the same, as the contract has them."""
        cluster = ModelCluster()
        cluster.says_remaining = False
        self.test_a_page_says_how_many_objects_the_later_pages_have(ModelWorld(cluster), ModelSource(cluster))

        assert ModelSource(cluster).list(Query(limit=1)).remaining is None

    def test_how_many_remain_is_said_where_a_page_has_a_token_and_no_name(self) -> None:
        """As the API server has it; a server that miscounts says another number."""
        cluster = ModelCluster()
        source = ModelSource(cluster)
        for name in "abc":
            cluster.create(name)

        queries = (Query(limit=2), Query(limit=3), Query(limit=1, namespace="argo", name="a"))
        assert [source.list(query).remaining for query in queries] == [1, None, None]
        cluster.miscounted = -1
        assert source.list(Query(limit=1)).remaining == 1

    def test_a_server_that_ignores_the_match_lists_what_is_now(self) -> None:
        """And says so by the version of its page."""
        cluster = ModelCluster()
        cluster.create("a")
        cluster.create("b")
        cluster.matches_exactly = False

        page = ModelSource(cluster).list(Query(limit=5, at=101))
        assert (page.version, len(page.objects)) == (102, 2)

    def test_what_happens_while_it_is_watched_is_told(self) -> None:
        """Step by step, and then the watch ends."""
        cluster = ModelCluster()
        cluster.while_watched.extend([lambda: cluster.create("a"), lambda: cluster.change("a")])

        assert [event.kind for event in watched(ModelSource(cluster), 100)] == [Kind.ADDED, Kind.MODIFIED]

    def test_a_broken_watch_has_told_what_came_before(self) -> None:
        """Then it says that the connection broke."""
        cluster = ModelCluster()
        cluster.create("a")
        cluster.while_watched.append(cluster.break_watches)
        source = ModelSource(cluster)
        told = []
        blocks = iter(source.watch(100, 3))
        for _ in range(2):
            told += [source.decode(line) for line in next(blocks)]

        assert [type(frame) for frame in told] == [Event, Bookmark]
        with pytest.raises(Unavailable):
            next(blocks)

    def test_an_error_ends_a_watch(self) -> None:
        """An ERROR frame is the last."""
        cluster = ModelCluster()
        cluster.while_watched.append(cluster.fail_watches)

        assert isinstance(frames(ModelSource(cluster), 100)[-1], Failure)

    @pytest.mark.parametrize("recording", sorted(RECORDINGS.glob("*.jsonl")), ids=lambda path: path.stem)
    def test_a_recording_is_replayed_byte_for_byte(self, recording: Path) -> None:
        """A watch of a replayed cluster has the frames that the real one had."""
        recorded = [json.loads(line)["e"] for line in recording.read_bytes().splitlines()]
        cluster = ModelCluster()
        cluster.replay(recording)
        source = ModelSource(cluster)
        lines = []
        for block in source.watch(1, 3):
            lines += block
            assert [source.decode(line) for line in block]

        about_objects = [event for event in recorded if event["type"] in {"ADDED", "MODIFIED", "DELETED"}]
        assert [json.loads(line) for line in lines][: len(about_objects)] == about_objects
        listed = source.list(Query(limit=500, whole=True)).objects
        assert bool(listed) == bool(about_objects and about_objects[-1]["type"] != "DELETED")
