"""A cluster in memory, and a `Source` that speaks for it in the API server's own bytes.

    cluster = ModelCluster()
    cluster.create("a")
    cluster.while_watched += [lambda: cluster.change("a"), cluster.expire_watches]
    source = ModelSource(cluster)

- Every write has a version; LIST at any of them and WATCH from any of them work until `expire` or `compact`.
- A watch ends at once when everything was told, and lets the cluster's clock jump to its asked end.
- `while_watched` is what happens while somebody watches: one step whenever all before it was told. `while_listed` is
  what happens between pages: one step before every LIST. Both run in the thread of the caller of `decode` and `list`,
  so that a history has one order. (Where `list` is called by several threads at once, its steps are taken by them.)
- Nothing sleeps. All methods are safe in several threads.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from job.change import Kind, Resource
from job.errors import Expired, Unavailable
from job.ports import Check, Frame, Identity, Page, Patience, Query
from job.sources import frames
from tests.fakes.clock import Clock

WORKFLOWS = Resource("workflows", "v1alpha1", "argoproj.io")
PODS = Resource("pods", "v1", "")
Step = Callable[[], object]
Labels = Mapping[str, str]


class Refusal(StrEnum):
    """How the API server says that it no longer has the history."""

    FRAME = "frame"
    """200, and an ERROR frame."""
    HTTP = "http"
    """410."""
    SILENT = "silent"
    """200, and a close without a frame."""


@dataclass(frozen=True, slots=True)
class Write:
    """One version of one object: its JSON as a watch frame has it."""

    version: int
    kind: Kind
    uid: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    data: bytes

    @property
    def frame(self) -> bytes:
        return b'{"type":"%b","object":%b}' % (self.kind.value.upper().encode(), self.data)


class ModelCluster:
    """One resource of one cluster, with its whole history."""

    def __init__(
        self,
        clock: Clock | None = None,
        *,
        resource: Resource = WORKFLOWS,
        kind: str = "Workflow",
        namespace: str = "argo",
    ) -> None:
        self.clock = clock or Clock()
        self.resource = resource
        self.kind = kind
        self.namespace = namespace
        self.identity = Identity("cluster-1", "definition-1")
        self.namespace_exists: bool | None = True
        self.refusal = Refusal.FRAME
        self.endless = self.deaf = False
        """Whether watches go on beyond their time; whether they tell nothing, not even bookmarks."""
        self.version = 100
        self.writes: list[Write] = []
        self.says_remaining = True
        """Whether pages say how many objects remain; old and aggregated API servers do not."""
        self.miscounted = 0
        """By how many objects that number is wrong."""
        self.matches_exactly = True
        """Whether lists are at the version that is asked for; what does not know `resourceVersionMatch` lists now."""
        self.watchable_from = 0
        """The oldest version that a watch may begin at."""
        self.listable_from = 0
        """The oldest version that etcd has not compacted."""
        self.while_watched: deque[Step] = deque()
        self.while_listed: deque[Step] = deque()
        self.lists: list[Query] = []
        self.watches: list[tuple[int, int]] = []
        """The version and the seconds of every watch that was asked for."""
        self.changed = threading.Condition(threading.RLock())
        self.turn: bytes | None = None
        """The bookmark at whose decoding the next step of `while_watched` happens, or else the watch is over."""
        self._streams: list[ModelStream] = []
        self._uids = 0

    # What writers do

    def create(
        self,
        name: str,
        *,
        namespace: str | None = None,
        labels: Labels | None = None,
        phase: str | None = None,
        created: str | None = None,
        **status: object,
    ) -> str:
        """Create an object, and return its uid."""
        with self.changed:
            self._uids += 1
            namespace = self.namespace if namespace is None else namespace
            document = self._document(f"uid-{self._uids}", namespace, name)
            if created:
                document["metadata"]["creationTimestamp"] = created
            self._write(Kind.ADDED, document, labels, phase, status)
            return f"uid-{self._uids}"

    def change(
        self,
        name: str,
        *,
        namespace: str | None = None,
        labels: Labels | None = None,
        phase: str | None = None,
        **status: object,
    ) -> int:
        """Change an object, and return its version."""
        with self.changed:
            return self._write(Kind.MODIFIED, self._alive(name, namespace), labels, phase, status)

    def delete(self, name: str, *, namespace: str | None = None) -> int:
        """Delete an object, and return the version of its deletion."""
        with self.changed:
            return self._write(Kind.DELETED, self._alive(name, namespace))

    def tick(self, versions: int = 1) -> None:
        """Other resources are written."""
        with self.changed:
            self.version += versions

    def replay(self, recording: Path) -> None:
        """Write what a real API server has once streamed, byte for byte."""
        with self.changed:
            for line in recording.read_bytes().splitlines():
                event = msgspec.json.decode(msgspec.json.decode(line, type=dict[str, msgspec.Raw])["e"], type=_Recorded)
                about = json.loads(bytes(event.object))["metadata"]
                if event.type in {"ADDED", "MODIFIED", "DELETED"}:
                    self.version = int(about["resourceVersion"])
                    kind = Kind(event.type.lower())
                    self._keep(kind, about, bytes(event.object))

    # What happens to a cluster

    def expire(self) -> None:
        """The watch cache forgets everything up to now, as at a restart; etcd does not."""
        with self.changed:
            self.watchable_from = self.version

    def compact(self) -> None:
        """Forget everything up to now, in etcd too: older versions cannot be listed any more."""
        with self.changed:
            self.expire()
            self.listable_from = self.version

    def rewind(self, version: int) -> None:
        """Restore the state at `version`; what came after it never was."""
        with self.changed:
            self.writes = [write for write in self.writes if write.version <= version]
            self.version = version
            self.listable_from = min(self.listable_from, version)
            self.expire()
            self.end_watches()

    def recreate_definition(self) -> None:
        """Delete the CustomResourceDefinition with all objects, and create it anew."""
        with self.changed:
            for write in list(self.state().values()):
                self.delete(write.name, namespace=write.namespace)
            cluster, number = self.identity.cluster, int((self.identity.definition or "-0").rpartition("-")[2])
            self.identity = Identity(cluster, f"definition-{number + 1}")
            self.expire()
            self.end_watches()

    def end_watches(self) -> None:
        """The server closes every open watch, without a word."""
        self._end(None)

    def expire_watches(self) -> None:
        """Every open watch ends with an ERROR frame that says 410, and what it had not told is forgotten."""
        self.expire()
        self._end(410)

    def fail_watches(self, code: int = 500) -> None:
        """Every open watch ends with an ERROR frame."""
        self._end(code)

    def break_watches(self) -> None:
        """The connection of every open watch breaks."""
        self._end(-1)

    # What is true

    def state(self, version: int | None = None) -> dict[tuple[str, str], Write]:
        """What exists at a version, by namespace and name."""
        with self.changed:
            alive: dict[tuple[str, str], Write] = {}
            for write in self.writes:
                if version is None or write.version <= version:
                    if write.kind is Kind.DELETED:
                        del alive[write.namespace, write.name]
                    else:
                        alive[write.namespace, write.name] = write
            return alive

    # The insides

    def _document(self, uid: str, namespace: str, name: str) -> dict[str, Any]:
        kind, api_version = self.kind, self.resource.api_version
        # Custom resources come with sorted keys, built-in ones in the order of their Go struct.
        head = (
            {"apiVersion": api_version, "kind": kind}
            if self.resource.group
            else {"kind": kind, "apiVersion": api_version}
        )
        return {
            **head,
            "metadata": {
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": '{"a":"\\"b\\""}\n', "note": "<ü>"},
                "labels": {},
                "managedFields": [{"manager": "test", "fieldsV1": {"f:metadata": {"f:annotations": {".": {}}}}}],
                "name": name,
                **({"namespace": namespace} if namespace else {}),
                "resourceVersion": "",
                "uid": uid,
            },
            "spec": {"step": 0, "number": 1.50},
            "status": {},
        }

    def _alive(self, name: str, namespace: str | None) -> dict[str, Any]:
        found = self.state()[self.namespace if namespace is None else namespace, name]
        document: dict[str, Any] = json.loads(found.data)
        return document

    def _write(
        self,
        kind: Kind,
        document: dict[str, Any],
        labels: Labels | None = None,
        phase: str | None = None,
        status: Mapping[str, object] = MappingProxyType({}),
    ) -> int:
        self.version += 1
        about = document["metadata"]
        about["resourceVersion"] = str(self.version)
        if labels is not None:
            about["labels"] = dict(labels)
        if phase is not None:
            document["status"]["phase"] = phase
        document["status"] |= status
        if kind is not Kind.DELETED:
            document["spec"]["step"] += 1
        self._keep(kind, about, msgspec.json.encode(document))
        return self.version

    def _keep(self, kind: Kind, about: dict[str, Any], data: bytes) -> None:
        namespace, labels = about.get("namespace", ""), about.get("labels", {})
        self.writes.append(Write(self.version, kind, about["uid"], namespace, about["name"], labels, data))
        self.changed.notify_all()

    def _end(self, code: int | None) -> None:
        with self.changed:
            for stream in self._streams:
                stream.end(code)
            self._streams.clear()
            self.changed.notify_all()

    def opened(self, stream: ModelStream) -> None:
        """A watch begins."""
        with self.changed:
            self.turn = None
            self._streams.append(stream)

    def left(self, stream: ModelStream) -> None:
        """Nobody reads this watch any more."""
        with self.changed:
            if stream in self._streams:
                self._streams.remove(stream)
                self.turn = None
            self.changed.notify_all()

    def is_last(self, stream: ModelStream) -> bool:
        """Whether this is the watch that was opened last: the steps of `while_watched` are told to its reader."""
        return self._streams[-1:] == [stream]

    def decoded(self, line: bytes) -> None:
        """Somebody has come to this frame: take the next step if it is its turn."""
        with self.changed:
            if line is not self.turn:
                return
            step = self.while_watched.popleft() if self.while_watched else None
            version = self.version
        if step:
            step()
        with self.changed:
            if not step and version == self.version and self._streams:
                self._streams[-1].over = True
            self.turn = None
            self.changed.notify_all()


class ModelSource:
    """A `Source` of one namespace of a model cluster, or of all."""

    def __init__(self, cluster: ModelCluster, namespace: str | None = None) -> None:
        self._cluster = cluster
        self._namespace = cluster.namespace if namespace is None else namespace

    def identity(self) -> Identity:
        return self._cluster.identity

    def namespace_exists(self) -> bool | None:
        return self._cluster.namespace_exists

    def kind(self) -> str:
        return self._cluster.kind

    def list(self, query: Query, patience: Patience | None = None) -> Page:
        cluster = self._cluster
        with cluster.changed:
            cluster.lists.append(query)
            step = cluster.while_listed.popleft() if cluster.while_listed else None
        if step:
            step()
        with cluster.changed:
            body = self._listing(query)
        return (frames.whole_page if query.whole else frames.metadata_page)(body)

    def watch(self, version: int, seconds: int) -> ModelStream:
        cluster = self._cluster
        with cluster.changed:
            cluster.watches.append((version, seconds))
            refused = version < cluster.watchable_from
            if refused and cluster.refusal is Refusal.HTTP:
                message = f"too old resource version: {version} ({cluster.watchable_from})"
                raise Expired(message)
            stream = ModelStream(cluster, self._namespace, version, cluster.clock() + seconds)
            cluster.opened(stream)
            if refused:
                stream.refuse(410 if cluster.refusal is Refusal.FRAME else None)
            return stream

    def decode(self, line: bytes) -> Frame:
        self._cluster.decoded(line)
        try:
            return frames.frame(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            message = f"a watch frame cannot be read: {error}"
            raise Unavailable(message) from error

    def checks(self) -> Iterator[Check]:
        if self.namespace_exists() is False:
            yield Check.fail("namespace", f"namespace {self._namespace} does not exist", "create it")
        else:
            yield Check.ok("namespace", f"{self._namespace} exists")

    def _listing(self, query: Query) -> bytes:
        cluster = self._cluster
        version, after = query.at or cluster.version, ("", "")
        if not cluster.matches_exactly:
            version = cluster.version
        if query.token:
            at, *key = json.loads(query.token)
            version, after = at, (key[0], key[1])
        if version < cluster.listable_from:
            message = "The resourceVersion for the provided list is too old."
            raise Expired(message)
        if version > cluster.version:
            message = f"Too large resource version: {version}, current: {cluster.version}"
            raise Unavailable(message)
        namespace = query.namespace or self._namespace
        found = sorted(
            (key, write)
            for key, write in cluster.state(version).items()
            if key > after and namespace in {"", key[0]} and query.name in {"", key[1]}
        )
        shown = found[: query.limit]
        about: dict[str, object] = {"resourceVersion": str(version)}
        if remaining := len(found) - len(shown):
            about["continue"] = json.dumps([version, *shown[-1][0]])
            if cluster.says_remaining and not query.name:
                about["remainingItemCount"] = max(0, remaining + cluster.miscounted)
        return self._body(about, [write for _, write in shown], whole=query.whole)

    def _body(self, about: Mapping[str, object], shown: Sequence[Write], *, whole: bool) -> bytes:
        cluster = self._cluster
        if not whole:
            partial = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
            items = [msgspec.Raw(msgspec.json.encode(partial | {"metadata": _metadata(write)})) for write in shown]
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
        else:
            # The items of built-in resources lack kind and apiVersion; watch frames have them.
            start = b"" if cluster.resource.group else _head(cluster)
            items = [msgspec.Raw(b"{" + write.data[len(start) :] if start else write.data) for write in shown]
            head = {"kind": f"{cluster.kind}List", "apiVersion": cluster.resource.api_version}
        return msgspec.json.encode({**head, "metadata": about, "items": items})


class ModelStream:
    """An open watch of a model cluster."""

    def __init__(self, cluster: ModelCluster, namespace: str, version: int, until: float) -> None:
        self.ending: tuple[int | None] | None = None
        """How it ends: with an ERROR frame of this code, -1 for a broken connection, None for a clean close."""
        self.over = False
        """Whether its reader has come to the end of everything, so that its time may end."""
        self._cluster = cluster
        self._namespace = namespace
        self._told = version
        self._until = until
        self._last: int | None = None
        self._closed = self._refused = False

    def __iter__(self) -> Iterator[list[bytes]]:
        cluster = self._cluster
        while True:
            with cluster.changed:
                if self._closed:
                    return
                block = self._pending()
                if not block:
                    if self.ending:
                        break
                    if self.over and not cluster.endless:
                        cluster.clock.jump(max(0.0, self._until - cluster.clock()))
                        return
                    if self.over or cluster.turn is not None or not cluster.is_last(self):
                        cluster.changed.wait()
                        continue
                    cluster.turn = cluster_bookmark(
                        cluster, self._told if cluster.deaf else max(self._told, cluster.version)
                    )
                    block = [cluster.turn]
            yield block
        (code,) = self.ending
        if code == -1:
            message = "the connection to the API server broke"
            raise Unavailable(message)
        if code:
            yield [error_frame(code)]

    def end(self, code: int | None) -> None:
        """Tell what was written until now, and end so."""
        self.ending = (code,)
        self._last = self._cluster.version

    def refuse(self, code: int | None) -> None:
        """Tell nothing, and end so."""
        self._refused = True
        self.ending = (code,)

    def close(self) -> None:
        with self._cluster.changed:
            self._closed = True
            self._cluster.left(self)
            self._cluster.changed.notify_all()

    def _pending(self) -> list[bytes]:
        if self._refused or self._cluster.deaf or self.ending == (410,):
            return []
        last = self._cluster.version if self._last is None else self._last
        news = [write for write in self._cluster.writes if self._told < write.version <= last]
        if news:
            self._told = news[-1].version
        return [write.frame for write in news if self._namespace in {"", write.namespace}]


class _Recorded(msgspec.Struct):
    type: str
    object: msgspec.Raw


def cluster_bookmark(cluster: ModelCluster, version: int) -> bytes:
    """A BOOKMARK frame."""
    return b'{"type":"BOOKMARK","object":{"apiVersion":"%b","kind":"%b","metadata":{"resourceVersion":"%d"}}}' % (
        cluster.resource.api_version.encode(),
        cluster.kind.encode(),
        version,
    )


def error_frame(code: int) -> bytes:
    """An ERROR frame."""
    reason = {410: "Expired", 500: "InternalError"}.get(code, "Timeout")
    return (
        b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
        b'"message":"the watch ended","reason":"%b","code":%d}}' % (reason.encode(), code)
    )


def _head(cluster: ModelCluster) -> bytes:
    return b'{"kind":"%b","apiVersion":"%b",' % (cluster.kind.encode(), cluster.resource.api_version.encode())


def _metadata(write: Write) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads(write.data)["metadata"]
    return metadata
