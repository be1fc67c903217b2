"""`workflow-watcher backfill`."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from job import wiring
from job.cli import options
from job.cli.report import complain, conclude, default_format
from job.cli.target import Target, check_variables, find_target
from job.errors import ExitCode, WatcherError
from job.logs import LogFormat, event, set_up
from job.message import Envelope
from job.payload import Payload
from job.run.deadline import Deadline
from job.settings import parse_time

if TYPE_CHECKING:  # only who asks for a backfill pays for importing it
    from job.backfill import Report, Wanted

_LINE_SECONDS = 10.0
"""Between two log lines about the progress."""

log = logging.getLogger(__name__)


def backfill(
    context: typer.Context,
    *,
    resource: options.Resource = "workflows.v1alpha1.argoproj.io",
    namespace: options.Namespace = None,
    all_namespaces: options.AllNamespaces = False,
    selector: options.LabelSelector = "",
    phase: options.Phase = None,
    since: options.Since = None,
    until: options.Until = None,
    rate: options.Rate = None,
    dry_run: options.DryRun = False,
    kubeconfig: options.Kubeconfig = None,
    kube_context: options.Context = None,
    cluster: options.Cluster = None,
    sink: options.Sink = None,
    dead_letter: options.DeadLetter = None,
    payload: options.PayloadKind = Payload.OBJECT,
    transitions: options.Transitions = False,
    redact: options.Redact = None,
    log_format: options.Format = None,
) -> int:
    """Publish what exists now, with the ids that a run gives, and exit. The checkpoint of runs is not touched.

    Interrupted, it is simply run again: repeats have the same ids.
    """
    from job.backfill import IDLE, Wanted

    log_format = log_format or default_format()
    set_up(log_format)
    deadline = Deadline(IDLE)
    try:
        check_variables(context)
        after, before = (parse_time(text) if text else None for text in (since, until))
        target = find_target(
            context,
            deadline,
            resource=resource,
            namespace=namespace,
            all_namespaces=all_namespaces,
            selector=selector,
            kubeconfig=kubeconfig,
            kube_context=kube_context,
            cluster=cluster,
            sink=sink,
            dead_letter=dead_letter,
            payload=payload,
            transitions=transitions,
            redact=redact,
        )
        scope = target.scope
        wanted = Wanted(
            scope=scope,
            envelope=Envelope(scope.cluster, target.resource, scope.namespace, target.content),
            content=target.content,
            selector=target.selector,
            phases=frozenset(phase or ()),
            since=after,
            until=before,
            rate=rate or 0,
            dry_run=dry_run,
            dead_letter=target.dead_letter_address,
        )
    except WatcherError as error:
        complain(str(error), log_format)
        return int(error.exit_code)
    return _backfill(wanted, target, deadline, log_format)


def _backfill(wanted: Wanted, target: Target, deadline: Deadline, log_format: LogFormat) -> int:
    from job.backfill import backfill as publish_all

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: deadline.signal())
    source = wiring.source(target.resource, target.scope.namespace, target.connection, deadline)
    try:
        with ExitStack() as shown:
            progress = _bar(shown) if sys.stderr.isatty() else _lines()
            report = publish_all(
                wanted, source, target.sink, deadline, dead_letters=target.dead_letters, progress=progress
            )
    except Exception:
        log.exception("A bug in workflow-watcher", extra=event("backfill.crashed"))
        return int(ExitCode.BUG)
    conclude("backfill.finished", report.sentence(), report.fields(), report.error, log_format)
    return int(report.exit_code)


def _bar(shown: ExitStack) -> Callable[[Report], None]:
    """A progress bar on the terminal that stderr is."""
    bar = None

    def progress(report: Report) -> None:
        nonlocal bar
        if bar is None:
            bar = shown.enter_context(typer.progressbar(length=report.total, label="backfill", file=sys.stderr))
        bar.update(max(0, report.listed - bar.pos))

    return progress


def _lines() -> Callable[[Report], None]:
    """A log line now and then, where stderr is none."""
    said_at = time.monotonic()

    def progress(report: Report) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _LINE_SECONDS:
            said_at = time.monotonic()
            log.info(
                "%d of about %d objects, %d messages of %d bytes",
                report.listed,
                report.total,
                report.messages,
                report.bytes,
                extra=event("backfill.progress", listed=report.listed, total=report.total, messages=report.messages),
            )

    return progress
