"""A metadata server of ours, where a pod or a machine of Google Cloud finds its identity.

    with MetadataServer() as server:
        server.down()
        ...
        server.up()
        assert server.tokens

- It answers what google-auth asks (<https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys>), for a
  service account of Kubernetes under Workload Identity, which has no address of a service account of Google's.
- At `token_uri` it also exchanges keys, as OAuth's token endpoint does (RFC 7523), without looking at them.
- While `token_status` is not OK, tokens of both kinds are refused with it.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingTCPServer
from typing import Self
from urllib.parse import urlsplit

FLAVOR = "Metadata-Flavor"
_ACCOUNT = "/computeMetadata/v1/instance/service-accounts/default/"
_TOKEN = f"{_ACCOUNT}token"
_EXCHANGE = "/oauth2/token"
_TEXTS = {
    "/": "computeMetadata/\n",
    "/computeMetadata/v1/project/project-id": "p",
    "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
}
_IDENTITY = {
    "aliases": ["default"],
    "email": "p.svc.id.goog",
    "scopes": ["https://www.googleapis.com/auth/cloud-platform"],
}
_ACCESS = {"access_token": "ya29.of-a-test", "expires_in": 3599, "token_type": "Bearer"}
_REFUSALS = {
    HTTPStatus.BAD_REQUEST: json.dumps({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}),
    HTTPStatus.FORBIDDEN: "Unable to generate access token; IAM returned 403 Forbidden",
    HTTPStatus.NOT_FOUND: "<!DOCTYPE html>\n<title>Error 404 (Not Found)!!1</title>\n",
}


@dataclass(frozen=True)
class Request:
    """What a client asked for; `at` is `time.monotonic()` in seconds."""

    method: str
    path: str
    at: float


class _Handler(BaseHTTPRequestHandler):
    """One request: as the real server's, a connection is not kept."""

    server: _Server

    def answer(self) -> None:
        """Handle one request."""
        request = Request(self.command, urlsplit(self.path).path, time.monotonic())
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.fake.requests.append(request)
        if request.method == "GET" and self.headers.get(FLAVOR) != "Google":
            self._send(HTTPStatus.FORBIDDEN, "text/html", f"Missing {FLAVOR}:Google header.")
        elif request.path in {_TOKEN, _EXCHANGE}:
            status = self.server.fake.token_status
            if status == HTTPStatus.OK:
                self._send(status, "application/json", json.dumps(_ACCESS))
            else:
                self._send(status, "text/html", _REFUSALS.get(status, status.phrase))
        elif request.path == _ACCOUNT:
            self._send(HTTPStatus.OK, "application/json", json.dumps(_IDENTITY))
        elif request.path in _TEXTS:
            self._send(HTTPStatus.OK, "application/text", _TEXTS[request.path])
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/html", _REFUSALS[HTTPStatus.NOT_FOUND])

    do_GET = do_POST = answer  # noqa: N815 -- the names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        self.send_response_only(status)
        self.send_header(FLAVOR, "Google")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class _Server(ThreadingTCPServer):  # not HTTPServer, whose bind looks its own name up in the DNS
    """The listening side; it refuses connections until `server_activate`."""

    allow_reuse_address = True

    def __init__(self, port: int, fake: MetadataServer) -> None:
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        self.fake = fake
        self.server_bind()


class MetadataServer:
    """The server, as a context manager. Leaving it ends every thread."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        """All requests so far, in the order they came."""
        self.token_status = HTTPStatus.OK
        self._server: _Server | None = None
        self._accepting: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Open a free port."""
        self._server = _Server(0, self)
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self.down()
        assert self._server
        self._server.server_close()

    @property
    def address(self) -> str:
        """Host and port, the same also after `down` and `up`."""
        assert self._server
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def token_uri(self) -> str:
        """Where keys are exchanged."""
        return f"http://{self.address}{_EXCHANGE}"

    @property
    def tokens(self) -> list[Request]:
        """The requests for a token."""
        return [request for request in self.requests if request.path in {_TOKEN, _EXCHANGE}]

    def down(self) -> None:
        """Refuse connections."""
        if self._accepting is None:
            return
        assert self._server
        port = self._server.server_address[1]
        self._server.shutdown()
        self._accepting.join()
        self._accepting = None
        TCPServer.server_close(self._server)
        # Bound but not listening, the port refuses, and nobody else is given it.
        self._server = _Server(int(port), self)

    def up(self) -> None:
        """Accept connections again, on the same port."""
        if self._accepting is None:
            assert self._server
            self._server.server_activate()
            self._accepting = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="metadata-server")
            self._accepting.start()
