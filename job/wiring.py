"""The only place that names concrete adapters: a URL's scheme chooses one, which is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from job.credentials import GoogleCredentials
from job.ports import Patience, Sink, Source, Store
from job.settings import Address, Settings
from job.sources.connection import Connection


def _stdout_sink(address: Address, _: GoogleCredentials) -> Sink:
    from job.sinks.stdout import StdoutSink

    return StdoutSink.at(address)


def _file_sink(address: Address, _: GoogleCredentials) -> Sink:
    from job.sinks.file import FileSink

    return FileSink.at(address)


def _pubsub_sink(address: Address, credentials: GoogleCredentials) -> Sink:
    from job.sinks.pubsub import PubSubSink

    return PubSubSink.at(address, credentials)


def _file_store(address: Address, _: GoogleCredentials) -> Store:
    from job.stores.file import FileStore

    return FileStore.at(address)


def _gcs_store(address: Address, credentials: GoogleCredentials) -> Store:
    from job.stores.gcs import GcsStore

    return GcsStore.at(address, credentials)


SINKS: Mapping[str, Callable[[Address, GoogleCredentials], Sink]] = {
    "stdout": _stdout_sink,
    "file": _file_sink,
    "pubsub": _pubsub_sink,
}
STORES: Mapping[str, Callable[[Address, GoogleCredentials], Store]] = {"file": _file_store, "gs": _gcs_store}


def sink(address: Address, credentials: GoogleCredentials) -> Sink:
    """The sink of an address; nothing is opened yet. Raises `UsageError`."""
    return SINKS[address.scheme](address, credentials)


def store(address: Address, credentials: GoogleCredentials) -> Store:
    """The store of a checkpoint's address; nothing is opened yet. Raises `UsageError`."""
    return STORES[address.scheme](address, credentials)


def source(settings: Settings, connection: Connection, patience: Patience) -> Source:
    """The source of a run."""
    from job.sources.kubernetes import KubernetesSource

    return KubernetesSource(connection, settings.resource, settings.scope.namespace, patience)
