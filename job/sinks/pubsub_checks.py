"""What `doctor` wants to know of a topic, on the sink's own channel.

The role of a publisher has no right but to publish: who has only that may not see the topic, nor who subscribes to it.
Which rights there are is told to everybody (TestIamPermissions needs none), and of a topic that is not there: none.
<https://cloud.google.com/pubsub/docs/access-control#required_permissions>
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from job.credentials import GoogleCredentials
from job.ports import Check, Verdict

if TYPE_CHECKING:
    from grpc import Channel, RpcError

_PUBLISH, _GET = "pubsub.topics.publish", "pubsub.topics.get"
_RIGHTS = "/google.iam.v1.IAMPolicy/TestIamPermissions"
_TOPIC, _SUBSCRIPTIONS = "/google.pubsub.v1.Publisher/GetTopic", "/google.pubsub.v1.Publisher/ListTopicSubscriptions"
_SHOWN = 3
_LONGEST_REASON = 300
_SEES = "roles/pubsub.viewer"


def of(topic: str, channel: Channel, credentials: GoogleCredentials, timeout: float) -> Iterator[Check]:
    """The right to publish, the topic, and its subscriptions."""
    asked = _Asked(topic, channel, credentials, timeout)
    may_publish = asked.rights()
    there = asked.topic()
    yield there
    if there.verdict is Verdict.FAIL:
        return
    yield may_publish
    yield asked.subscriptions()


class _Asked:
    """One topic, asked with so many seconds for each request."""

    def __init__(self, topic: str, channel: Channel, credentials: GoogleCredentials, timeout: float) -> None:
        self._topic = topic
        _, self._project, _, self._name = topic.split("/")
        self._channel = channel
        self._credentials = credentials
        self._timeout = timeout
        self._retained = 0.0
        """Seconds for which the topic itself keeps messages."""
        self._granted = False
        """Whether it is known that publishing is allowed."""

    def rights(self) -> Check:
        """Whether publishing is allowed."""
        import grpc
        from google.iam.v1.iam_policy_pb2 import (  # type: ignore[import-untyped]
            TestIamPermissionsRequest,
            TestIamPermissionsResponse,
        )

        what = "right to publish"
        request = TestIamPermissionsRequest(resource=self._topic, permissions=[_PUBLISH])
        try:
            answer = self._ask(_RIGHTS, request, TestIamPermissionsResponse, "resource")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return Check.ok(what, "what stands in for Pub/Sub here knows no rights")
            return Check.warn(what, f"it cannot be told: {_said(error)}", self._grant("roles/pubsub.publisher"))
        self._granted = _PUBLISH in answer.permissions
        if self._granted:
            return Check.ok(what, _PUBLISH)
        found = f"the credentials may not publish to {self._topic}"
        return Check.fail(what, found, self._grant("roles/pubsub.publisher"))

    def topic(self) -> Check:
        """After `rights`: whether it exists: who may publish to it knows, although it may not be seen."""
        import grpc
        from google.pubsub_v1.types import GetTopicRequest, Topic

        what = f"topic {self._name}"
        try:
            found = self._ask(_TOPIC, GetTopicRequest.pb()(topic=self._topic), Topic.pb(), "topic")
        except grpc.RpcError as error:
            return self._unseen(what, error)
        self._retained = found.message_retention_duration.ToTimedelta().total_seconds()
        return Check.ok(what, f"{self._topic} exists")

    def subscriptions(self) -> Check:
        """Whether anybody will get what is published."""
        import grpc
        from google.pubsub_v1.types import ListTopicSubscriptionsRequest, ListTopicSubscriptionsResponse

        what, create = "subscriptions", self._command("subscriptions create NAME --topic {}")
        request = ListTopicSubscriptionsRequest.pb()(topic=self._topic)
        try:
            answer = self._ask(_SUBSCRIPTIONS, request, ListTopicSubscriptionsResponse.pb(), "topic")
        except grpc.RpcError as error:
            look = self._command("topics list-subscriptions {}")
            unseen = f"they cannot be seen by this identity, and without one messages are lost: {_said(error)}"
            return Check.warn(what, unseen, f"{look}; to let doctor look: {self._grant(_SEES)}")
        if found := answer.subscriptions:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            return Check.ok(what, f"{', '.join(name.rpartition('/')[2] for name in found[:_SHOWN])}{more}")
        if self._retained:
            kept = f"there is none, but the topic keeps messages for {self._retained / 3600:g} h"
            return Check.warn(what, kept, f"{create}, and seek it to a time before")
        return Check.warn(what, "there is none: what is published is lost", create)

    def _unseen(self, what: str, error: RpcError) -> Check:
        from grpc import StatusCode

        create, status = self._command("topics create {}"), error.code()
        if status is StatusCode.NOT_FOUND:
            return Check.fail(what, f"{self._topic} does not exist", f"{create}, or correct the address")
        if status is StatusCode.PERMISSION_DENIED:
            if self._granted:
                return Check.ok(what, "it may be published to, so it exists; to be seen it needs " + _GET)
            found = f"{self._topic} does not exist, or these credentials have no right to it at all"
            return Check.fail(what, found, f"{create}, or {self._grant('roles/pubsub.publisher')}")
        if status is StatusCode.UNAUTHENTICATED:
            return Check.fail(what, f"{self._topic} refused the credentials: {_said(error)}", "log in again")
        return Check.fail(what, f"{self._topic} cannot be asked: {_said(error)}", "ask again; then look at the network")

    def _ask(self, method: str, request: Any, answer: Any, field: str) -> Any:  # noqa: ANN401 - protobuf's types
        """The answer to a request, in whose `field` the topic is."""
        routing = urlencode({field: self._topic}, safe="/")
        call = self._channel.unary_unary(method, type(request).SerializeToString, answer.FromString)
        return call(request, timeout=self._timeout, metadata=(("x-goog-request-params", routing),))

    def _grant(self, role: str) -> str:
        binding = self._command("topics add-iam-policy-binding {}")
        return f"{binding} --member {self._credentials.member} --role {role}"

    def _command(self, words: str) -> str:
        return f"gcloud pubsub {words.format(self._name)} --project {self._project}"


def _said(error: RpcError) -> str:
    return f"{error.code().name}: {' '.join((error.details() or '').split())[:_LONGEST_REASON]}".removesuffix(": ")
