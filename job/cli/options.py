"""Every option, once. Each has an environment variable of its own: `kubectl create job --from` takes no arguments."""

from __future__ import annotations

from typing import Annotated

import typer

from job.logs import LogFormat
from job.payload import Payload
from job.settings import Initial

Resource = Annotated[
    str,
    typer.Option(
        "--resource",
        envvar="WATCHER_RESOURCE",
        metavar="PLURAL.VERSION.GROUP",
        help="What to watch, as kubectl spells it; the core group is empty, as in pods.v1.",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        envvar="WATCHER_NAMESPACE",
        metavar="NAME",
        help="Watch one namespace.",
        show_default="the context's or the pod's",
    ),
]
AllNamespaces = Annotated[
    bool,
    typer.Option("--all-namespaces", "-A", envvar="WATCHER_ALL_NAMESPACES", help="Watch all namespaces."),
]
LabelSelector = Annotated[
    str,
    typer.Option(
        "--selector",
        "-l",
        envvar="WATCHER_SELECTOR",
        metavar="LABELS",
        help="Only objects whose labels match when they are first seen; kubectl's grammar, evaluated here.",
    ),
]
Kubeconfig = Annotated[
    str | None,
    typer.Option(
        "--kubeconfig",
        envvar="WATCHER_KUBECONFIG",
        metavar="PATH",
        help="How to reach the cluster.",
        show_default="in a pod its service account, else as kubectl",
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        "--context",
        envvar="WATCHER_CONTEXT",
        metavar="NAME",
        help="The kubeconfig's context.",
        show_default="the current one",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        envvar="WATCHER_CLUSTER",
        metavar="NAME",
        help="Name of the cluster, in ce-source and in the checkpoint.",
        show_default="the context's cluster; required in a pod",
    ),
]
Sink = Annotated[
    str | None,
    typer.Option(
        "--sink",
        envvar="WATCHER_SINK",
        metavar="URL",
        help="Where messages go: pubsub://PROJECT/TOPIC[?ordering=N&region=R], sqs:QUEUE_URL, tcp://HOST:PORT, "
        "tls://HOST:PORT, unix:PATH, file:PATH.jsonl or stdout:.",
        show_default="stdout:; required in a pod",
    ),
]
DeadLetter = Annotated[
    str | None,
    typer.Option(
        "--dead-letter",
        envvar="WATCHER_DEAD_LETTER",
        metavar="URL",
        help="Where messages go that the sink refuses: any sink's URL, or gs://BUCKET/PREFIX/, an object for each.",
        show_default="a refused message ends the run",
    ),
]
CheckpointUrl = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        envvar="WATCHER_CHECKPOINT",
        metavar="URL",
        help="Where the position is kept: gs://BUCKET/OBJECT, configmap://NAMESPACE/NAME, "
        "redis://HOST:PORT/DB?key=NAME, the same with rediss:, or file:PATH; one that ends in / is completed with "
        "CLUSTER/NAMESPACE/RESOURCE.json.gz.",
        show_default="a file in the user's state folder, named by all that it depends on; required in a pod",
    ),
]
Window = Annotated[
    str,
    typer.Option(
        "--window",
        envvar="WATCHER_WINDOW",
        metavar="DURATION",
        help="How long to watch, as in 55s or 4m30s; 0s catches up and exits.",
    ),
]
Recover = Annotated[
    str,
    typer.Option(
        "--recover",
        envvar="WATCHER_RECOVER",
        metavar="DURATION",
        help="How long to read history back from etcd where the API server has forgotten it; 0s: not at all.",
    ),
]
PayloadKind = Annotated[
    Payload,
    typer.Option(
        "--payload",
        envvar="WATCHER_PAYLOAD",
        help="What a message carries: the object itself, or a summary of it with a Workflow's nodes.",
    ),
]
Transitions = Annotated[
    bool,
    typer.Option("--transitions", envvar="WATCHER_TRANSITIONS", help="Only tell changes of a phase, and deletions."),
]
Redact = Annotated[
    list[str] | None,
    typer.Option(
        "--redact",
        envvar="WATCHER_REDACT",
        metavar="GLOB",
        help="Names of parameters, outputs and environment whose values become REDACTED, in any case of letters; "
        "repeatable, in the variable separated by blanks.",
        show_default="none",
    ),
]
FirstRun = Annotated[
    Initial,
    typer.Option(
        "--initial",
        envvar="WATCHER_INITIAL",
        help="What a first run does with the objects that exist.",
    ),
]
ResourceVersion = Annotated[
    str | None,
    typer.Option(
        "--resource-version",
        envvar="WATCHER_RESOURCE_VERSION",
        metavar="VERSION",
        help="Start at this version of the cluster; only where there is no checkpoint yet.",
        show_default="now",
    ),
]
Phase = Annotated[
    list[str] | None,
    typer.Option(
        "--phase",
        envvar="WATCHER_PHASE",
        metavar="PHASE",
        help="Only objects in this phase; repeatable, in the variable separated by blanks.",
        show_default="any",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        envvar="WATCHER_SINCE",
        metavar="TIME",
        help="Only objects that were created then or later, as in 2026-11-27T08:00:00Z or 2026-11-27.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", envvar="WATCHER_UNTIL", metavar="TIME", help="Only objects that were created before."),
]
Rate = Annotated[
    int | None,
    typer.Option(
        "--rate",
        envvar="WATCHER_RATE",
        metavar="N",
        min=1,
        help="At most so many messages a second.",
        show_default="any",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", envvar="WATCHER_DRY_RUN", help="Publish nothing: say how many messages and bytes it is."),
]
Subscription = Annotated[
    str | None,
    typer.Option(
        "--subscription",
        envvar="WATCHER_SUBSCRIPTION",
        metavar="NAME",
        help="Where events come from: projects/PROJECT/subscriptions/NAME.",
        show_default="none; required",
    ),
]
ConsumeWindow = Annotated[
    str,
    typer.Option(
        "--window",
        envvar="WATCHER_WINDOW",
        metavar="DURATION",
        help="How long to pull, as in 55s or 4m30s; 0s: until nothing is left.",
    ),
]
LatestOnly = Annotated[
    bool,
    typer.Option(
        "--latest-only",
        envvar="WATCHER_LATEST_ONLY",
        help="Leave out states older than one that was processed in this window, and all of an object after its "
        "deletion.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", envvar="WATCHER_JSON", help="Each check as a JSON object on a line: verdict, what, found, next."
    ),
]
Format = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="WATCHER_LOG_FORMAT",
        help="How lines on stderr look.",
        show_default="console on a terminal, else json",
    ),
]
