"""Google's application default credentials: found and fetched once, for the sink and for the store.

They are fetched before the watch opens, so that their lack is told at once and not by the first change. In a young pod
the metadata server is not ready for some seconds (google-auth-library-python#1261): that is waited for.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from job.errors import Unauthorized, Unavailable, UsageError, WatcherError
from job.logs import event
from job.ports import Check, Patience

if TYPE_CHECKING:  # importing it costs 30 ms, and 150 more with its HTTP client
    from google.auth.credentials import Credentials
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport import Response
    from google.auth.transport.requests import Request

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_FILE = "GOOGLE_APPLICATION_CREDENTIALS"
_READY_SECONDS = 20.0
"""How long a metadata server may need to get ready, and a token endpoint to answer."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 2.0
_ANSWER_SECONDS = 5.0
"""For one request; google-auth would wait for two minutes."""
_LONGEST_REASON = 400
_KINDS = {
    "google.auth.compute_engine": "of the metadata server",
    "google.auth.external_account_authorized_user": "of somebody's log-in, by workforce identity",
    "google.auth.identity_pool": "of another cloud, by workload identity federation",
    "google.auth.impersonated_credentials": "of an impersonated service account",
    "google.oauth2.credentials": "of somebody's log-in with gcloud",
    "google.oauth2.service_account": "of a service account's key",
}
"""module of the credentials -> whose they are."""
_HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
HOST_AND_PORT = re.compile(rf"{_HOST}:[0-9]{{1,5}}")
URL = re.compile(rf"(?:https?://)?{_HOST}(?::[0-9]{{1,5}})?/?")
"""The forms in which Google's clients let their emulators be named."""

log = logging.getLogger(__name__)


CREDENTIALS = "Google credentials"
"""What their check is about."""


class GoogleCredentials:
    """The credentials of this process. Asked for by the main thread first, before there are others."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._found: Credentials | None = None

    def get(self) -> Credentials:
        """Credentials with a token. Raises `Unauthorized` where there are none, `Unavailable` where nobody answers."""
        if not self._found:
            self._found = self._wait()
        return self._found

    def check(self) -> Check:
        """Whether there are some, and whose; to be asked before anything else is asked with them."""
        try:
            found = self.get()
        except WatcherError as error:
            return Check.fail(CREDENTIALS, error, "bind the pod's service account (docs/stores.md), or log in")
        return Check.ok(CREDENTIALS, f"those {_whose(found)}{f', {name}' if (name := account(found)) else ''}")

    @property
    def member(self) -> str:
        """The identity as IAM spells it, for commands that people copy."""
        found = self._found and account(self._found)
        return f"serviceAccount:{found}" if found else "MEMBER"

    def _wait(self) -> Credentials:
        least_left, pause = max(0.0, self._patience.left() - _READY_SECONDS), _FIRST_PAUSE
        while True:
            try:
                return _fetch()
            except (Unavailable, Unauthorized) as error:
                worth_it = isinstance(error, Unavailable) or _in_a_young_pod()
                if not worth_it or self._patience.left() - least_left <= pause:
                    raise
                log.warning("%s; trying again", error, extra=event("credentials.retry"))
            self._patience.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def emulator(variable: str, form: re.Pattern[str]) -> str:
    """What stands in for a service of Google's, and needs no credentials; empty: nothing. Raises `UsageError`."""
    value = os.environ.get(variable, "")
    if value and not form.fullmatch(value):
        message = f"{variable} is {value!r}, which is no {'HOST:PORT' if form is HOST_AND_PORT else 'http://HOST:PORT'}"
        raise UsageError(message)
    return value


def account(found: Credentials) -> str:
    """The service account's address, empty where there is none, or it is not known."""
    name = str(getattr(found, "service_account_email", None) or "")
    return name if "@" in name else ""


def passes(error: GoogleAuthError) -> bool:
    """Whether the next attempt may succeed; google-auth itself does not say so of a connection that failed."""
    from google.auth.exceptions import TransportError

    return error.retryable or any(isinstance(part, TransportError) for part in (error, *error.args))


def _whose(found: Credentials) -> str:
    module = type(found).__module__
    return next((whose for prefix, whose in _KINDS.items() if module.startswith(prefix)), f"that {module} reads")


def _in_a_young_pod() -> bool:
    """Whether credentials may still come from a metadata server that is starting."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get(_FILE)


def _fetch() -> Credentials:
    """One attempt."""
    # Read by google-auth when it looks for a metadata server the first time.
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")
    # Its warnings say again what is told here, or miss a project that nobody needs.
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    import google.auth
    from google.auth.exceptions import GoogleAuthError

    request = _request()
    try:
        credentials: Credentials
        credentials, _ = google.auth.default(scopes=[_SCOPE], request=request)
        credentials.refresh(request)
        # Google's clients ask for it when they are made, which is late for an answer that does not come.
        _ = credentials.universe_domain
    except GoogleAuthError as error:
        raise (Unavailable if passes(error) else Unauthorized)(_message(_said(error))) from error
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        # What files and answers make of it that are not as google-auth expects: it checks few of them.
        raise Unauthorized(_message(_said(error))) from error
    return credentials


def _request() -> Request:
    """How google-auth speaks HTTP here: it would repeat each failed request, up to half a minute for one attempt."""
    from google.auth.exceptions import TransportError
    from google.auth.transport import DEFAULT_RETRYABLE_STATUS_CODES
    from google.auth.transport.requests import Request

    class Once(Request):
        def __call__(
            self,
            url: str,
            method: str = "GET",
            body: bytes | None = None,
            headers: Mapping[str, str] | None = None,
            timeout: float | None = None,
            **others: object,
        ) -> Response:
            # Without a path it asks whether there is a metadata server at all: that there is none is no error.
            matters = urlsplit(url).path
            seconds = min(timeout or _ANSWER_SECONDS, _ANSWER_SECONDS)
            try:
                response: Response = super().__call__(url, method, body, headers, seconds, **others)  # type: ignore[no-untyped-call]
            except TransportError as error:
                if matters:
                    raise Unavailable(_message(_said(error))) from error
                raise
            if matters and response.status in DEFAULT_RETRYABLE_STATUS_CODES:
                reason = f"{url} answered {response.status}: {response.data.decode(errors='replace')}"
                raise Unavailable(_message(reason))
            return response

    return Once()


def _message(reason: str) -> str:
    origin = (
        f"they are those of {file}, which {_FILE} names"
        if (file := os.environ.get(_FILE))
        else "in a pod they come from Workload Identity, elsewhere from `gcloud auth application-default login`"
    )
    return f"no Google credentials could be had: {' '.join(reason.split())[:_LONGEST_REASON]} ({origin})"


def _said(error: BaseException) -> str:
    """The words of an error; google-auth's carry what caused them, and whole answers, beside their own."""
    from google.auth.exceptions import GoogleAuthError

    if not isinstance(error, GoogleAuthError):
        return f"{type(error).__name__}: {error}"
    parts = [_said(part) if isinstance(part, Exception) else part for part in error.args]
    return ": ".join(part for part in parts if isinstance(part, str))
