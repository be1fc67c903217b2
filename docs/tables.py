"""The tables of the README, made from the program itself; `cog` puts them in, and a test holds them there."""

import inspect
import re

import typer

from job import errors
from job.cli import app
from job.errors import ExitCode, WatcherError


def options(command: str = "run") -> str:
    """Write the options of a command as a table: those of `run`, or what another one has besides."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = set() if command == "run" else {option.name for option in commands["run"].params}
    rows = ["| option | environment | meaning | default |", "|---|---|---|---|"]
    for option in commands[command].params:
        if not option.envvar or option.name in known:
            continue
        shown = option.show_default if isinstance(option.show_default, str) else _default(option.default)
        names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len, reverse=True))
        rows.append(f"| {names} | `{option.envvar}` | {option.help.replace('|', '&#124;')} | {shown} |")
    return "\n".join(rows) + "\n"


def exit_codes() -> str:
    """Write the exit codes as a table, with the errors that lead to each."""
    meanings = {
        ExitCode.DONE: "the window was watched and saved, or a signal ended it, or another run moved the checkpoint",
        ExitCode.BUG: "a bug: the checkpoint stays as it was saved last",
        ExitCode.USAGE: "an option, a URL or an environment variable is wrong",
        ExitCode.TEMPORARY: "temporary: what was acknowledged is saved, and the next run goes on",
        ExitCode.ACTION_NEEDED: "a person must act: what was acknowledged is saved, and nothing else will be",
    }
    rows = ["| code | meaning | for example |", "|---|---|---|"]
    for code, meaning in meanings.items():
        examples = "; ".join(_summary(error) for error in _causes(code))
        rows.append(f"| {int(code)} | {meaning} | {examples} |")
    return "\n".join(rows) + "\n"


def _causes(code: ExitCode) -> list[type[WatcherError]]:
    """Find the errors that a group of them stands for."""
    found = [thing for thing in vars(errors).values() if inspect.isclass(thing) and issubclass(thing, WatcherError)]
    groups = (Exception, WatcherError)
    return [error for error in found if error.exit_code is code and error.__base__ not in groups]


def _summary(error: type[WatcherError]) -> str:
    first, *_ = re.split(r"[.;]", error.__doc__ or "")
    return first[0].lower() + first[1:]


def _default(value: object) -> str:
    if value in (None, False, ""):
        return ""
    return f"`{getattr(value, 'value', value)}`"
