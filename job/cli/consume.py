"""`workflow-watcher consume`."""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated

import typer

from job import wiring
from job.access import Access
from job.cli import options
from job.cli.report import complain, conclude, default_format
from job.cli.target import check_variables
from job.consume import Consumer
from job.consume.commands import Processes
from job.credentials import GoogleCredentials
from job.errors import ExitCode, UsageError, WatcherError
from job.logs import event, set_up
from job.run.deadline import Deadline
from job.settings import parse_duration

Command = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- COMMAND [ARGUMENT]...", help="What each event is handed to.", show_default=False),
]

log = logging.getLogger(__name__)


def consume(
    context: typer.Context,
    command: Command = None,
    *,
    subscription: options.Subscription = "",
    window: options.ConsumeWindow = "55s",
    latest_only: options.LatestOnly = False,
    log_format: options.Format = None,
) -> int:
    """Pull events for one window, and hand each to a command: as JSON on its standard input, with CE_* variables.

    Exit code 0 acknowledges the event; any other gives it back to the broker, which delivers it again. Each event is
    handed over once after it has succeeded, and those of one object in order.
    """
    log_format = log_format or default_format()
    set_up(log_format)
    try:
        check_variables(context)
        length = parse_duration(window)
        commands = Processes(command or [], os.environ)
        if not subscription:
            message = "--subscription (WATCHER_SUBSCRIPTION) must be given"
            raise UsageError(message)
        deadline = Deadline(length)
        pulled = wiring.subscription(subscription, Access(GoogleCredentials(deadline)))
    except WatcherError as error:
        complain(str(error), log_format)
        return int(error.exit_code)
    consumer = Consumer(pulled, commands, window=length, latest_only=latest_only)

    def end(*_: object) -> None:
        consumer.signal()
        deadline.signal()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        summary = consumer.run()
    except Exception:
        log.exception("A bug in workflow-watcher", extra=event("consume.crashed"))
        return int(ExitCode.BUG)
    conclude("consume.finished", summary.sentence(), summary.fields(), summary.error, log_format)
    return int(summary.exit_code)
