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


def untrusted(error: BaseException) -> bool:
    """Whether a certificate is the reason of an error, in whatever libraries have wrapped it."""
    todo, seen = [error], set[int]()
    while todo:
        each = todo.pop()
        if isinstance(each, SSLCertVerificationError):
            return True
        if id(each) not in seen:
            seen.add(id(each))
            behind = (*each.args, each.__cause__, each.__context__)
            todo += [one for one in behind if isinstance(one, BaseException)]
    return False
