"""`workflow-watcher doctor`."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import typer

from job.cli import options
from job.cli.prepare import prepare, with_options_of
from job.cli.report import complain, conclude, default_format
from job.cli.run import run
from job.errors import ActionNeeded, ExitCode, Unavailable, UsageError, WatcherError
from job.logs import LogFormat, event, set_up
from job.ports import Check, Verdict
from job.run.background import in_background

_WIDTH = max(map(len, Verdict))
_LOG_IN = 15.0
"""Seconds for a plug-in of the kubeconfig, which may wait for somebody to log in."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@with_options_of(run)
def doctor(
    context: typer.Context,
    *,
    as_json: options.Json = False,
    log_format: options.Format = None,
    **of_a_run: Any,  # noqa: ANN401 - what typer has read for the parameters of `run`
) -> int:
    """Look whether a run with these options and credentials would work, and say what to do where it would not.

    It changes nothing. Each check is one line on stdout: ok, warn or fail; what was looked at; what was found; and
    behind `->` what to do next. It ends with 78 if a check has failed, else with 0.
    """
    log_format = log_format or default_format()
    set_up(log_format)
    found: list[Check] = []
    try:
        for check in _checks(context, of_a_run):
            found.append(check)
            _say(_object(check) if as_json else _line(check))
    except UsageError as error:
        complain(str(error), log_format)
        return int(error.exit_code)
    except Exception:
        log.exception("A bug in workflow-watcher", extra=event("doctor.crashed"))
        return int(ExitCode.BUG)
    return _conclude(found, log_format)


def _conclude(found: Sequence[Check], log_format: LogFormat) -> int:
    counts = Counter(check.verdict for check in found)
    sentence = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)
    failed = ActionNeeded(f"a run would not work: {sentence}") if counts[Verdict.FAIL] else None
    code = failed.exit_code if failed else ExitCode.DONE
    # The worst first: Kubernetes cuts a termination message off.
    wrong = [_line(check) for verdict in (Verdict.FAIL, Verdict.WARN) for check in found if check.verdict is verdict]
    fields = {"exit_code": int(code), **{str(each): counts[each] for each in Verdict}, "checks": wrong}
    conclude("doctor.finished", str(failed) if failed else sentence, fields, failed, log_format)
    return int(code)


def _checks(context: typer.Context, of_a_run: Mapping[str, Any]) -> Iterator[Check]:
    from job.doctor import Brief, examine  # only who asks for it pays for importing it

    patience = Brief()
    try:
        settings, ports = in_time(partial(prepare, context, patience, **of_a_run), _LOG_IN)
    except UsageError:
        raise
    except WatcherError as error:
        yield Check.fail("log-in to the cluster", error, "log in again, or correct --kubeconfig and --context")
        return
    yield from examine(settings, ports, patience)


def in_time(log_in: Callable[[], Result], seconds: float) -> Result:
    """What it gives. Raises `Unavailable` when it takes longer."""
    try:
        return in_background("doctor-log-in", log_in).result(seconds)
    except TimeoutError as error:
        message = f"nothing was heard within {seconds:g} s of what the kubeconfig has for it"
        raise Unavailable(message) from error


def _say(line: str) -> None:
    encoding = sys.stdout.encoding
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError:  # nobody reads any further, or a disk is full; the exit code is still to be found out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _line(check: Check) -> str:
    remedy = f" -> {check.remedy}" if check.remedy else ""
    words = " ".join(f"{check.verdict:{_WIDTH}} {check.what}: {check.found}{remedy}".splitlines())
    # What a server has said may have what moves a terminal's cursor, and a path bytes that are no text.
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in words)


def _object(check: Check) -> str:
    members = {"verdict": check.verdict, "what": check.what, "found": check.found, "next": check.remedy}
    readable = {name: text.encode(errors="backslashreplace").decode() for name, text in members.items()}
    return msgspec.json.encode(readable).decode()
