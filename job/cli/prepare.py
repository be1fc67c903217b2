"""What `run` and `doctor` have in common: the settings of a run, and the outside that it has."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import typer

from job import wiring
from job.cli.target import absolute, check_variables, find_target
from job.errors import UsageError
from job.payload import Payload
from job.ports import Patience
from job.run import Ports
from job.settings import (
    Initial,
    Settings,
    completed,
    default_checkpoint,
    parse_address,
    parse_duration,
    parse_version,
    parse_window,
)


def prepare(
    context: typer.Context,
    patience: Patience,
    *,
    resource: str,
    namespace: str | None,
    all_namespaces: bool,
    selector: str,
    kubeconfig: str | None,
    kube_context: str | None,
    cluster: str | None,
    sink: str | None,
    dead_letter: str | None,
    checkpoint: str | None,
    window: str,
    recover: str,
    payload: Payload,
    transitions: bool,
    redact: Sequence[str] | None,
    initial: Initial,
    resource_version: str | None,
) -> tuple[Settings, Ports]:
    """Make out what the options of a run mean. Nothing is opened yet. Raises `WatcherError`."""
    check_variables(context)
    length, recovery = parse_window(window), parse_duration(recover)
    start = parse_version(resource_version) if resource_version else None
    named = absolute(parse_address(checkpoint, "checkpoint", wiring.STORES)) if checkpoint else None
    target = find_target(
        context,
        patience,
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
        checkpoint=checkpoint,
    )
    scope = target.scope
    settings = Settings(
        scope=scope,
        resource=target.resource,
        selector=target.selector,
        sink=target.sink_address,
        checkpoint=completed(named, scope) if named else default_checkpoint(_state_folder(), scope),
        window=length,
        recover=recovery,
        content=target.content,
        dead_letter=target.dead_letter_address,
        initial=initial,
        resource_version=start,
    )
    ports = Ports(
        source=wiring.source(target.resource, scope.namespace, target.connection, patience),
        sink=target.sink,
        store=wiring.store(settings.checkpoint, target.access),
        dead_letters=target.dead_letters,
    )
    return settings, ports


Command = Callable[..., int]


def with_options_of(other: Command) -> Callable[[Command], Command]:
    """Give a command, in the place of its `**options`, the options that another one has and it has not."""

    def give(command: Command) -> Command:
        own, theirs = (inspect.signature(each, eval_str=True).parameters for each in (command, other))
        named = [each for each in own.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = [each for name, each in theirs.items() if name not in own]
        together = [named[0], *taken, *named[1:]]
        command.__signature__ = inspect.Signature(together, return_annotation=int)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in together}
        return command

    return give


def _state_folder() -> Path:
    """As the XDG base directory specification has it."""
    home = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".local" / "state") / "workflow-watcher"
    except RuntimeError as error:
        message = "there is no home folder for a checkpoint: give --checkpoint"
        raise UsageError(message) from error
