"""`workflow-watcher run`."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import typer

from job import wiring
from job.access import Access
from job.checkpoint import Scope
from job.cli import options
from job.cli.report import complain, default_format, summarise
from job.credentials import GoogleCredentials
from job.errors import ExitCode, UsageError, WatcherError
from job.logs import LogFormat, event, set_up
from job.run import Ports, run as run_window
from job.run.deadline import Deadline
from job.selector import Selector
from job.settings import (
    LOCAL,
    Address,
    Initial,
    Settings,
    check_environment,
    completed,
    default_checkpoint,
    local_path,
    parse_address,
    parse_cluster,
    parse_duration,
    parse_namespace,
    parse_resource,
    parse_version,
    parse_window,
)
from job.sources.connection import from_kubeconfig, from_pod, in_pod

_NOT_AN_OPTION = {"WATCHER_TERMINATION_LOG", "WATCHER_COMMAND"}
"""The second is the command itself, in cronjob.yaml."""

log = logging.getLogger(__name__)


def run(
    context: typer.Context,
    *,
    resource: options.Resource = "workflows.v1alpha1.argoproj.io",
    namespace: options.Namespace = None,
    all_namespaces: options.AllNamespaces = False,
    selector: options.LabelSelector = "",
    kubeconfig: options.Kubeconfig = None,
    kube_context: options.Context = None,
    cluster: options.Cluster = None,
    sink: options.Sink = None,
    checkpoint: options.CheckpointUrl = None,
    window: options.Window = "55s",
    recover: options.Recover = "20s",
    initial: options.FirstRun = Initial.PUBLISH,
    resource_version: options.ResourceVersion = None,
    log_format: options.Format = None,
) -> int:
    """Watch one window: resume from the checkpoint, publish every change, save the checkpoint, exit."""
    log_format = log_format or default_format()
    set_up(log_format)
    try:
        check_environment(os.environ, {*_variables(context), *_NOT_AN_OPTION})
        length = parse_window(window)
        recovery = parse_duration(recover)
        deadline = Deadline(length, recover=recovery)
        watched = parse_resource(resource)
        matching = Selector(selector)
        start = parse_version(resource_version) if resource_version else None
        chosen = _namespace(context, namespace, all_namespaces=all_namespaces)
        access = Access(GoogleCredentials(deadline))
        sink_address = _absolute(parse_address(sink or "stdout:", "sink", wiring.SINKS))
        publish_to = wiring.sink(sink_address, access)
        named = _absolute(parse_address(checkpoint, "checkpoint", wiring.STORES)) if checkpoint else None
        pod = not (kubeconfig or kube_context) and in_pod(os.environ)
        if pod:
            _require(cluster=cluster, sink=sink, checkpoint=checkpoint)
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
        settings = Settings(
            scope=scope,
            resource=watched,
            selector=matching,
            sink=sink_address,
            checkpoint=completed(named, scope) if named else default_checkpoint(_state_folder(), scope),
            window=length,
            recover=recovery,
            initial=initial,
            resource_version=start,
        )
        ports = Ports(
            source=wiring.source(settings, connection, deadline),
            sink=publish_to,
            store=wiring.store(settings.checkpoint, replace(access, kubernetes=connection.configuration)),
        )
    except WatcherError as error:
        complain(str(error), log_format)
        return int(error.exit_code)
    return _run(settings, ports, deadline, log_format)


def _run(settings: Settings, ports: Ports, deadline: Deadline, log_format: LogFormat) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: deadline.signal())
    try:
        summary = run_window(settings, ports, deadline, run_id=str(uuid.uuid4()))
    except Exception:
        log.exception(
            "A bug in workflow-watcher; the checkpoint stays as it was saved last", extra=event("run.crashed")
        )
        return int(ExitCode.BUG)
    summarise(summary, log_format)
    return int(summary.exit_code)


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


def _absolute(address: Address) -> Address:
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


def _state_folder() -> Path:
    """As the XDG base directory specification has it."""
    home = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(home) if home else Path.home() / ".local" / "state") / "workflow-watcher"
    except RuntimeError as error:
        message = "there is no home folder for a checkpoint: give --checkpoint"
        raise UsageError(message) from error
