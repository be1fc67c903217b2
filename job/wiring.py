"""The only place that names concrete adapters: a URL's scheme chooses one, which is imported only then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from job.ports import Patience, Sink, Source, Store
from job.settings import Address, Settings
from job.sources.connection import Connection


def _stdout_sink(_: Address) -> Sink:
    from job.sinks.stdout import StdoutSink

    return StdoutSink()


def _file_sink(address: Address) -> Sink:
    from job.sinks.file import FileSink

    return FileSink(Path(address.path))


def _file_store(address: Address) -> Store:
    from job.stores.file import FileStore

    return FileStore(Path(address.path))


SINKS: Mapping[str, Callable[[Address], Sink]] = {"stdout": _stdout_sink, "file": _file_sink}
STORES: Mapping[str, Callable[[Address], Store]] = {"file": _file_store}


def sink(settings: Settings) -> Sink:
    """The sink of a run."""
    return SINKS[settings.sink.scheme](settings.sink)


def store(settings: Settings) -> Store:
    """The store of a run's checkpoint."""
    return STORES[settings.checkpoint.scheme](settings.checkpoint)


def source(settings: Settings, connection: Connection, patience: Patience) -> Source:
    """The source of a run."""
    from job.sources.kubernetes import KubernetesSource

    return KubernetesSource(connection, settings.resource, settings.scope.namespace, patience)
