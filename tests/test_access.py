"""Tests of what adapters need to get in."""

from __future__ import annotations

import ssl

import pytest

from job.access import require, untrusted
from job.errors import UsageError


def test_a_library_that_is_missing_is_named_with_its_extra() -> None:
    """Before anything is opened; one that is there is no reason to say anything."""
    require("json", "redis")
    with pytest.raises(UsageError, match=r"pip install 'workflow-watcher\[redis\]'"):
        require("a_library_that_nobody_has", "redis")


def test_errors_that_go_round_in_a_circle_are_looked_at_once() -> None:
    """As where one is raised again in the handler of the one that it was wrapped in."""
    error, wrapped = OSError(), OSError()
    error.__context__, wrapped.__cause__ = wrapped, error

    assert untrusted(error) is False


@pytest.mark.parametrize("how", ["itself", "cause", "context", "argument", "no"])
def test_a_certificate_is_found_behind_whatever_wraps_its_error(how: str) -> None:
    """Libraries raise it from, during, or inside errors of their own; other errors of TLS are those of a server."""
    reason = ssl.SSLCertVerificationError("self-signed certificate") if how != "no" else ssl.SSLError("end of file")
    found: BaseException = reason
    if how in {"argument", "no"}:
        found = ConnectionError("cannot connect", OSError(reason))
    elif how != "itself":
        found = raised_over(reason, on_purpose=how == "cause")

    assert untrusted(found) is (how != "no")


def raised_over(reason: Exception, *, on_purpose: bool) -> BaseException:
    try:
        try:
            raise reason
        except ssl.SSLError as error:
            if on_purpose:
                raise OSError from error
            raise ConnectionError  # noqa: B904 - as some libraries do
    except OSError as error:
        return error
