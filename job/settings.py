"""What a run is told, checked and complete. No I/O, no defaults that depend on where it runs.

Every value has been read from an option or its environment variable by `job.cli`; a value that cannot be meant is a
`UsageError` here, before anything is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from pathlib import PurePath
from urllib.parse import quote

from job.change import Resource
from job.checkpoint import Scope
from job.errors import UsageError
from job.payload import EVERYTHING, Content
from job.selector import Selector

_DURATION = re.compile(r"(?:(?P<hours>\d{1,5})h)?(?:(?P<minutes>\d{1,7})m)?(?:(?P<seconds>\d{1,9})s)?", re.ASCII)
_RESOURCE = re.compile(
    r"(?P<plural>[a-z][a-z0-9-]*)\.(?P<version>v\d+(?:(?:alpha|beta)\d+)?)(?:\.(?P<group>(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*)?))?"
)
HOST = r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?|\[[0-9A-Fa-f:.]+\]"
"""A pattern of what may stand for the host in a URL: names that can be looked up, and addresses."""
_LOG_IN = re.compile(r"://(?:[^/]*|[^?]*)@")
_DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SHORTEST_WINDOW = timedelta(seconds=3)
_FROM_SERVICES = re.compile(r".*_SERVICE_.*|.*_PORT(_.*)?")


class Initial(StrEnum):
    """What a first run does with the objects that exist."""

    PUBLISH = "publish"
    SKIP = "skip"


LOCAL = frozenset({"file", "unix"})
"""Schemes that are followed by a path of this machine."""


@dataclass(frozen=True, slots=True)
class Address:
    """`scheme:path`, or a URL, `scheme://path?option=value`, as a sink or a store is named."""

    scheme: str
    path: str
    """With the two slashes of a URL."""
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "&".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.place}?{options}" if options else self.place

    @property
    def place(self) -> str:
        """The address without its options, which say how to get there."""
        return f"{self.scheme}:{self.path}"

    def allow(self, *names: str) -> None:
        """Raise `UsageError` for an option of another name."""
        for name in self.options:
            if name not in names:
                known = f"it has {' and '.join(names)}" if names else "it has none"
                message = f"{self.place!r} has no option {name!r}; {known}"
                raise UsageError(message)


@dataclass(frozen=True, slots=True)
class Settings:
    """One run."""

    scope: Scope
    """What the checkpoint is about: the cluster's name, the namespace (empty: all), and how the rest is spelt."""
    resource: Resource
    selector: Selector
    sink: Address
    checkpoint: Address
    window: timedelta
    recover: timedelta = timedelta(seconds=20)
    content: Content = EVERYTHING
    dead_letter: Address | None = None
    """Where messages go that the sink will never take; None: one of them ends the run."""
    initial: Initial = Initial.PUBLISH
    resource_version: int | None = None


def parse_duration(text: str) -> timedelta:
    """`55s`, `4m30s`, `1h`. Raises `UsageError`."""
    found = _DURATION.fullmatch(text)
    if not text or not found:
        message = f"{text!r} is not a duration; write it as 55s, 4m30s or 1h"
        raise UsageError(message)
    return timedelta(**{unit: int(number or 0) for unit, number in found.groupdict().items()})


def parse_window(text: str) -> timedelta:
    """A duration that the API server can watch for: `0s`, or 3 s and more (R10)."""
    window = parse_duration(text)
    if timedelta() < window < _SHORTEST_WINDOW:
        message = f"a window of {text} is too short to get a bookmark: use 3s or more, or 0s to catch up and exit"
        raise UsageError(message)
    return window


def parse_resource(text: str) -> Resource:
    """`plural.version.group` as kubectl spells it; the core group is empty. Raises `UsageError`."""
    found = _RESOURCE.fullmatch(text)
    if not found:
        message = f"{text!r} is not plural.version.group, as in workflows.v1alpha1.argoproj.io or pods.v1"
        raise UsageError(message)
    return Resource(found["plural"], found["version"], found["group"] or "")


def parse_namespace(text: str) -> str:
    """A name that a namespace can have. Raises `UsageError`."""
    if not _DNS_LABEL.fullmatch(text):
        message = f"{text!r} cannot be the name of a namespace"
        raise UsageError(message)
    return text


def parse_cluster(text: str) -> str:
    """A name for a cluster: it is a part of paths and messages. Raises `UsageError`."""
    if not text or text in {".", ".."} or not text.isprintable():
        message = f"{text!r} cannot be the name of a cluster: give another with --cluster"
        raise UsageError(message)
    return text


def parse_version(text: str) -> int:
    """A resourceVersion. Raises `UsageError`."""
    if not re.fullmatch(r"[1-9][0-9]{0,38}", text):  # 128 bits
        message = f"{text!r} is not a resourceVersion: it is a number above 0"
        raise UsageError(message)
    return int(text)


def parse_time(text: str) -> datetime:
    """A time as RFC 3339 has it, or a date, which begins at midnight in UTC. Raises `UsageError`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment and re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        moment = moment.replace(tzinfo=UTC)
    if moment is None or moment.tzinfo is None:
        message = f"{text!r} is not a time; write it as 2026-11-27T08:00:00Z, or 2026-11-27"
        raise UsageError(message)
    return moment


def parse_address(text: str, what: str, schemes: Iterable[str]) -> Address:
    """The address of a sink or a store of one of these schemes; what else it must be, its adapter knows."""
    scheme, colon, path = text.partition(":")
    if scheme != "gs" and _LOG_IN.search(text):  # names of objects may have an @
        message = (
            f"the {what} {scheme}: has a user or a password in its URL, which is logged: "
            "docs/sinks.md and docs/stores.md say where a log-in belongs"
        )
        raise UsageError(message)
    known = sorted(schemes)
    if not colon or scheme not in known:
        message = f"the {what} {text!r} does not begin with {' or '.join(f'{name}:' for name in known)}"
        raise UsageError(message)
    if not path.startswith("//"):
        return Address(scheme, path)
    path, _, query = path.partition("?")
    options: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")
        if not equals or not value or name in options:
            message = f"the {what} {text!r} has {option!r} behind the `?`, where name=value belongs, each name once"
            raise UsageError(message)
        options[name] = value
    return Address(scheme, path, options)


def local_path(address: Address) -> str:
    """The path in `file:PATH` or `unix:PATH`. Raises `UsageError`."""
    if address.path.startswith("//"):
        message = f"{str(address)!r} is a path, not a URL with a host: write {address.scheme}:PATH"
        raise UsageError(message)
    if not address.path:
        message = f"{str(address)!r} lacks a path"
        raise UsageError(message)
    return address.path


def completed(address: Address, scope: Scope) -> Address:
    """A checkpoint that ends in `/` gets the scope's own name, so that one manifest serves many clusters."""
    if not str(address).endswith("/"):
        return address
    resource = parse_resource(scope.resource)
    hashed = f"-{sha256(scope.selector.encode()).hexdigest()[:8]}" if scope.selector else ""
    name = f"{quote(scope.cluster, safe='')}/{scope.namespace or '_all'}/{resource.group_resource}{hashed}.json.gz"
    if not address.options:
        return replace(address, path=f"{address.path}{name}")
    option, value = list(address.options.items())[-1]
    return replace(address, options={**address.options, option: f"{value}{name}"})


def default_checkpoint(state_folder: PurePath, scope: Scope) -> Address:
    """A file named by the whole scope, the sink included: trying another sink by hand starts from the beginning."""
    own = sha256(scope.sink.encode()).hexdigest()[:8]
    return completed(Address("file", f"{state_folder}/{own}/"), scope)


def check_environment(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse a `WATCHER_*` variable that nothing reads: misspelt, it must not turn into a default.

    Kubernetes makes variables for every Service of the namespace, `WATCHER_PORT` and `WATCHER_SERVICE_HOST` for one
    that is called `watcher`: those pass.
    """
    known = set(known)
    for name in sorted(names):
        if name.startswith("WATCHER_") and name not in known and not _FROM_SERVICES.fullmatch(name):
            message = f"the environment variable {name} is unknown; the known ones are {', '.join(sorted(known))}"
            raise UsageError(message)
