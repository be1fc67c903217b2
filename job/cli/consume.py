"""`workflow-watcher consume`."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from job import wiring
from job.access import Access
from job.cli import options
from job.cli.report import complain, conclude, default_format
from job.cli.target import check_variables
from job.credentials import GoogleCredentials
from job.errors import ExitCode, UsageError, WatcherError
from job.logs import LogFormat, event, set_up
from job.run.deadline import Deadline
from job.settings import parse_duration

if TYPE_CHECKING:  # only who consumes pays for importing it
    from job.consume import Consumer

log = logging.getLogger(__name__)


def consume(
    context: typer.Context,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND [ARGUMENT]...", help="Run for each event.", show_default=False),
    ] = None,
    *,
    subscription: options.Subscription = None,
    window: options.ConsumeWindow = "55s",
    latest_only: options.LatestOnly = False,
    log_format: options.Format = None,
) -> int:
    """Pull for one window, and hand each event to a command: exit 0 acknowledges it, anything else gives it back.

    The command gets the event as structured JSON on stdin, and its attributes as CE_ID, CE_TYPE and so on in its
    environment. One event of an object runs at a time, in their order; a repeat is acknowledged without running.
    With --window 0s it ends when the subscription is empty.
    """
    from job.consume import Consumer
    from job.consume.commands import Processes

    log_format = log_format or default_format()
    set_up(log_format)
    try:
        check_variables(context)
        length = parse_duration(window)
        deadline = Deadline(length)
        if not subscription:
            message = "no subscription is given: --subscription (WATCHER_SUBSCRIPTION)"
            raise UsageError(message)
        consumer = Consumer(
            wiring.subscription(subscription, Access(GoogleCredentials(deadline))),
            Processes(command or [], os.environ),
            window=length,
            latest_only=latest_only,
        )
    except WatcherError as error:
        complain(str(error), log_format)
        return int(error.exit_code)
    return _run(consumer, deadline, log_format)


def _run(consumer: Consumer, deadline: Deadline, log_format: LogFormat) -> int:
    def stop(*_: object) -> None:
        consumer.signal()
        deadline.signal()

    # Where it is ignored, as a parent may have left it, no exit code of a command can be known: all would be 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        summary = consumer.run()
    except Exception:
        log.exception("A bug in workflow-watcher; what was not acknowledged comes again", extra=event("run.crashed"))
        return int(ExitCode.BUG)
    conclude("consume.finished", summary.sentence(), summary.fields(), summary.error, log_format)
    return int(summary.exit_code)
