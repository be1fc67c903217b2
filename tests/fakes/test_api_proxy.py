"""The proxy at the wire: a tiny server of ours behind it, urllib3 in front of it."""

from __future__ import annotations

import gzip
import json
import queue
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError, ProtocolError, ReadTimeoutError

from .api_faults import (
    EXPIRED_LIST,
    EXPIRED_WATCH,
    INTERNAL_ERROR,
    NOT_YET_INSTALLED,
    PAGE_NOT_FOUND,
    STORAGE_INITIALISING,
    TOO_MANY_REQUESTS,
    UNAUTHORIZED,
    Answer,
    CutFrame,
    Delay,
    EndEarly,
    ErrorFrame,
    Fault,
    Hook,
    Request,
    Reset,
    SilentClose,
    Stall,
    anything,
    continued,
    exact,
    expired_page,
    first_pages,
    forbidden,
    lists,
    probes,
    status,
    watches,
)
from .api_proxy import ApiProxy, ProxyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WORKFLOWS = "/apis/argoproj.io/v1alpha1/workflows"
WATCH = f"{WORKFLOWS}?watch=1&resourceVersion=7"
ABSENT = "/apis/argoproj.io/v1alpha1/absent"
LISTING = b'{"kind":"WorkflowList","metadata":{"resourceVersion":"7"},"items":[]}\n'
FIRST, SECOND, THIRD = (b'{"type":"MODIFIED","object":{"metadata":{"resourceVersion":"%d"}}}\n' % n for n in (8, 9, 10))


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        threading.Event().wait(0.005)


class _UpstreamHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Upstream

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, dict(self.headers), body))
        if "watch=1" in self.path:
            self.watch()
        elif self.path.startswith(WORKFLOWS):
            self.reply(200, LISTING)
        else:
            self.reply(404, b"404 page not found\n")

    do_GET = do_POST = handle_any  # noqa: N815 -- the names that http.server looks for

    def reply(self, code: int, body: bytes) -> None:
        packed = "gzip" in self.headers.get("Accept-Encoding", "")
        body = gzip.compress(body, mtime=0) if packed else body
        self.send_response_only(code)
        for name, value in [("Audit-Id", "abc"), ("Warning", "299 - one"), ("Warning", "299 - two")]:
            self.send_header(name, value)
        if packed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def watch(self) -> None:
        self.send_response_only(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.server.open_watches += 1
        try:
            while (content := self.next_content()) is not None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionAbortedError:
            self.close_connection = True
        finally:
            self.server.open_watches -= 1

    def next_content(self) -> bytes | None:
        while not self.server.dying.is_set():
            with suppress(queue.Empty):
                return self.server.frames.get(timeout=0.005)
            with suppress(BlockingIOError):
                if not self.connection.recv(1, socket.MSG_DONTWAIT):
                    break
        raise ConnectionAbortedError

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Upstream(ThreadingHTTPServer):
    """Answers lists with `LISTING` and watches with what is put into `frames`; None ends a watch."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        """Take a free port."""
        super().__init__(("127.0.0.1", 0), _UpstreamHandler)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}"
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.frames: queue.Queue[bytes | None] = queue.Queue()
        self.open_watches = 0
        self.dying = threading.Event()

    def send(self, *contents: bytes | None) -> None:
        """Let the watch send these."""
        for content in contents:
            self.frames.put(content)

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that go away."""


@contextmanager
def serving(server: Upstream) -> Iterator[Upstream]:
    """Run the server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.dying.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Serve over plain HTTP."""
    with serving(Upstream()) as server:
        yield server


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[ApiProxy]:
    """Stand in front of the upstream."""
    with ApiProxy(upstream.url) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: ApiProxy) -> Iterator[urllib3.HTTPConnectionPool]:
    """Speak to the proxy, without retries."""
    host, port = urlsplit(proxy.url).hostname, urlsplit(proxy.url).port
    with urllib3.HTTPConnectionPool(host or "", port, retries=False, timeout=10) as pool:
        yield pool


def watch(client: urllib3.HTTPConnectionPool, timeout: float = 10) -> urllib3.BaseHTTPResponse:
    """Open a watch."""
    return client.request("GET", WATCH, preload_content=False, timeout=timeout)


# What passes


def test_list_passes_byte_for_byte(client: urllib3.HTTPConnectionPool) -> None:
    """Status, repeated headers and a compressed body are the server's own."""
    response = client.request("GET", WORKFLOWS, headers={"Accept-Encoding": "gzip"}, decode_content=False)

    assert response.status == 200
    assert list(response.headers.iteritems()) == [
        ("Audit-Id", "abc"),
        ("Warning", "299 - one"),
        ("Warning", "299 - two"),
        ("Content-Encoding", "gzip"),
        ("Content-Length", str(len(response.data))),
    ]
    assert gzip.decompress(response.data) == LISTING


def test_errors_of_the_server_pass(client: urllib3.HTTPConnectionPool) -> None:
    """What the server refuses reaches the client as it is."""
    response = client.request("GET", ABSENT)

    assert (response.status, response.data) == (404, b"404 page not found\n")


def test_request_passes_with_its_headers_and_body(client: urllib3.HTTPConnectionPool, upstream: Upstream) -> None:
    """The server sees method, target, token and body as the client sent them, and its own name as the host."""
    client.request("POST", f"{WORKFLOWS}?dryRun=All%2C", body=b"{}", headers={"Authorization": "Bearer secret"})

    [(method, target, headers, body)] = upstream.seen
    assert (method, target, body) == ("POST", f"{WORKFLOWS}?dryRun=All%2C", b"{}")
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Host"] == urlsplit(upstream.url).netloc


def test_frames_pass_as_they_come(client: urllib3.HTTPConnectionPool, upstream: Upstream) -> None:
    """Each chunk of a watch arrives while the watch is open, and its clean end arrives too."""
    frames = watch(client).stream()

    upstream.send(FIRST[:9])
    assert next(frames) == FIRST[:9]
    upstream.send(FIRST[9:], None)
    assert list(frames) == [FIRST[9:]]


def test_connections_are_kept(client: urllib3.HTTPConnectionPool, upstream: Upstream) -> None:
    """Watches and lists follow each other on one connection of the client."""
    for _ in range(3):
        upstream.send(FIRST, None)
        assert watch(client).data == FIRST
        assert client.request("GET", WORKFLOWS).data == LISTING

    assert client.num_connections == 1


def test_requests_are_recorded(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """A record has method, path, decoded query, Accept and time."""
    before = time.monotonic()
    client.request("GET", f"{WORKFLOWS}?limit=1&fieldSelector=metadata.name%3Da", headers={"Accept": "text/x"})

    [request] = proxy.requests
    assert request == Request(
        "GET", WORKFLOWS, {"limit": "1", "fieldSelector": "metadata.name=a"}, "text/x", request.at
    )
    assert before < request.at < time.monotonic()


def test_wait_for_returns_what_has_come(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """Waiting gives the matching requests once there are enough."""
    thread = threading.Thread(target=client.request, args=("GET", WORKFLOWS))
    thread.start()

    assert [request.path for request in proxy.wait_for(lists())] == [WORKFLOWS]
    thread.join()


def test_wait_for_says_what_is_missing(proxy: ApiProxy) -> None:
    """A wait that ends without the requests names what it waited for."""
    with pytest.raises(TimeoutError, match=r"0 of 2 requests for .*watches.* after 0\.01 s"):
        proxy.wait_for(watches(), count=2, timeout=0.01)


# Which requests are meant


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        (WORKFLOWS, {"lists", "first pages"}),
        ("/apis/argoproj.io/v1alpha1/namespaces/argo/workflows?limit=500", {"lists", "first pages"}),
        ("/api/v1/namespaces", {"lists", "first pages"}),
        (f"{WORKFLOWS}?limit=1", {"lists", "probes"}),
        (f"{WORKFLOWS}?limit=500&continue=abc", {"lists", "continued"}),
        (f"{WORKFLOWS}?resourceVersion=7&resourceVersionMatch=Exact", {"lists", "exact"}),
        (WATCH, {"watches"}),
        ("/api/v1/namespaces/kube-system", set()),
        ("/apis/argoproj.io/v1alpha1/namespaces/argo/workflows/a", set()),
        ("/healthz", set()),
    ],
)
def test_matchers_know_their_requests(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream, target: str, kinds: set[str]
) -> None:
    """Each matcher matches its kind of request, and no other."""
    upstream.send(None)
    client.request("GET", target)

    [request] = proxy.requests
    matchers = [lists(), first_pages(), probes(), continued(), exact(), watches()]
    assert {matcher.kind for matcher in matchers if matcher(request)} == kinds
    assert anything()(request)


def test_matchers_can_ask_for_a_path(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """An injection for a path leaves the others alone."""
    proxy.inject(on=lists("/absent"), fault=INTERNAL_ERROR)

    assert client.request("GET", WORKFLOWS).status == 200
    assert client.request("GET", ABSENT).status == 500


def test_injection_fires_so_often_and_then_passes(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """With `skip` and `times`, only the requests between are met."""
    proxy.inject(on=lists(), fault=Answer(503), times=2, skip=1)

    assert [client.request("GET", WORKFLOWS).status for _ in range(4)] == [200, 503, 503, 200]
    assert proxy.fired == (2,)


def test_first_injection_decides_and_the_next_has_its_turn(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """Several injections for the same requests fire one after the other, in their order."""
    for code in (429, 403, 503):
        proxy.inject(on=lists(), fault=Answer(code))

    assert [client.request("GET", WORKFLOWS).status for _ in range(4)] == [429, 403, 503, 200]
    assert proxy.fired == (1, 1, 1)


def test_injection_without_end_is_withdrawn(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """`times=None` fires until it is withdrawn."""
    always = proxy.inject(on=anything(), fault=Answer(503), times=None)

    assert [client.request("GET", WORKFLOWS).status for _ in range(3)] == [503, 503, 503]
    always.withdraw()
    assert client.request("GET", WORKFLOWS).status == 200
    assert always.fired == 3


@pytest.mark.parametrize("content", [b"", FIRST, FIRST[:9]])
def test_fault_that_was_not_reached_stays_armed(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream, content: bytes
) -> None:
    """A stream that ends before the scripted frame passes as it is and leaves the fault for the next one."""
    ends = proxy.inject(on=watches(), fault=EndEarly(after_frames=2))

    upstream.send(*filter(None, [content]), None)
    assert watch(client).data == content
    assert ends.fired == 0
    upstream.send(FIRST, SECOND, THIRD)
    assert watch(client).data == FIRST + SECOND
    assert ends.fired == 1


def test_fault_of_a_stream_leaves_refusals_alone(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """Where the server itself does not answer 200, a fault of the stream does not fire."""
    cut = proxy.inject(on=anything(), fault=CutFrame())

    assert client.request("GET", ABSENT).data == b"404 page not found\n"
    assert cut.fired == 0
    assert client.request("GET", WORKFLOWS).data == LISTING[: len(LISTING) // 2]
    assert cut.fired == 1


# Faults


def test_answer_replaces_the_server(client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream) -> None:
    """Status, headers, type and body are the test's, and the server does not hear of the request."""
    proxy.inject(on=lists(), fault=Answer(429, b"later\n", {"Retry-After": "3"}, "text/plain"))

    response = client.request("GET", WORKFLOWS)
    assert (response.status, response.reason, response.data) == (429, "Too Many Requests", b"later\n")
    assert dict(response.headers) == {"Content-Type": "text/plain", "Content-Length": "6", "Retry-After": "3"}
    assert upstream.seen == []


JSON, TEXT = "application/json", "text/plain; charset=utf-8"
FORBIDDEN = (
    'workflows.argoproj.io is forbidden: User \\"u\\" cannot watch resource \\"workflows\\" '
    'in API group \\"argoproj.io\\" '
)
OF_WORKFLOWS = '"reason":"Forbidden","details":{"group":"argoproj.io","kind":"workflows"},"code":403'


def failure(message: str, rest: str) -> str:
    """Spell out a Status, so that its bytes stand here."""
    prefix = '{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure"'
    return f'{prefix},"message":"{message}",{rest}}}\n'


@pytest.mark.parametrize(
    ("answer", "head", "body"),
    [
        (
            STORAGE_INITIALISING,
            (429, "1", JSON),
            failure(
                "storage is (re)initializing",
                '"reason":"TooManyRequests","details":{"retryAfterSeconds":1},"code":429',
            ),
        ),
        (
            NOT_YET_INSTALLED,
            (503, "5", JSON),
            failure(
                "the request has been made before all known HTTP paths have been installed, please try again",
                '"reason":"ServiceUnavailable","details":{"retryAfterSeconds":5},"code":503',
            ),
        ),
        (
            EXPIRED_LIST,
            (410, None, JSON),
            failure("The resourceVersion for the provided list is too old.", '"reason":"Expired","code":410'),
        ),
        (forbidden(user="u"), (403, None, JSON), failure(f"{FORBIDDEN}at the cluster scope", OF_WORKFLOWS)),
        (
            forbidden(user="u", namespace="argo"),
            (403, None, JSON),
            failure(f'{FORBIDDEN}in the namespace \\"argo\\"', OF_WORKFLOWS),
        ),
        (UNAUTHORIZED, (401, None, JSON), failure("Unauthorized", '"reason":"Unauthorized","code":401')),
        (TOO_MANY_REQUESTS, (429, "1", TEXT), "Too many requests, please try again later.\n"),
        (PAGE_NOT_FOUND, (404, None, TEXT), "404 page not found\n"),
    ],
)
def test_known_refusals_are_those_of_the_api_server(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, answer: Answer, head: tuple[int, str | None, str], body: str
) -> None:
    """The ready-made answers are, byte for byte, what a real server was seen to send."""
    proxy.inject(on=anything(), fault=answer)

    response = client.request("GET", WATCH)
    assert (response.status, response.headers.get("Retry-After"), response.headers["Content-Type"]) == head
    assert response.data.decode() == body


def test_expired_page_offers_another_token(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """The refusal of an old page carries the token of a later resourceVersion in its metadata."""
    proxy.inject(on=continued(), fault=expired_page("later"))

    content = client.request("GET", f"{WORKFLOWS}?continue=old").json()
    assert (content["code"], content["reason"], content["metadata"]) == (410, "Expired", {"continue": "later"})


def test_status_can_be_without_a_reason() -> None:
    """Some Statuses of the server have no reason (a malformed resourceVersion on a watch)."""
    expected = b'{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"no","code":500}\n'
    assert status(500, "", "no") == expected


def test_error_frame_comes_at_once(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """An expired watch is 200, the recorded ERROR frame and a clean end, without any frame of the server."""
    proxy.inject(on=watches(), fault=EXPIRED_WATCH)

    response = watch(client)
    assert response.status == 200
    assert response.data == (
        b'{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",'
        b'"message":"too old resource version: 294 (321)","reason":"Expired","code":410}}\n'
    )


def test_error_frame_comes_after_frames(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream
) -> None:
    """The frames before an ERROR frame in mid-stream are the server's."""
    proxy.inject(on=watches(), fault=ErrorFrame(500, "InternalError", "boom", after_frames=2))
    upstream.send(FIRST[:5], FIRST[5:] + SECOND + THIRD)

    *frames, last = watch(client).data.splitlines(keepends=True)
    assert frames == [FIRST, SECOND]
    assert json.loads(last)["object"]["code"] == 500


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (EndEarly(after_frames=1), FIRST),
        (EndEarly(), b""),
        (SilentClose(), b""),
        (CutFrame(after_frames=1), FIRST + SECOND[: len(SECOND) // 2]),
        (CutFrame(), FIRST[: len(FIRST) // 2]),
    ],
)
def test_stream_ends_cleanly_but_early(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream, fault: Fault, expected: bytes
) -> None:
    """The client reads so many frames and a clean end; the server's watch is closed and the connection is kept."""
    proxy.inject(on=watches(), fault=fault)
    upstream.send(FIRST, SECOND)

    assert watch(client).data == expected
    assert proxy.fired == (1,)
    until(lambda: upstream.open_watches == 0)
    assert client.request("GET", WORKFLOWS).data == LISTING
    assert client.num_connections == 1


@pytest.mark.parametrize(("frames", "expected"), [(0, b""), (2, FIRST + SECOND)])
def test_reset_breaks_the_connection_in_mid_chunk(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream, frames: int, expected: bytes
) -> None:
    """After whole frames and the beginning of another, the client's read fails with a reset connection."""
    proxy.inject(on=watches(), fault=Reset(after_frames=frames))
    upstream.send(FIRST, SECOND)

    stream = watch(client).stream()
    assert b"".join(next(stream) for _ in range(frames)) == expected
    with pytest.raises(ProtocolError) as broken:
        next(stream)
    assert isinstance(broken.value.__cause__, ConnectionResetError)
    assert proxy.fired == (1,)


def test_stall_before_the_response(client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream) -> None:
    """The connection is accepted and nothing comes; once released, the request goes on to the server."""
    stall = proxy.inject(on=lists(), fault=Stall(), times=2)

    with pytest.raises(ReadTimeoutError):
        client.request("GET", WORKFLOWS, timeout=0.05)
    proxy.wait_fired(stall)
    assert (stall.fired, upstream.seen) == (1, [])
    stall.release()
    assert client.request("GET", WORKFLOWS).data == LISTING
    assert stall.fired == 2


@pytest.mark.parametrize("frames", [0, 1])
def test_stall_within_a_stream(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream, frames: int
) -> None:
    """A watch goes silent although the server has more, and goes on when released."""
    stall = proxy.inject(on=watches(), fault=Stall(after_frames=frames))
    upstream.send(FIRST, SECOND, None)

    stream = watch(client).stream()
    received = [next(stream) for _ in range(frames)]
    proxy.wait_fired(stall)
    stall.release()
    assert received + list(stream) == [FIRST, SECOND]


def test_stall_within_a_stream_is_silent(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream
) -> None:
    """A client that does not wait for ever runs into its read timeout, after the frames before the stall."""
    proxy.inject(on=watches(), fault=Stall(after_frames=1))
    upstream.send(FIRST, SECOND)

    response = watch(client)
    stream = response.stream()
    assert next(stream) == FIRST
    assert isinstance(response.connection, HTTPConnection)
    response.connection.sock.settimeout(0.1)  # only now: the first frame may take its time
    with pytest.raises(ReadTimeoutError):
        next(stream)


def test_stall_ends_by_itself(client: urllib3.HTTPConnectionPool, proxy: ApiProxy) -> None:
    """A stall of some seconds needs no release."""
    proxy.inject(on=lists(), fault=Stall(seconds=0.03))

    assert client.request("GET", WORKFLOWS).data == LISTING
    assert proxy.fired == (1,)


def test_delay_comes_before_the_request_and_beside_other_faults(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream
) -> None:
    """A delayed request has not reached the server, and may then meet another fault."""
    delay = proxy.inject(on=lists(), fault=Delay(60), times=2)

    with pytest.raises(ReadTimeoutError):
        client.request("GET", WORKFLOWS, timeout=0.05)
    proxy.wait_fired(delay)  # else the next injection could be its fate, too
    delay.release()
    proxy.inject(on=lists(), fault=Answer(503))
    assert client.request("GET", WORKFLOWS).status == 503
    assert (proxy.fired, upstream.seen) == ((2, 1), [])


def test_hook_comes_before_the_request(client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream) -> None:
    """The test's function runs while the request has not reached the server, beside the fault that decides."""
    seen: list[int] = []
    proxy.inject(on=lists(), fault=Answer(503))
    proxy.inject(on=lists(), fault=Hook(lambda: seen.append(len(upstream.seen))), times=2)

    assert [client.request("GET", WORKFLOWS).status for _ in range(3)] == [503, 200, 200]
    assert seen == [0, 0]
    assert proxy.fired == (1, 2)


def test_hook_comes_after_frames(client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream) -> None:
    """The test's function runs between two frames, and what it does is seen by the rest of the stream."""
    upstream.send(FIRST)
    proxy.inject(on=watches(), fault=Hook(lambda: upstream.send(SECOND), after_frames=1))
    proxy.inject(on=watches(), fault=EndEarly(after_frames=2))

    assert watch(client).data == FIRST + SECOND
    assert proxy.fired == (1, 1)


def test_failure_of_a_hook_is_raised_by_the_proxy(upstream: Upstream) -> None:
    """A hook that raises breaks the request, and its exception comes out where the proxy is left."""

    def fail() -> None:
        message = "etcd is away"
        raise OSError(message)

    def use() -> None:
        with ApiProxy(upstream.url) as proxy:
            proxy.inject(on=anything(), fault=Hook(fail))
            with pytest.raises(ProtocolError):
                urllib3.request("GET", proxy.url + WORKFLOWS, retries=False)
            assert proxy.fired == (0,)

    with pytest.raises(ProxyError, match="etcd is away"):
        use()


def test_failure_of_a_hook_is_noted_on_the_failure_of_the_test(upstream: Upstream) -> None:
    """When the test fails too, its own exception is raised, with the hook's as a note."""

    def use() -> None:
        with ApiProxy(upstream.url) as proxy:
            proxy.inject(on=anything(), fault=Hook(lambda: pytest.fail("compaction refused")))
            urllib3.request("GET", proxy.url + WORKFLOWS, retries=False)

    with pytest.raises(ProtocolError) as broken:
        use()
    assert "compaction refused" in broken.value.__notes__[0]


# Connections that come and go


def test_down_refuses_and_up_accepts_on_the_same_port(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream
) -> None:
    """While down, an open watch is cut and connections are refused; then everything is as before."""
    upstream.send(FIRST)
    stream = watch(client).stream()
    assert next(stream) == FIRST

    url = proxy.url
    proxy.down()
    with pytest.raises(ProtocolError):
        next(stream)
    for _ in range(2):
        with pytest.raises(NewConnectionError):
            client.request("GET", WORKFLOWS)
        proxy.down()
    until(lambda: upstream.open_watches == 0)
    proxy.up()
    proxy.up()
    assert proxy.url == url
    assert client.request("GET", WORKFLOWS).data == LISTING


def test_hook_may_take_the_proxy_down(client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream) -> None:
    """A server that dies in the middle of a watch can be scripted."""
    upstream.send(FIRST)
    down = proxy.inject(on=watches(), fault=Hook(proxy.down, after_frames=1))

    stream = watch(client).stream()
    assert next(stream) == FIRST
    with pytest.raises(ProtocolError):
        next(stream)
    proxy.wait_fired(down)
    with pytest.raises(NewConnectionError):
        client.request("GET", WORKFLOWS)


def test_death_of_the_server_is_passed_on(
    client: urllib3.HTTPConnectionPool, proxy: ApiProxy, upstream: Upstream
) -> None:
    """A stream that the server breaks off has no clean end at the client either, and nothing is raised later."""
    upstream.send(FIRST)
    stream = watch(client).stream()
    assert next(stream) == FIRST
    upstream.dying.set()
    with pytest.raises(ProtocolError):
        next(stream)

    upstream.shutdown()
    upstream.server_close()
    with pytest.raises(ProtocolError):
        client.request("GET", WORKFLOWS)
    assert len(proxy.requests) == 2


def reset(client: socket.socket) -> None:
    """Close with a RST, as a client that dies with unread bytes does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("close", [socket.socket.close, reset])
@pytest.mark.parametrize("fault", [None, Stall(after_frames=1)])
def test_watch_of_the_server_ends_with_the_client(
    proxy: ApiProxy, upstream: Upstream, fault: Fault | None, close: Callable[[socket.socket], None]
) -> None:
    """When the client goes away, the silent watch behind it is closed too."""
    if fault:
        proxy.inject(on=watches(), fault=fault)
    upstream.send(FIRST)
    address = urlsplit(proxy.url)
    client = socket.create_connection((address.hostname, address.port), timeout=10)
    client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % WATCH.encode())
    received = b""
    while FIRST not in received:
        received += client.recv(4096)
    assert upstream.open_watches == 1

    close(client)
    until(lambda: upstream.open_watches == 0)


def test_leaving_ends_everything(upstream: Upstream) -> None:
    """An open watch, a stalled request and an idle connection keep nobody: no thread is left, no port is open."""
    before = {thread for thread in threading.enumerate() if not thread.daemon}
    with urllib3.PoolManager(retries=False, timeout=10, maxsize=3) as clients:
        with ApiProxy(upstream.url) as proxy:
            assert clients.request("GET", proxy.url + WORKFLOWS).status == 200
            upstream.send(FIRST)
            stream = clients.request("GET", proxy.url + WATCH, preload_content=False).stream()
            assert next(stream) == FIRST
            stall = proxy.inject(on=lists(), fault=Stall())
            with pytest.raises(ReadTimeoutError):
                clients.request("GET", proxy.url + WORKFLOWS, timeout=0.05)
            stalled = proxy.inject(on=lists(), fault=Stall())
            thread = threading.Thread(target=_expect_broken, args=(clients, proxy.url + WORKFLOWS))
            thread.start()
            proxy.wait_fired(stall)
            proxy.wait_fired(stalled)
        thread.join()
        assert {thread for thread in threading.enumerate() if not thread.daemon} == before
        with pytest.raises(ProtocolError):
            next(stream)
        with pytest.raises(NewConnectionError):
            clients.request("GET", proxy.url + WORKFLOWS)
    until(lambda: upstream.open_watches == 0)


def _expect_broken(clients: urllib3.PoolManager, url: str) -> None:
    with pytest.raises(ProtocolError):
        clients.request("GET", url)


# TLS towards the server


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[tuple[Upstream, Path]]:
    """Serve over TLS, with a certificate that is its own CA; the path is that of the certificate."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl program makes the certificate")
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(Upstream(context)) as server:
        yield server, certificate


def test_server_may_speak_tls(secure: tuple[Upstream, Path]) -> None:
    """Over TLS too, frames pass as they come, and leaving the proxy ends a watch that is being read."""
    upstream, ca_file = secure
    with ApiProxy(upstream.url, ca_file) as proxy:
        upstream.send(FIRST)
        response = urllib3.request("GET", proxy.url + WATCH, preload_content=False, retries=False)
        assert next(response.stream()) == FIRST
    response.close()
    until(lambda: upstream.open_watches == 0)


def test_server_with_another_certificate_is_a_failure_of_the_test(secure: tuple[Upstream, Path]) -> None:
    """A server that no given CA vouches for is reported, not passed on as a server that is away."""
    upstream, _ = secure
    with (
        pytest.raises(ProxyError, match="certificate is not accepted"),
        ApiProxy(upstream.url) as proxy,
        pytest.raises(ProtocolError),
    ):
        urllib3.request("GET", proxy.url + WORKFLOWS, retries=False)
