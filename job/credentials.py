"""Google's application default credentials: found and fetched once, for the sink and for the store.

They are fetched before the watch opens, so that their lack is told at once and not by the first change. In a young pod
the metadata server is not ready for some seconds (google-auth-library-python#1261): that is waited for.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from job.errors import OutOfTime, Unauthorized, Unavailable
from job.logs import event
from job.ports import Patience

if TYPE_CHECKING:  # importing it costs 30 ms, and 150 more with its HTTP client
    from google.auth.credentials import Credentials

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_READY_SECONDS = 20.0
"""How long a metadata server may need to get ready."""
_PAUSE = 0.5

log = logging.getLogger(__name__)


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

    def _wait(self) -> Credentials:
        least_left = self._patience.left() - _READY_SECONDS
        while True:
            try:
                return _fetch()
            except (Unavailable, Unauthorized) as error:
                worth_it = isinstance(error, Unavailable) or _in_a_young_pod()
                if not worth_it or self._patience.left() <= least_left:
                    raise
                log.warning("%s; trying again", error, extra=event("credentials.retry"))
                try:
                    self._patience.pause(_PAUSE)
                except OutOfTime:
                    raise error from None


def _in_a_young_pod() -> bool:
    """Whether credentials may still come from a metadata server that is starting."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")


def _fetch() -> Credentials:
    """One attempt."""
    import google.auth
    from google.auth.exceptions import GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials: Credentials
        credentials, _ = google.auth.default(scopes=[_SCOPE])
        credentials.refresh(Request())
    except GoogleAuthError as error:
        message = (
            f"no Google credentials could be had: {' '.join(str(error).split())} "
            "(in a pod they come from Workload Identity, elsewhere from `gcloud auth application-default login`)"
        )
        raise (Unavailable if error.retryable else Unauthorized)(message) from error
    return credentials
