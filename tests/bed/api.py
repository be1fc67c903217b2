"""One user's requests to an API server, as JSON over verified TLS."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import urllib3

from tests.bed.workflows import compact_json

Json = dict[str, Any]
Query = Mapping[str, str | int]

_OK = 200
_BAD_REQUEST = 400


class ClusterError(Exception):
    """The API server refused a request: `status` is its HTTP code, `message` its explanation."""

    def __init__(self, status: int, message: str) -> None:
        """Keep both."""
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class Watch:
    """An open watch: iterating over it gives the events as they come, until the server ends it."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        """Take over the response of a server that has accepted the watch."""
        self._response = response

    def __iter__(self) -> Iterator[Json]:
        """Decode event after event."""
        unfinished = b""
        for chunk in self._response.stream():
            *lines, unfinished = (unfinished + chunk).split(b"\n")
            for line in lines:
                yield json.loads(line)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Hang up: the connection is closed, as only its end can end an open watch from this side."""
        self._response.close()


class Api:
    """One user's connections to an API server, for any number of threads."""

    def __init__(self, url: str, *, token: str, ca_file: Path | None = None) -> None:
        """Prepare; nothing is sent yet."""
        self.url = url
        self._token = token
        self._pool = urllib3.PoolManager(
            maxsize=16,
            ca_certs=str(ca_file) if ca_file else None,
            cert_reqs="CERT_REQUIRED",
            # A retry would hide from a test what the server did.
            retries=False,
            timeout=urllib3.Timeout(connect=5, read=90),
        )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._pool.clear()

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Query | None = None,
    ) -> Json:
        """Send one request and return the decoded answer; raises ClusterError for a status of 400 and above."""
        with self._send(method, path, body, content_type=content_type, query=query) as response:
            return _decoded(response)

    def watch(self, path: str, **query: str | int) -> Watch:
        """Open a watch on a collection, with parameters in the API's own spelling (resourceVersion, timeoutSeconds).

        Raises ClusterError when the server refuses it at once.
        """
        response = self._send("GET", path, query={"watch": True} | query)
        if response.status >= _BAD_REQUEST:
            with response:
                _decoded(response)
        return Watch(response)

    def ready(self) -> bool:
        """Whether the server answers and has done all that it does at its start."""
        try:
            with self._send("GET", "/readyz") as response:
                return response.status == _OK
        except urllib3.exceptions.HTTPError:
            return False

    def _send(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Query | None = None,
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method,
            f"{self.url}{path}?{urlencode({name: _spelled(value) for name, value in (query or {}).items()})}",
            body=None if body is None else compact_json(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": content_type},
            preload_content=False,
        )


def _spelled(value: str | int) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decoded(response: urllib3.BaseHTTPResponse) -> Json:
    text = response.read()
    try:
        answer: Json = json.loads(text)
    except ValueError:
        answer = {"message": text.decode(errors="replace").strip()}
    if response.status >= _BAD_REQUEST:
        raise ClusterError(response.status, str(answer.get("message", answer)))
    return answer
