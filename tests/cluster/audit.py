"""Who asked the API server for what, by its own account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}, {"level": "None"}],
}


@dataclass(frozen=True, slots=True, order=True)
class Request:
    """What it was about, and whether it was allowed."""

    verb: str
    resource: str
    namespace: str
    name: str
    allowed: bool


class Audit:
    """The audit log of an API server that is started with these `flags`."""

    def __init__(self, folder: Path) -> None:
        policy = folder / "policy.json"
        policy.write_text(json.dumps(_POLICY), encoding="utf-8")
        self._log = folder / "audit.log"
        self.flags = ["--audit-policy-file", str(policy), "--audit-log-path", str(self._log)]

    def requests(self, namespace: str, service_account: str) -> set[Request]:
        """Everything that a service account has asked for, once each."""
        return set(self._of(f"system:serviceaccount:{namespace}:{service_account}"))

    def _of(self, user: str) -> Iterator[Request]:
        for line in self._log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            if event["user"]["username"] == user:
                about = event.get("objectRef", {})
                decision = event["annotations"]["authorization.k8s.io/decision"]
                yield Request(
                    event["verb"],
                    about.get("resource", event["requestURI"]),
                    about.get("namespace", ""),
                    about.get("name", ""),
                    decision == "allow",
                )
