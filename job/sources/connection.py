"""A pod's files, or a kubeconfig, as one client.

The official client is imported only for a kubeconfig, whose logins, plug-ins and proxies it knows; it costs 0.3 s and
30 MB, and a pod needs none of it.
"""

from __future__ import annotations

import logging
import math
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from job.errors import ActionNeeded, Unauthorized, UsageError
from job.logs import event
from job.sources.http import Answer, Client

if TYPE_CHECKING:
    from kubernetes.client.configuration import Configuration

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach one API server, and what the credentials say about where we are."""

    client: Client
    authorization: Callable[[], str | None]
    """The Authorization header of a request made now."""
    namespace: str | None
    """The context's or the pod's; None where a pod is not told."""
    cluster: str | None
    """The context's cluster; None in a pod, which does not know its cluster's name."""
    configuration: Callable[[], Configuration]
    """The same for the official client."""

    @property
    def host(self) -> str:
        """The server's URL, without a slash at its end."""
        return self.client.url

    def get(self, path: str, query: Mapping[str, str | int], accept: str, seconds: float, *, live: bool) -> Answer:
        """One GET, one request; `live` if its body is to be read line by line, as it arrives."""
        return self.client.get(path, query, self._headers(accept, "identity" if live else "gzip"), seconds)

    def post(self, path: str, content: bytes, seconds: float) -> Answer:
        """One POST of JSON, answered in JSON."""
        headers = {**self._headers("application/json", "gzip"), "Content-Type": "application/json"}
        return self.client.post(path, headers, content, seconds)

    def _headers(self, accept: str, encoding: str) -> dict[str, str]:
        headers = {"Accept": accept, "Accept-Encoding": encoding, "User-Agent": "workflow-watcher"}
        if authorization := self.authorization():
            headers["Authorization"] = authorization
        return headers


def in_pod(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> bool:
    """Whether this process runs in a pod that may talk to its API server."""
    return "KUBERNETES_SERVICE_HOST" in environment and (folder / "token").exists()


def from_pod(environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Connection:
    """The API server of the cluster this pod runs in, with the service account's own token."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}"
    return Connection(
        client=Client(url, urllib3.PoolManager(ca_certs=str(folder / "ca.crt"), socket_options=_keep_alive())),
        # Read for every request: the kubelet replaces it long before it expires.
        authorization=lambda: f"Bearer {_read(folder / 'token')}",
        namespace=_read(folder / "namespace") if (folder / "namespace").exists() else None,
        cluster=None,
        configuration=lambda: _of_pod(environment, folder),
    )


def _of_pod(environment: Mapping[str, str], folder: Path) -> Configuration:
    from kubernetes.client.configuration import Configuration
    from kubernetes.config import ConfigException
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration = Configuration()
    files = {"token_filename": str(folder / "token"), "cert_filename": str(folder / "ca.crt")}
    try:
        InClusterConfigLoader(**files, environ=environment).load_and_set(configuration)
    except (ConfigException, OSError) as error:
        message = f"the files of the service account in {folder} cannot be used: {error}"
        raise ActionNeeded(message) from error
    return configuration


def from_kubeconfig(path: str | None, context: str | None) -> Connection:
    """The API server of a kubeconfig's context, as kubectl would reach it. Raises `UsageError`."""
    from kubernetes.client.configuration import Configuration
    from kubernetes.client.rest import RESTClientObject
    from kubernetes.config import ConfigException, load_kube_config
    from kubernetes.config.kube_config import KubeConfigMerger
    from yaml import YAMLError

    files = path or os.environ.get("KUBECONFIG") or "~/.kube/config"
    if not any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        message = f"there is no kubeconfig at {files}, and this is not a pod: name one with --kubeconfig"
        raise UsageError(message)
    configuration = Configuration()
    configuration.keep_alive = True
    configuration.host = ""
    try:
        load_kube_config(files, context, configuration, persist_config=False)
        merged = KubeConfigMerger(files).config
        chosen = merged["contexts"].get_with_name(context or merged["current-context"])["context"]
        user = chosen.safe_get("user")
        login = merged["users"].get_with_name(user)["user"] if user else {}
        trusted = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            trusted.load_cert_chain(configuration.cert_file, configuration.key_file)
        connection = Connection(
            client=Client(configuration.host, RESTClientObject(configuration).pool_manager),
            authorization=_once_a_second(lambda: configuration.get_api_key_with_prefix("BearerToken")),
            namespace=str(chosen.safe_get("namespace") or "default"),
            cluster=str(chosen["cluster"]),
            configuration=lambda: configuration,
        )
        (connection.authorization() or "").encode("latin-1")
    except (
        ConfigException,
        YAMLError,
        HTTPError,
        ImportError,
        OSError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        message = f"the kubeconfig {files} cannot be used: {' '.join(str(error).split())}"
        raise UsageError(message) from error
    if not connection.host:
        message = f"the kubeconfig {files} names no server for the cluster {connection.cluster}"
        raise UsageError(message)
    if "exec" in login and not (connection.authorization() or configuration.cert_file):
        message = (
            f"the log-in plug-in {login['exec']['command']} of the kubeconfig {files} gave no credentials: log in again"
        )
        raise Unauthorized(message)
    if not configuration.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        log.warning("The certificate of %s is not verified", connection.host, extra=event("api.unverified"))
    return connection


def _once_a_second(ask: Callable[[], str | None]) -> Callable[[], str | None]:
    """Ask for it at most so often: the client looks through the whole environment each time, for a proxy."""
    lock = threading.Lock()
    asked_at, answer = -math.inf, None

    def remembered() -> str | None:
        nonlocal asked_at, answer
        with lock:
            if time.monotonic() - asked_at >= 1:
                asked_at, answer = time.monotonic(), ask()
            return answer

    return remembered


def _read(file: Path) -> str:
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}"
        raise ActionNeeded(message) from error
    if not (text.isascii() and text.isprintable()):
        message = f"{file} holds something else than one line of ASCII"
        raise ActionNeeded(message)
    return text


def _keep_alive() -> list[tuple[int, int, int]]:
    """TCP keepalive after 30 s of silence: a dead peer is noticed while a quiet watch waits."""
    import socket

    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # Linux has all three, other systems fewer
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
