"""What `doctor` wants to know of an API server: rights by SelfSubjectAccessReview, the rest as a run asks it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from job.errors import Unauthorized, WatcherError
from job.ports import Check, Query, Verdict
from job.sources.frames import ApiResource

if TYPE_CHECKING:
    from job.sources.kubernetes import KubernetesSource

VERBS = ("get", "list", "watch")
_NEEDED = ("list", "watch")
MOST_SKEW = 5.0
"""Seconds by which clocks may differ; the header that tells has whole ones."""
_LOG_IN = "log in again, or correct --kubeconfig and --context"
_REACH = "start it, or correct --kubeconfig and --context; in a pod, let its NetworkPolicy pass it"
_INSTALL = {  # other products have other resources in the same group
    "workflows.argoproj.io": (
        "install Argo Workflows (https://argo-workflows.readthedocs.io/en/latest/installation/), or correct --resource"
    )
}
_CRDS = "apiextensions.k8s.io", "customresourcedefinitions"


def of(source: KubernetesSource) -> Iterator[Check]:
    """The checks, up to the first question that has no answer."""
    what, remedy = "API server", _REACH
    try:
        version, date = source.server()
        yield Check.ok(what, f"{source.host} is Kubernetes {version or 'of a version that it does not tell'}")
        if date:
            yield clock(date, time.time())
        what, remedy = "resource", _INSTALL.get(source.resource.group_resource, "kubectl api-resources")
        served = _served(source, source.discovered())
        yield served
        if served.verdict is Verdict.FAIL:
            return
        what, remedy = "rights", f"kubectl auth can-i --list {_scope(source)}"
        rights = {verb: _right(source, verb) for verb in VERBS}
        yield from rights.values()
        may_list = rights["list"].verdict is not Verdict.FAIL
        what, remedy = "objects", f"kubectl get {source.resource.group_resource} {_scope(source)}"
        listed = 0
        if may_list:
            page = source.list(Query(limit=1))
            listed = len(page.objects) + (page.remaining or 0)
            yield Check.ok(what, f"{listed} in {_where(source)}, at version {page.version}")
        what, remedy = "namespace", f"kubectl get namespace {source.namespace}"
        if source.namespace:
            yield _namespace(source, listed=listed, may_list=may_list)
        what, remedy = "identity", "see the end of cronjob.yaml"
        yield from _identity(source)
    except WatcherError as error:
        yield Check.fail(what, error, _LOG_IN if isinstance(error, Unauthorized) else remedy)


def clock(date: str, now: float) -> Check:
    """How far the clock of this machine is from one that says `date`, as HTTP has it."""
    try:
        ahead = now - parsedate_to_datetime(date).timestamp() - 0.5  # it has no fractions
    except ValueError:
        return Check.warn("clock", f"the API server says that it is {date!r}", "look who answers there")
    apart = f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the API server's"
    if abs(ahead) <= MOST_SKEW:
        return Check.ok("clock", f"that of the API server, to within {MOST_SKEW:g} s")
    remedy = "synchronise them (NTP): clouds refuse tokens by it, and this clock tells the age of a checkpoint"
    return Check.warn("clock", apart, remedy)


def rule(group: str, resource: str, *verbs: str, name: str = "") -> str:
    """A rule of a Role, in YAML on one line."""
    quoted, named = group or '""', f"resourceNames: [{name}], " if name else ""
    return f"- {{apiGroups: [{quoted}], resources: [{resource}], {named}verbs: [{', '.join(verbs)}]}}"


def _served(source: KubernetesSource, found: ApiResource) -> Check:
    if source.namespace and not found.namespaced:
        return Check.fail("resource", f"{source.resource} belongs to no namespace", "use --all-namespaces")
    if missing := [verb for verb in _NEEDED if verb not in found.verbs]:
        said = f"the API server does not {' or '.join(missing)} {source.resource}"
        return Check.fail("resource", said, "correct --resource: this one has no history to be told")
    return Check.ok("resource", f"{source.resource} is served, of kind {found.kind}")


def _right(source: KubernetesSource, verb: str) -> Check:
    what, group, plural = f"right to {verb}", source.resource.group, source.resource.plural
    wanted = f"{source.resource.group_resource} {_scope(source)}"
    allowed = source.allowed(verb, group, plural, namespace=source.namespace)
    if allowed:
        return Check.ok(what, wanted)
    if allowed is None:
        return Check.warn(
            what, f"it may not be asked whether {wanted} is allowed", f"kubectl auth can-i {verb} {wanted}"
        )
    role = f"the Role in namespace {source.namespace}" if source.namespace else "the ClusterRole"
    remedy = f"add to {role}: {rule(group, plural, verb)}"
    if verb not in _NEEDED:
        return Check.warn(what, f"no right to {verb} {wanted}, which runs do without so far", remedy)
    return Check.fail(what, f"no right to {verb} {wanted}", remedy)


def _namespace(source: KubernetesSource, *, listed: int, may_list: bool) -> Check:
    what, name = "namespace", source.namespace
    exists = True if listed else source.namespace_exists()
    if exists:
        return Check.ok(what, f"{name} exists")
    if exists is False:
        remedy = f"correct --namespace, or create it: kubectl create namespace {name}"
        # A namespace that was deleted has deletions to tell.
        found = f"namespace {name} does not exist: only a checkpoint that knows objects of it lets a run go on"
        return Check.fail(what, found, remedy)
    group, plural = source.resource.group, source.resource.plural
    if may_list and source.allowed("list", group, plural) is False:
        return Check.ok(what, f"{name} exists, since there is a right that holds in it alone")
    found = f"nothing is listed in {name}, and the credentials may not tell whether it exists"
    return Check.warn(what, found, f"kubectl get namespace {name}")


def _identity(source: KubernetesSource) -> Iterator[Check]:
    """What tells a cluster from another one of its name (R5), where it may be read."""
    identity = source.identity()
    things = [("cluster", "namespace kube-system", identity.cluster, ("", "namespaces"), "kube-system")]
    crd = source.resource.group_resource
    if "." in source.resource.group:
        things.append(("definition", f"the CustomResourceDefinition {crd}", identity.definition, _CRDS, crd))
    for whose, thing, uid, (group, plural), name in things:
        what = f"identity of the {whose}"
        if uid:
            yield Check.ok(what, f"{thing} has uid {uid}")
            continue
        if whose == "definition" and source.allowed("get", group, plural, name=name):
            # It is absent: the groups of Kubernetes itself, as networking.k8s.io, and aggregated ones have none.
            yield Check.ok(what, f"{crd} has no CustomResourceDefinition, and cannot be replaced")
            continue
        found = f"{thing} cannot be read: that the {whose} was replaced is noticed by its effects only"
        added = rule(group, plural, "get", name=name)
        yield Check.warn(what, found, f"add to a ClusterRole (the end of cronjob.yaml has one): {added}")


def _scope(source: KubernetesSource) -> str:
    return f"-n {source.namespace}" if source.namespace else "-A"


def _where(source: KubernetesSource) -> str:
    return f"namespace {source.namespace}" if source.namespace else "all namespaces"
