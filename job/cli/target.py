"""What `run` and `backfill` have in common: of what messages are made, what they carry, and where they go."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from job import wiring
from job.access import Access
from job.change import Resource
from job.checkpoint import Scope
from job.credentials import GoogleCredentials
from job.errors import UsageError
from job.payload import Content, Payload
from job.ports import Patience, Sink
from job.selector import Selector
from job.settings import (
    LOCAL,
    Address,
    check_environment,
    local_path,
    parse_address,
    parse_cluster,
    parse_namespace,
    parse_resource,
)
from job.sources.connection import Connection, from_kubeconfig, from_pod, in_pod

_NOT_AN_OPTION = {"WATCHER_TERMINATION_LOG", "WATCHER_COMMAND"}
"""The second is the command itself, in cronjob.yaml."""


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster's resource, and the sinks for its changes."""

    scope: Scope
    resource: Resource
    selector: Selector
    content: Content
    connection: Connection
    access: Access
    sink: Sink
    sink_address: Address
    dead_letters: Sink | None
    dead_letter_address: Address | None


def find_target(
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
    payload: Payload,
    transitions: bool,
    redact: Sequence[str] | None,
    **required: str | None,
) -> Target:
    """Make out what the options mean; in a pod the `required` ones must be given, too. Raises `WatcherError`."""
    watched = parse_resource(resource)
    matching = Selector(selector)
    chosen = _namespace(context, namespace, all_namespaces=all_namespaces)
    access = Access(GoogleCredentials(patience))
    sink_address = absolute(parse_address(sink or "stdout:", "sink", wiring.SINKS))
    publish_to = wiring.sink(sink_address, access)
    dead_letter_address = (
        absolute(parse_address(dead_letter, "dead letter", wiring.DEAD_LETTERS)) if dead_letter else None
    )
    if dead_letter_address and dead_letter_address.place == sink_address.place:
        message = (
            f"--dead-letter is the sink itself, {sink_address.place}, which will refuse there what it refuses here"
        )
        raise UsageError(message)
    dead_letters = wiring.sink(dead_letter_address, access) if dead_letter_address else None
    pod = not (kubeconfig or kube_context) and in_pod(os.environ)
    if pod:
        _require(cluster=cluster, sink=sink, **required)
    connection = from_pod(os.environ) if pod else from_kubeconfig(kubeconfig, kube_context)
    if chosen is None and connection.namespace is None:
        message = "this pod is not told its namespace: give --namespace or --all-namespaces"
        raise UsageError(message)
    scope = Scope(
        cluster=parse_cluster(cluster or connection.cluster or ""),
        resource=str(watched),
        namespace=(connection.namespace or "") if chosen is None else chosen,
        selector=matching.text,
        sink=sink_address.place,
    )
    return Target(
        scope=scope,
        resource=watched,
        selector=matching,
        content=Content(payload, transitions, tuple(sorted(set(redact or ())))),
        connection=connection,
        access=replace(access, kubernetes=connection.configuration),
        sink=publish_to,
        sink_address=sink_address,
        dead_letters=dead_letters,
        dead_letter_address=dead_letter_address,
    )


def check_variables(context: typer.Context) -> None:
    """Refuse an environment variable that no command reads. Raises `UsageError`."""
    check_environment(os.environ, {*_variables(context), *_NOT_AN_OPTION})


def absolute(address: Address) -> Address:
    """A path means the same in every folder; a `/` at its end is kept."""
    if address.scheme not in LOCAL:
        return address
    slash = "/" if address.path.endswith("/") else ""
    try:
        path = Path(local_path(address)).expanduser().absolute()
    except RuntimeError as error:
        message = f"the path in {address} cannot be found: {error}"
        raise UsageError(message) from error
    return replace(address, path=f"{path}{slash}")


def _variables(context: typer.Context) -> Iterator[str]:
    """The environment variables of all commands' options."""
    group = context.parent.command if context.parent else None
    for command in getattr(group, "commands", {}).values():
        for option in command.params:
            if isinstance(option.envvar, str):
                yield option.envvar


def _namespace(context: typer.Context, namespace: str | None, *, all_namespaces: bool) -> str | None:
    """The namespace, empty for all of them, None for the default one. A flag wins over the other's variable."""
    if namespace and all_namespaces:
        typed = {
            name
            for name in ("namespace", "all_namespaces")
            if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
        }
        if len(typed) != 1:
            message = "--namespace and --all-namespaces exclude each other"
            raise UsageError(message)
        all_namespaces = typed == {"all_namespaces"}
    if all_namespaces:
        return ""
    return parse_namespace(namespace) if namespace else None


def _require(**options_: str | None) -> None:
    """In a pod a default would be a guess: of a name, of a terminal, of a disk that is gone with the pod."""
    missing = [f"--{name} (WATCHER_{name.upper()})" for name, value in options_.items() if not value]
    if missing:
        message = f"in a pod {' and '.join(missing)} must be given"
        raise UsageError(message)
