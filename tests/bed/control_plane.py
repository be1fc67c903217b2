"""A private control plane in one folder: etcd and kube-apiserver as processes of this test run, on loopback."""

import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit

from tests.bed import binaries
from tests.bed.api import ClusterError, Query
from tests.bed.cluster import WORKFLOWS, Cluster
from tests.bed.credentials import SERVICE, Credentials
from tests.bed.etcd import Etcd
from tests.bed.process import Server, ServerCrashedError, free_port
from tests.bed.waiting import wait_until

Started = TypeVar("Started")
_log = logging.getLogger(__name__)

_HTTPS = 443
_TOKEN_HOURS = 24
_CONFLICT = 409
_GONE = 410
_PORT_ATTEMPTS = 4
_LINGERS = timedelta(seconds=75)
# The API server's cache looks every 15 s whether etcd was compacted.
# https://github.com/kubernetes/apiserver/blob/v0.37.2/pkg/storage/cacher/compactor.go
_COMPACTION_SEEN = timedelta(seconds=40)


class ControlPlane:
    """A real kube-apiserver with its etcd; use it as a context manager, or `start` and `stop` it.

    There are no controllers. The users admin, watcher, watcher2 and nobody log in by token; only admin has rights.
    Tests of one module can share one, with a namespace each; those that restart, rewind or compact want their own.
    """

    def __init__(self, folder: Path, *, api_flags: Sequence[str] = (), for_pods: bool = False) -> None:
        """Prepare a control plane in `folder`, with further flags for the API server; nothing runs yet.

        `for_pods` is for the network of `tests.bed.node`: it listens on port 443 of every address, and wants the
        service accounts that a controller makes.
        With `--etcd-compaction-interval=3s` it compacts by itself: a version can be listed for 3 to 6 s, and for up to
        15 s more where its cache answers, as it does unless the list is of one name in one namespace.
        """
        self.folder = folder
        self.url = ""
        self._api_flags = tuple(api_flags)
        self._for_pods = for_pods
        self._credentials = Credentials(folder)
        self.ca_file = self._credentials.ca_file
        self.signing_key_file = self._credentials.signing_key_file
        self._etcd: Etcd | None = None
        self._api: Server | None = None
        self._snapshots = 0

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Start both servers and return when the API server is ready."""
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._credentials.write()
        try:
            self._start_etcd()
            self.url, self._api = _on_free_ports(self._start_new_api)
        except BaseException:
            self.stop()
            raise
        _log.info("bed.control_plane.ready url=%s seconds=%.1f", self.url, time.monotonic() - began)

    def stop(self) -> None:
        """End both servers; the folder stays."""
        if self._api is not None:
            self._api.kill()
        if self._etcd is not None:
            self._etcd.stop()

    def token(self, user: str) -> str:
        """Return the token by which a user logs in; the same for as long as this object lives."""
        return self._credentials.token(user)

    def cluster(self, user: str = "admin", *, server: str | None = None) -> Cluster:
        """Open a connection as a user; close it, or use it as a context manager.

        `server` is another URL to go to, that of `another_api`.
        """
        return Cluster(server or self.url, token=self.token(user), ca_file=self.ca_file)

    def kubeconfig(
        self,
        user: str = "admin",
        *,
        namespace: str = "default",
        server: str | None = None,
        cluster_name: str = "bed",
        token: str | None = None,
    ) -> Path:
        """Write a kubeconfig file with a user's token, or another, and return its path.

        `server` is another URL to go to, a proxy's or that of `another_api`; one without TLS is given no CA. A path
        never changes its content.
        """
        return self._credentials.write_kubeconfig(
            user, namespace=namespace, server=server or self.url, cluster_name=cluster_name, token=token
        )

    def pod_files(self, namespace: str, service_account: str, folder: Path) -> dict[str, str]:
        """Write what a pod finds under /var/run/secrets/kubernetes.io/serviceaccount, and return its environment.

        The namespace must exist; the service account is created if it does not, as
        `system:serviceaccount:NAMESPACE:NAME` without rights.
        """
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        request = {"spec": {"expirationSeconds": _TOKEN_HOURS * 3600}}
        with self.cluster() as admin:
            try:
                admin.request("POST", accounts, {"metadata": {"name": service_account}})
            except ClusterError as error:
                if error.status != _CONFLICT:
                    raise
            token = admin.request("POST", f"{accounts}/{service_account}/token", request)["status"]["token"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text(token, encoding="utf-8")
        (folder / "ca.crt").write_bytes(self.ca_file.read_bytes())
        (folder / "namespace").write_text(namespace, encoding="utf-8")
        address = urlsplit(self.url)
        return {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port)}

    def stop_api(self, *, kill: bool = True) -> None:
        """End the API server, by -9, or gracefully: with a watch open it then lingers for up to a minute."""
        if kill:
            self._server.kill()
        else:
            self._server.stop(_LINGERS)

    def start_api(self) -> None:
        """Start the API server where it was before, and return when it is ready."""
        self._start_api(self._server, self.url)

    def restart_api(self, *, kill: bool = True) -> None:
        """End the API server and start it again: every older version is then expired for a watch."""
        self.stop_api(kill=kill)
        self.start_api()

    @contextlib.contextmanager
    def another_api(self) -> Iterator[str]:
        """Run a second API server on the same etcd inside the block, and yield its URL for `cluster` and `kubeconfig`.

        Its caches are its own, and filled: it accepts a watch from every later version, whatever the first one refuses.
        All that is done to "the API server" here is done to the first one alone; `snapshot` and `restore`, which take
        the etcd away, are not for inside the block.
        """
        url, server = _on_free_ports(self._start_new_api)
        try:
            yield url
        finally:
            server.kill()

    @contextlib.contextmanager
    def frozen_api(self) -> Iterator[None]:
        """Let the API server hang inside the block: it holds its connections open and says nothing."""
        self._server.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send(signal.SIGCONT)

    def snapshot(self) -> Path:
        """Copy the cluster's state to a new folder and return it; the servers are away meanwhile."""
        self._snapshots += 1
        target = self.folder / f"snapshot-{self._snapshots}"
        with self._stopped() as etcd:
            etcd.copy_data(target)
        return target

    def restore(self, snapshot: Path) -> None:
        """Rewind the cluster to a snapshot, versions included, as a restored backup of etcd does."""
        with self._stopped() as etcd:
            etcd.replace_data(snapshot)

    def compact(self, revision: int | None = None, *, collection: str = WORKFLOWS, restart: bool = False) -> int:
        """Drop the history before `revision`, by default before now, and return that revision.

        Returns when it shows in `collection`: lists at an older version, and continue tokens of one, get 410. That
        takes up to 15 s, with `restart` 2 s. Only the restart expires older versions for watches too: those live by the
        API server's cache, not by etcd.
        """
        assert self._etcd is not None
        revision = self._etcd.compact(revision)
        if restart:
            self.restart_api()
        older: Query = {"resourceVersion": str(revision - 1), "resourceVersionMatch": "Exact"}
        with self.cluster() as admin:
            wait_until(lambda: _is_gone(admin, collection, older), _COMPACTION_SEEN, f"{collection} to be compacted")
        return revision

    def pass_versions(self, count: int) -> None:
        """Let so many versions go by in which nothing happens to what the API server serves; 0.2 ms each."""
        assert self._etcd is not None
        self._etcd.write_others(count)

    @property
    def _server(self) -> Server:
        if self._api is None:
            message = "the control plane was not started"
            raise RuntimeError(message)
        return self._api

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[Etcd]:
        assert self._etcd is not None
        self.stop_api()
        self._etcd.stop()
        yield self._etcd
        self._etcd.start()
        self.start_api()

    def _start_etcd(self) -> None:
        def start() -> None:
            shutil.rmtree(self.folder / "etcd", ignore_errors=True)
            self._etcd = Etcd(self.folder)
            self._etcd.start()

        _on_free_ports(start)

    def _start_new_api(self) -> tuple[str, Server]:
        port = _HTTPS if self._for_pods else free_port()
        url = f"https://127.0.0.1:{port}"
        server = Server(self._api_command(port), self.folder / f"kube-apiserver-{port}.log")
        self._start_api(server, url)
        return url, server

    def _start_api(self, server: Server, url: str) -> None:
        server.start()
        try:
            with self.cluster(server=url) as admin:
                # A server that calls itself ready still refuses watches of custom resources, with 429, for a moment.
                server.wait_until_ready(admin.settled)
        except BaseException:
            server.kill()
            raise

    def _api_command(self, port: int) -> list[str]:
        assert self._etcd is not None
        return [
            str(binaries.kube_apiserver().path),
            *("--etcd-servers", self._etcd.url),
            *("--bind-address", "0.0.0.0" if self._for_pods else "127.0.0.1"),
            *("--secure-port", str(port)),
            # It would advertise its address to pods, and refuses a loopback one.
            *("--endpoint-reconciler-type", "none"),
            *("--tls-cert-file", str(self._credentials.certificate_file)),
            *("--tls-private-key-file", str(self._credentials.certificate_file)),
            *("--token-auth-file", str(self._credentials.token_file)),
            *("--authorization-mode", "Node,RBAC"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", str(self._credentials.signing_key_file)),
            *("--service-account-signing-key-file", str(self._credentials.signing_key_file)),
            # It wants the default service account, which a controller would have made.
            *([] if self._for_pods else ["--disable-admission-plugins", "ServiceAccount"]),
            *("--service-cluster-ip-range", f"{SERVICE}/24"),
            *self._api_flags,
        ]


def _on_free_ports(start: Callable[[], Started]) -> Started:
    """Run `start`, which chooses its ports, again when another process took one of them in between."""
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return start()
        except ServerCrashedError as error:
            if "address already in use" not in str(error):
                raise
    return start()


def _is_gone(cluster: Cluster, collection: str, query: Query) -> bool:
    try:
        cluster.request("GET", collection, query=query)
    except ClusterError as error:
        if error.status != _GONE:
            raise
        return True
    return False
