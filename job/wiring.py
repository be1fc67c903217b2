"""The only place that names concrete adapters: a URL's scheme chooses one, which is imported only then."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from job.access import Access
from job.change import Resource
from job.ports import Patience, Sink, Source, Store, Subscription
from job.settings import Address
from job.sources.connection import Connection

SINKS: Mapping[str, str] = {
    "stdout": "job.sinks.stdout:StdoutSink",
    "file": "job.sinks.file:FileSink",
    "pubsub": "job.sinks.pubsub:PubSubSink",
    "sqs": "job.sinks.sqs:SqsSink",
    "tcp": "job.sinks.socket:SocketSink",
    "tls": "job.sinks.socket:SocketSink",
    "unix": "job.sinks.socket:SocketSink",
}
"""scheme -> module and class, whose `at(address, access)` makes the adapter."""
DEAD_LETTERS: Mapping[str, str] = {**SINKS, "gs": "job.sinks.gcs:GcsSink"}
"""What may be named by --dead-letter: any sink, and one besides."""
STORES: Mapping[str, str] = {
    "file": "job.stores.file:FileStore",
    "gs": "job.stores.gcs:GcsStore",
    "configmap": "job.stores.configmap:ConfigMapStore",
    "redis": "job.stores.redis:RedisStore",
    "rediss": "job.stores.redis:RedisStore",
}


class _MakesSink(Protocol):
    def at(self, address: Address, access: Access) -> Sink: ...


class _MakesStore(Protocol):
    def at(self, address: Address, access: Access) -> Store: ...


def sink(address: Address, access: Access) -> Sink:
    """The sink of an address, or what keeps dead letters; nothing is opened yet. Raises `UsageError`."""
    adapter: _MakesSink = _adapter(DEAD_LETTERS[address.scheme])
    return adapter.at(address, access)


def store(address: Address, access: Access) -> Store:
    """The store of a checkpoint's address; nothing is opened yet. Raises `UsageError`."""
    adapter: _MakesStore = _adapter(STORES[address.scheme])
    return adapter.at(address, access)


def subscription(name: str, access: Access) -> Subscription:
    """The subscription of this name; nothing is opened yet. Raises `UsageError`."""
    from job.subscriptions.pubsub import PubSubSubscription

    return PubSubSubscription.at(name, access)


def source(resource: Resource, namespace: str, connection: Connection, patience: Patience) -> Source:
    """The source of a resource in a namespace, or in all of them where that is empty."""
    from job.sources.kubernetes import KubernetesSource

    return KubernetesSource(connection, resource, namespace, patience)


def _adapter(name: str) -> Any:  # noqa: ANN401 - one of the classes above
    module, _, adapter = name.partition(":")
    return getattr(import_module(module), adapter)
