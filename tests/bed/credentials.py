"""What it takes to trust a control plane and to log in to it: certificates, tokens and the files that carry them."""

import hashlib
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme
import yaml

SERVICE = "10.96.0.1"
"""The address of the Service `kubernetes`, the first of the range, under which pods look for the API server."""
# The groups of each user; those without have no rights until a test binds them.
_USERS = {"admin": "system:masters", "watcher": "", "watcher2": "", "nobody": ""}


class Credentials:
    """The files of one control plane, in its folder."""

    def __init__(self, folder: Path) -> None:
        """Draw the users' tokens; nothing is written yet."""
        self.ca_file = folder / "ca.crt"
        self.certificate_file = folder / "tls.pem"
        self.token_file = folder / "tokens.csv"
        self.signing_key_file = folder / "service-accounts.key"
        self._folder = folder
        self._tokens = {user: secrets.token_hex(16) for user in _USERS}

    def write(self) -> None:
        """Write what the API server reads, with a new CA."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        certificate = authority.issue_cert("127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc", SERVICE)
        certificate.private_key_and_cert_chain_pem.write_to_path(self.certificate_file)
        # Any key will do to sign the service accounts' tokens; a certificate's is one that trustme makes.
        authority.issue_cert("service-accounts").private_key_pem.write_to_path(self.signing_key_file)
        lines = [f'{self._tokens[user]},{user},{user},"{groups}"\n' for user, groups in _USERS.items()]
        self.token_file.write_text("".join(lines), encoding="utf-8")

    def token(self, user: str) -> str:
        """Return the token by which a user logs in."""
        return self._tokens[user]

    def write_kubeconfig(self, user: str, *, namespace: str, server: str, cluster_name: str, token: str | None) -> Path:
        """Write a kubeconfig file, named for its content, and return its path."""
        cluster = {"server": server}
        if urlsplit(server).scheme == "https":
            cluster["certificate-authority"] = str(self.ca_file)
        config: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": cluster_name, "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.token(user) if token is None else token}}],
            "contexts": [{"name": user, "context": {"cluster": cluster_name, "user": user, "namespace": namespace}}],
            "current-context": user,
        }
        text = yaml.safe_dump(config, sort_keys=False)
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.kubeconfig"
        path.write_text(text, encoding="utf-8")
        return path
