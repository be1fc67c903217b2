"""What adapters may need to get in, whichever of it that is, and what may have to be installed for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING

from job.credentials import GoogleCredentials
from job.errors import UsageError

if TYPE_CHECKING:  # importing it takes half a second
    from kubernetes.client import Configuration


def _no_cluster() -> Configuration:
    message = "no cluster is known here"
    raise UsageError(message)


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials, each of them found when it is asked for."""

    google: GoogleCredentials
    kubernetes: Callable[[], Configuration] = _no_cluster
    """How the official client reaches the cluster that is watched, with the same credentials. Raises `WatcherError`."""


def require(module: str, extra: str) -> None:
    """Raise `UsageError` where a library is missing that only this adapter needs."""
    if find_spec(module) is None:
        message = f"{module} is not installed: pip install 'workflow-watcher[{extra}]'"
        raise UsageError(message)


def untrusted(error: object) -> bool:
    """Whether a certificate is the reason of an error, in whatever libraries have wrapped it."""
    if not isinstance(error, BaseException) or isinstance(error, SSLCertVerificationError):
        return isinstance(error, SSLCertVerificationError)
    return any(map(untrusted, (*error.args, error.__cause__ or error.__context__)))
