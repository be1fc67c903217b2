"""What people type. The only place that prints and exits."""

from __future__ import annotations

import gc
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from job.cli.backfill import backfill
from job.cli.consume import consume
from job.cli.doctor import doctor
from job.cli.report import complain
from job.cli.run import run
from job.errors import WatcherError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
app.command()(run)
app.command()(backfill)
app.command()(consume)
app.command()(doctor)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version("workflow-watcher"))
        raise typer.Exit


@app.callback()
def workflow_watcher(
    *,
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Turn the changes of Argo Workflows, or of any Kubernetes resource, into messages, without an always-on pod.

    stdout is for data, stderr for people. Every option can be given by its environment variable; flags win.

    Exit codes: 0 the window was watched and saved; 2 usage; 75 temporary, the next run goes on; 78 a person must act;
    1 a bug.
    """


def main() -> None:
    """The command `workflow-watcher`."""
    sys.exit(_main())


def _main() -> int:
    # The API server takes objects that are nested 10,000 levels deep, and decoding counts each as a call.
    sys.setrecursionlimit(15_000)
    # Hardly anything here is part of a cycle, and looking for some after every 700 objects is a tenth of a run's CPU.
    gc.set_threshold(50_000)
    try:
        code: int | None = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except TyperException as error:
        complain(error.format_message())
        return error.exit_code
    except WatcherError as error:
        complain(str(error))
        return int(error.exit_code)
    except BrokenPipeError:  # somebody stopped reading our --help
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code or 0
