"""Somebody else's Amazon SQS: moto, as a server.

It has queues, FIFO queues with their deduplication, and the limits of size and number; it takes characters that XML has
not, never fails a part of a batch, and knows neither rights nor credentials.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3.session
import urllib3
from botocore.config import Config
from urllib3.exceptions import HTTPError

from tests.bed.process import Server, free_port

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "eu-west-1"}
"""An environment with which a client speaks to it."""
_MOST = 10


class Moto:
    """The server; a context manager. Queues are gone with it."""

    def __init__(self, folder: Path) -> None:
        self.name = f"moto {version('moto')}, for Amazon SQS"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        self._server = Server(command, folder / "moto.log")
        self._clients: list[SQSClient] = []

    def __enter__(self) -> Self:
        self._server.start()
        self._server.wait_until_ready(self._serves)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self._server.stop()

    def create_queue(self, name: str, **attributes: str) -> str:
        """Create a queue, FIFO if its name says so, and return its URL."""
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        return self.client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]  # type: ignore[arg-type]

    def drain(self, queue: str) -> list[str]:
        """Take the bodies of all messages, in the order in which they come."""
        return list(self._drain(queue))

    @property
    def client(self) -> SQSClient:
        """The administrator's."""
        if not self._clients:
            session = boto3.session.Session("test", "test", region_name="eu-west-1")
            self._clients.append(
                session.client("sqs", endpoint_url=self.url, config=Config(retries={"total_max_attempts": 1}))
            )
        return self._clients[0]

    def _drain(self, queue: str) -> Iterator[str]:
        while True:
            found = self.client.receive_message(QueueUrl=queue, MaxNumberOfMessages=_MOST, WaitTimeSeconds=0)
            messages = found.get("Messages", [])
            if not messages:
                return
            for message in messages:
                yield message["Body"]
                self.client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])

    def _serves(self) -> bool:
        try:
            return urllib3.request("GET", f"{self.url}/moto-api/", retries=False, timeout=5).status == 200
        except HTTPError:
            return False
