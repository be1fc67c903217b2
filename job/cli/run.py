"""`workflow-watcher run`."""

from __future__ import annotations

import logging
import signal
import uuid

import typer

from job.cli import options
from job.cli.prepare import prepare
from job.cli.report import complain, default_format, summarise
from job.errors import ExitCode, WatcherError
from job.logs import LogFormat, event, set_up
from job.payload import Payload
from job.run import Ports, run as run_window
from job.run.deadline import Deadline
from job.settings import Initial, Settings, parse_duration, parse_window

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
    dead_letter: options.DeadLetter = None,
    checkpoint: options.CheckpointUrl = None,
    window: options.Window = "55s",
    recover: options.Recover = "20s",
    payload: options.PayloadKind = Payload.OBJECT,
    transitions: options.Transitions = False,
    redact: options.Redact = None,
    initial: options.FirstRun = Initial.PUBLISH,
    resource_version: options.ResourceVersion = None,
    log_format: options.Format = None,
) -> int:
    """Watch one window: resume from the checkpoint, publish every change, save the checkpoint, exit."""
    log_format = log_format or default_format()
    set_up(log_format)
    try:
        deadline = Deadline(parse_window(window), recover=parse_duration(recover))
        settings, ports = prepare(
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
            checkpoint=checkpoint,
            window=window,
            recover=recover,
            payload=payload,
            transitions=transitions,
            redact=redact,
            initial=initial,
            resource_version=resource_version,
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
