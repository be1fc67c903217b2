"""The etcd under an API server, with what tests do behind the API server's back: compaction and an older state."""

import base64
import contextlib
import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import grpc
import urllib3

from tests.bed import binaries
from tests.bed.process import Server, free_port

# Where the API server's compactors note the last compacted version, and learn of it.
# https://github.com/kubernetes/apiserver/blob/v0.37.2/pkg/storage/etcd3/compact.go
_COMPACT_REVISION_KEY = "compact_rev_key"
# A PutRequest of key "others", value "1".
_PUT_OTHERS = b"\x0a\x06others\x12\x011"
_AT_A_TIME = 500
_OK = 200


class Etcd:
    """One member of etcd with its data folder, on ports chosen once."""

    def __init__(self, folder: Path) -> None:
        """Choose the ports; nothing runs yet."""
        self._data = folder / "etcd"
        self._name = secrets.token_hex(8)
        self.url = f"http://127.0.0.1:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        self._server = Server(
            [
                str(binaries.etcd().path),
                *("--name", self._name),
                *("--data-dir", str(self._data)),
                *("--listen-client-urls", self.url),
                *("--advertise-client-urls", self.url),
                *("--listen-peer-urls", peer),
                *("--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"{self._name}={peer}"),
                *("--log-level", "error"),
                # It elects itself at its start, after one election timeout: 0.1 s instead of up to 1 s.
                *("--heartbeat-interval", "10", "--election-timeout", "100"),
                # It need not survive a loss of power, only -9.
                "--unsafe-no-fsync",
            ],
            folder / "etcd.log",
        )
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=120))

    @property
    def pid(self) -> int:
        """The process id, of the last start."""
        return self._server.pid

    def start(self) -> None:
        """Start and return when it serves."""
        self._server.start()
        self._server.wait_until_ready(self._serves)

    def stop(self) -> None:
        """Stop; the data stay."""
        self._server.stop()
        self._pool.clear()

    def compact(self, revision: int | None) -> int:
        """Drop all history before `revision`, by default before now, and return that revision.

        It is noted where the API server looks for it: its own cache of older lists goes by that, not by etcd's state.
        """
        key = base64.b64encode(_COMPACT_REVISION_KEY.encode()).decode()
        if revision is None:
            revision = int(self._call("kv/range", {"key": key})["header"]["revision"])
        value = base64.b64encode(str(revision).encode()).decode()
        self._call("kv/put", {"key": key, "value": value})
        self._call("kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def write_others(self, count: int) -> None:
        """Write a key that no API server looks at, so often: each is a version."""
        # Not by the gateway, which takes 3.5 ms for each.
        address, no_proxy = self.url.removeprefix("http://"), [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(address, no_proxy) as channel:
            put = channel.unary_unary("/etcdserverpb.KV/Put", request_serializer=None, response_deserializer=None)
            for first in range(0, count, _AT_A_TIME):
                writes = [put.future(_PUT_OTHERS) for _ in range(min(_AT_A_TIME, count - first))]
                for write in writes:
                    write.result()

    def copy_data(self, target: Path) -> None:
        """Copy the data of the stopped etcd."""
        shutil.copytree(self._data, target)

    def replace_data(self, source: Path) -> None:
        """Give the stopped etcd older data of its own."""
        shutil.rmtree(self._data)
        shutil.copytree(source, self._data)

    def _serves(self) -> bool:
        """Ask for the members by name: on a port lost to another test run, another etcd may answer."""
        with contextlib.suppress(urllib3.exceptions.HTTPError, EtcdError):
            return self._name in [member.get("name") for member in self._call("cluster/member/list", {})["members"]]
        return False

    def _call(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        # etcd speaks gRPC; its gateway gives the same calls as JSON, keys and values in base64.
        response = self._pool.request("POST", f"{self.url}/v3/{method}", json=body)
        answer: dict[str, Any] = json.loads(response.data)
        if response.status != _OK:
            message = f"{method}: {answer}"
            raise EtcdError(message)
        return answer


class EtcdError(Exception):
    """The etcd refused a call."""
