"""Google's JSON API for objects, as far as a checkpoint needs it, without the network.

There is download, metadata, multipart and resumable upload, patch, delete, list, buckets and the rights to them; no
versions, no ACLs, and no decompression on the way out. https://cloud.google.com/storage/docs/json_api/v1
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.fakes.gcs_objects import Objects, RefusedError, StoredObject, forbidden

_PATH = re.compile(r"(/upload|/download)?/storage/v1/b(?:/([^/]+)(?:/(o|iam)(?:/([^/]+))?)?)?")
_NAME = re.compile(rb'"name":\s*("(?:[^"\\]|\\.)*")')
_CONTENT_TYPE = re.compile(rb"content-type:\s*([^\r\n]+)", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
INVALID_CREDENTIALS = RefusedError(
    401,
    "Invalid Credentials",
    "authError",
    {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/", error="invalid_token"'},
)


class Kind(Enum):
    """What a request is about."""

    READ = auto()
    """The data of an object."""
    LOOKUP = auto()
    """The metadata of an object."""
    WRITE = auto()
    """Brings the data of an object: a multipart upload, or a piece of a resumable one."""
    BEGIN = auto()
    """Begins a resumable upload."""
    PATCH = auto()
    DELETE = auto()
    LIST = auto()
    BUCKET = auto()
    RIGHTS = auto()
    """Which of some permissions the caller has (testIamPermissions), which needs none."""
    OTHER = auto()


_PERMISSIONS = {
    Kind.READ: "storage.objects.get",
    Kind.LOOKUP: "storage.objects.get",
    Kind.WRITE: "storage.objects.create",
    Kind.BEGIN: "storage.objects.create",
    Kind.PATCH: "storage.objects.update",
    Kind.DELETE: "storage.objects.delete",
    Kind.LIST: "storage.objects.list",
}


@dataclass(frozen=True)
class Request:
    """What a client asked for; `size` is the body's, `at` is `time.monotonic()`, names of headers are in lower case."""

    kind: Kind
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    size: int
    bucket: str
    name: str
    at: float


@dataclass(frozen=True)
class Response:
    """What is answered; `media`: the body is an object's data."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=UTF-8"
    media: bool = False


def _query(text: str) -> dict[str, str]:
    """The parameters; what is given several times has commas in between."""
    query: dict[str, str] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        query[key] = f"{query[key]},{value}" if key in query else value
    return query


def _json(content: Mapping[str, object]) -> Response:
    return Response(200, json.dumps(content).encode())


def refused(error: RefusedError, kind: Kind) -> Response:
    """Say it in JSON, but in plain text where an object's data were asked for, as Google does."""
    if error.code == HTTPStatus.NOT_MODIFIED:
        return Response(error.code)
    if kind is Kind.READ:
        return Response(error.code, error.message.encode(), error.headers, "text/html; charset=UTF-8")
    details = {"message": error.message, "domain": "global", "reason": error.reason}
    content = {"error": {"code": error.code, "message": error.message, "errors": [details]}}
    return Response(error.code, json.dumps(content).encode(), error.headers)


def _media(stored: StoredObject, wanted: str) -> Response:
    encoding = str(stored.properties.get("contentEncoding", ""))
    headers = {
        "ETag": f'"{stored.generation:x}"',
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": f"crc32c={stored.crc32c},md5={stored.md5}",
        "X-Goog-Storage-Class": "STANDARD",
        "X-Goog-Stored-Content-Encoding": encoding or "identity",
        "X-Goog-Stored-Content-Length": str(len(stored.data)),
        **({"Content-Encoding": encoding} if encoding else {}),
    }
    found = _RANGE.fullmatch(wanted)
    if found is None:
        return Response(200, stored.data, headers, stored.content_type, media=True)
    size = len(stored.data)
    first, last = int(found[1]), min(int(found[2] or size), size - 1)
    if first >= size:
        message = "The requested range cannot be satisfied."
        raise RefusedError(416, message, "requestedRangeNotSatisfiable")
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return Response(206, stored.data[first : last + 1], headers, stored.content_type, media=True)


@dataclass
class _Upload:
    """A resumable upload; `stored` is what became of it."""

    request: Request
    properties: dict[str, object]
    data: bytearray = field(default_factory=bytearray)
    stored: StoredObject | None = None


def _nothing() -> None:
    pass


class Api:
    """Answers requests out of its `store`; `url` is where its clients find it."""

    def __init__(self, required_token: str | None) -> None:
        self.url = ""
        self.required_token = required_token
        self.before_write: Callable[[], object] = _nothing
        self.store = Objects()
        self._uploads: dict[str, _Upload] = {}

    def understand(self, method: str, url: str, headers: Mapping[str, str], head: bytes, size: int) -> Request:
        """Tell what is asked for; the head of the body is to hold the metadata of what is uploaded."""
        target = urlsplit(url)
        query = _query(target.query)
        found = _PATH.fullmatch(target.path)
        service, bucket, objects, name = (unquote(part or "") for part in found.groups()) if found else ("",) * 4
        match method, service, objects == "o", bool(name):
            case "GET", "", False, True if (objects, name) == ("iam", "testPermissions"):
                kind, name = Kind.RIGHTS, ""
            case "GET", "/download", True, True:
                kind = Kind.READ
            case "GET", "", True, True:
                kind = Kind.READ if query.get("alt") == "media" else Kind.LOOKUP
            case "GET", "", True, False:
                kind, name = Kind.LIST, query.get("prefix", "")
            case "POST", "/upload", True, False:
                kind = Kind.BEGIN if query.get("uploadType") == "resumable" else Kind.WRITE
                name = json.loads(given[1]) if (given := _NAME.search(head)) else query.get("name", "")
            case "PUT", "/upload", True, False if query.get("upload_id") in self._uploads:
                # Without data it only asks how far the upload is.
                kind = Kind.WRITE if size else Kind.OTHER
                name = self._uploads[query["upload_id"]].request.name
            case "PATCH", "", True, True:
                kind = Kind.PATCH
            case "DELETE", "", True, True:
                kind = Kind.DELETE
            case (("GET" | "POST"), "", False, False) if found:
                kind = Kind.BUCKET
            case _:
                kind = Kind.OTHER
        lowered = {key.lower(): value for key, value in headers.items()}
        return Request(kind, method, target.path, query, lowered, size, bucket, name, time.monotonic())

    def _authenticate(self, request: Request) -> None:
        if self.required_token is None:
            return
        given = request.headers.get("authorization")
        if given is None:
            error = forbidden(_PERMISSIONS.get(request.kind, "storage.buckets.get"), "Anonymous caller")
            raise replace(error, code=401, reason="required")
        if given != f"Bearer {self.required_token}":
            raise replace(INVALID_CREDENTIALS)

    def apply(self, request: Request, body: bytes) -> Response:
        """Do what is asked for; raise RefusedError when the service would not."""
        self._authenticate(request)
        operations = {
            Kind.READ: self._read,
            Kind.LOOKUP: self._look_up,
            Kind.WRITE: self._write,
            Kind.BEGIN: self._begin,
            Kind.PATCH: self._patch,
            Kind.DELETE: self._delete,
            Kind.LIST: self._list,
            Kind.BUCKET: self._bucket,
            Kind.RIGHTS: self._rights,
        }
        return operations.get(request.kind, self._other)(request, body)

    def _read(self, request: Request, body: bytes) -> Response:
        stored = self.store.read(request.bucket, request.name, request.query)
        return _media(stored, request.headers.get("range", ""))

    def _look_up(self, request: Request, body: bytes) -> Response:
        return _json(self.store.read(request.bucket, request.name, request.query).resource())

    def _write(self, request: Request, body: bytes) -> Response:
        if "upload_id" in request.query:
            return self._continue(request, body)
        properties, data = _parts(body, request.headers["content-type"])
        self.before_write()
        return _json(self.store.write(request.bucket, request.name, data, properties, request.query).resource())

    def _begin(self, request: Request, body: bytes) -> Response:
        # Here for the caller's sake; what counts is the check that goes with the write, when all data are here.
        self.store.check_write(request.bucket, request.name, request.query)
        upload_id = secrets.token_hex(8)
        declared = request.headers.get("x-upload-content-type")
        properties = ({"contentType": declared} if declared else {}) | json.loads(body or b"{}")
        self._uploads[upload_id] = _Upload(request, properties)
        query = f"uploadType=resumable&upload_id={upload_id}"
        return Response(200, headers={"Location": f"{self.url}{request.path}?{query}"})

    def _continue(self, request: Request, body: bytes) -> Response:
        upload = self._uploads[request.query["upload_id"]]
        found = _CONTENT_RANGE.fullmatch(request.headers.get("content-range", f"bytes 0-{len(body)}/{len(body)}"))
        if found is None:
            message = "Invalid Content-Range"
            raise RefusedError(400, message, "badRequest")
        if upload.stored is None:
            if body:
                upload.data[int(found[1] or 0) :] = body
            if found[2] != str(len(upload.data)):
                received = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
                return Response(308, headers=received)
            hashes = dict(part.strip().split("=", 1) for part in request.headers.get("x-goog-hash", "=").split(","))
            names = {"crc32c": "crc32c", "md5": "md5Hash"}
            given = {names[label]: value for label, value in hashes.items() if label in names}
            self.before_write()
            begun = upload.request
            upload.stored = self.store.write(
                begun.bucket, begun.name, bytes(upload.data), upload.properties | given, begun.query
            )
        return _json(upload.stored.resource())

    def _patch(self, request: Request, body: bytes) -> Response:
        return _json(
            self.store.patch(request.bucket, request.name, json.loads(body or b"{}"), request.query).resource()
        )

    def _delete(self, request: Request, body: bytes) -> Response:
        self.store.delete(request.bucket, request.name, request.query)
        return Response(204)

    def _list(self, request: Request, body: bytes) -> Response:
        found = self.store.list(request.bucket, request.query.get("prefix", ""))
        left = [stored for stored in found if stored.name > request.query.get("pageToken", "")]
        page = left[: int(request.query.get("maxResults", 1000))]
        more: dict[str, object] = {"nextPageToken": page[-1].name} if len(page) < len(left) else {}
        return _json({"kind": "storage#objects", "items": [stored.resource() for stored in page], **more})

    def _bucket(self, request: Request, body: bytes) -> Response:
        name = request.bucket
        if request.method == "POST":
            name = json.loads(body)["name"]
            self.store.create_bucket(name)
        else:
            self.store.need("storage.buckets.get")
            self.store.bucket(name)
        return _json({"kind": "storage#bucket", "id": name, "name": name, "location": "US", **self.store.settings})

    def _rights(self, request: Request, body: bytes) -> Response:
        self.store.bucket(request.bucket)
        lacking = self.store.denied | self.store.conditional
        granted = [right for right in request.query["permissions"].split(",") if right not in lacking]
        kind = {"kind": "storage#testIamPermissionsResponse"}
        return _json({**kind, "permissions": granted} if granted else kind)

    def _other(self, request: Request, body: bytes) -> Response:
        if request.query.get("upload_id") in self._uploads:
            return self._continue(request, body)
        message = "Not Found"
        raise RefusedError(404, message, "notFound")


def _parts(body: bytes, content_type: str) -> tuple[dict[str, object], bytes]:
    """Take a multipart upload apart, into the object's properties and its data."""
    boundary = content_type.partition("boundary=")[2].strip("\"'").encode()
    _, metadata, media, _ = body.split(b"--" + boundary)
    head, _, data = media.removesuffix(b"\r\n").partition(b"\r\n\r\n")
    declared = _CONTENT_TYPE.search(head)
    properties = json.loads(metadata.partition(b"\r\n\r\n")[2])
    return ({"contentType": declared[1].decode()} if declared else {}) | properties, data
