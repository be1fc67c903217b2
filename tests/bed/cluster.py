"""The administrator's hand on the cluster: creates, changes and deletes what the product is to notice."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import product
from typing import Unpack

import yaml

from tests.bed.api import Api, ClusterError, Json
from tests.bed.binaries import argo_crds
from tests.bed.waiting import wait_until
from tests.bed.workflows import WorkflowFields, compact_json, workflow

WORKFLOWS = "/apis/argoproj.io/v1alpha1/workflows"
WORKFLOW_CRD = "workflows.argoproj.io"

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_BOUND_TO = "bed-bound-to"
_OK = 200
_NOT_FOUND = 404
_CONFLICT = 409
_PATIENCE = timedelta(seconds=30)


def workflows_path(namespace: str | None = None, name: str | None = None) -> str:
    """Return the API's path of all Workflows, of a namespace's, or of one."""
    collection = WORKFLOWS if namespace is None else f"/apis/argoproj.io/v1alpha1/namespaces/{namespace}/workflows"
    return collection if name is None else f"{collection}/{name}"


class Cluster(Api):
    """What tests do to a cluster; errors are ClusterError as the API server words them."""

    def settled(self) -> bool:
        """Whether the server is ready, for custom resources too if it has any."""
        return self.ready() and self._workflows_status() in (_OK, _NOT_FOUND)

    def apply_crds(self) -> None:
        """Create the CRDs of Argo Workflows that are missing, and wait until Workflows can be listed."""
        for file in argo_crds():
            self._create_if_absent(_CRDS, yaml.safe_load(file.read_text(encoding="utf-8")))
        wait_until(lambda: self._workflows_status() == _OK, _PATIENCE, "Workflows to be served")

    def delete_crd(self, name: str = WORKFLOW_CRD) -> None:
        """Delete a CRD, and with it all its objects, and wait until it is gone."""
        self.request("DELETE", f"{_CRDS}/{name}")
        wait_until(lambda: not self._is_there(f"{_CRDS}/{name}"), _PATIENCE, f"CRD {name} to be gone")
        if name == WORKFLOW_CRD:
            # The handler outlives the CRD by a moment.
            wait_until(lambda: self._workflows_status() == _NOT_FOUND, _PATIENCE, "Workflows not to be served")

    def recreate_crd(self, name: str = WORKFLOW_CRD) -> None:
        """Delete a CRD with all its objects and create it again, empty and with another uid."""
        self.delete_crd(name)
        self.apply_crds()

    def create_namespace(self, name: str) -> None:
        """Create a namespace, unless it is there."""
        self._create_if_absent("/api/v1/namespaces", {"metadata": {"name": name}})

    def create(self, namespace: str, name: str, **fields: Unpack[WorkflowFields]) -> Json:
        """Create the Workflow that `workflow` builds and return what the server made of it."""
        return self.request("POST", workflows_path(namespace), workflow(name, **fields))

    def get(self, namespace: str, name: str) -> Json:
        """Return a Workflow."""
        return self.request("GET", workflows_path(namespace, name))

    def list(self, namespace: str | None = None, **query: str | int) -> Json:
        """Return the WorkflowList of a namespace, or of all; parameters in the API's own spelling (limit, continue)."""
        return self.request("GET", workflows_path(namespace), query=query)

    def patch(self, namespace: str, name: str, patch: Json) -> Json:
        """Merge `patch` into a Workflow and return the result."""
        path = workflows_path(namespace, name)
        return self.request("PATCH", path, patch, content_type="application/merge-patch+json")

    def delete(self, namespace: str, name: str) -> Json:
        """Delete a Workflow and return the server's answer."""
        return self.request("DELETE", workflows_path(namespace, name))

    def bind(
        self,
        user: str,
        namespace: str | None,
        verbs: Sequence[str],
        *,
        resources: Sequence[str] = ("workflows",),
        api_groups: Sequence[str] = ("argoproj.io",),
    ) -> None:
        """Grant rights in a namespace, or in all, on top of those granted before, and wait until they hold.

        A service account is the user `system:serviceaccount:NAMESPACE:NAME`.
        """
        rule = {"verbs": list(verbs), "apiGroups": list(api_groups), "resources": list(resources)}
        name = f"bed-{_short_hash(compact_json([user, rule]))}"
        kind, roles, bindings = _role_paths(namespace)
        metadata = {"name": name, "labels": {_BOUND_TO: _short_hash(user)}}
        self._create_if_absent(roles, {"metadata": metadata, "rules": [rule]})
        self._create_if_absent(
            bindings,
            {
                "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            },
        )
        # The authorizer reads the bindings from a watch and knows them a moment later.
        wait_until(lambda: all(self._rights(user, namespace, rule)), _PATIENCE, f"{user} to be allowed {rule}")

    def unbind(self, user: str, namespace: str | None) -> None:
        """Take back all that `bind` granted a user in a namespace, or in all, and wait until it holds."""
        _, roles, bindings = _role_paths(namespace)
        selector = {"labelSelector": f"{_BOUND_TO}={_short_hash(user)}"}
        rules = [rule for role in self.request("GET", roles, query=selector)["items"] for rule in role["rules"]]
        self.request("DELETE", bindings, query=selector)
        self.request("DELETE", roles, query=selector)
        wait_until(
            lambda: not any(right for rule in rules for right in self._rights(user, namespace, rule)),
            _PATIENCE,
            f"{user} to lose {rules}",
        )

    def _rights(self, user: str, namespace: str | None, rule: Json) -> Iterator[bool]:
        """Ask the authorizer about every combination of a rule."""
        for verb, group, resource in product(rule["verbs"], rule["apiGroups"], rule["resources"]):
            resource_name, _, subresource = resource.partition("/")
            attributes = {"verb": verb, "group": group, "resource": resource_name, "subresource": subresource}
            if namespace is not None:
                attributes["namespace"] = namespace
            review = self.request("POST", _REVIEWS, {"spec": {"user": user, "resourceAttributes": attributes}})
            yield bool(review["status"]["allowed"])

    def _create_if_absent(self, collection: str, body: Json) -> None:
        try:
            self.request("POST", collection, body)
        except ClusterError as error:
            if error.status != _CONFLICT:
                raise

    def _is_there(self, path: str) -> bool:
        with contextlib.suppress(ClusterError):
            self.request("GET", path)
            return True
        return False

    def _workflows_status(self) -> int:
        """Read all Workflows from the API server's cache and return the HTTP status, 429 while that is being filled.

        With a limit, or without a selector, etcd would answer in place of the empty cache.
        """
        try:
            self.request("GET", WORKFLOWS, query={"resourceVersion": "0", "labelSelector": "bed=none"})
        except ClusterError as error:
            return error.status
        return _OK


def _role_paths(namespace: str | None) -> tuple[str, str, str]:
    """Return the kind of role for a namespace, or for all, with the paths of such roles and of their bindings."""
    if namespace is None:
        return "ClusterRole", f"{_RBAC}/clusterroles", f"{_RBAC}/clusterrolebindings"
    return "Role", f"{_RBAC}/namespaces/{namespace}/roles", f"{_RBAC}/namespaces/{namespace}/rolebindings"


def _short_hash(text: str) -> str:
    # Fits names and labels, where the colons of a service account's name do not.
    return hashlib.sha256(text.encode()).hexdigest()[:12]
