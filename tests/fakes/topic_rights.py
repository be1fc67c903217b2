"""Who may do what with the topics of a `PublisherServer`, and who subscribes to them: what no emulator knows.

    with PublisherServer(TOPIC) as server:
        server.rights.denied.add("pubsub.topics.get")
        server.rights.subscriptions[TOPIC] = ["projects/p/subscriptions/my-api"]

As the service has it: TestIamPermissions needs no right, and of a topic that is not there grants nothing; who may not
see a topic is not told either that it is not there. <https://cloud.google.com/pubsub/docs/access-control#required_permissions>
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc
from google.iam.v1.iam_policy_pb2 import (  # type: ignore[import-untyped]
    TestIamPermissionsRequest as Request,
    TestIamPermissionsResponse as Response,
)
from google.pubsub_v1.types import GetTopicRequest, ListTopicSubscriptionsRequest, ListTopicSubscriptionsResponse, Topic

PUBLISH, GET = "pubsub.topics.publish", "pubsub.topics.get"
NOT_AUTHORIZED = "User not authorized to perform this action."


class TopicRights:
    """What a test says of them."""

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics
        self.denied: set[str] = set()
        """The permissions that the caller lacks."""
        self.subscriptions: dict[str, list[str]] = {}
        """Those of a topic."""
        self.retained_seconds = 0
        """For how long topics themselves keep messages."""
        self.authenticated = True

    def services(self, publish: grpc.RpcMethodHandler[Any, Any]) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """What a server serves, with the method that publishes."""
        topic = grpc.unary_unary_rpc_method_handler(
            self._topic, GetTopicRequest.pb().FromString, Topic.pb().SerializeToString
        )
        subscriptions = grpc.unary_unary_rpc_method_handler(
            self._subscriptions,
            ListTopicSubscriptionsRequest.pb().FromString,
            ListTopicSubscriptionsResponse.pb().SerializeToString,
        )
        rights = grpc.unary_unary_rpc_method_handler(self._rights, Request.FromString, Response.SerializeToString)
        return [
            grpc.method_handlers_generic_handler(
                "google.pubsub.v1.Publisher",
                {"Publish": publish, "GetTopic": topic, "ListTopicSubscriptions": subscriptions},
            ),
            grpc.method_handlers_generic_handler("google.iam.v1.IAMPolicy", {"TestIamPermissions": rights}),
        ]

    def _rights(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 -- protobuf
        self._authenticate(context)
        there = request.resource in self._topics
        return Response(permissions=[right for right in request.permissions if there and right not in self.denied])

    def _topic(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 -- protobuf
        self._see(request.topic, context)
        found = Topic.pb()(name=request.topic)
        found.message_retention_duration.FromSeconds(self.retained_seconds)
        return found

    def _subscriptions(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 -- protobuf
        self._see(request.topic, context)
        return ListTopicSubscriptionsResponse.pb()(subscriptions=self.subscriptions.get(request.topic, []))

    def _see(self, topic: str, context: grpc.ServicerContext) -> None:
        self._authenticate(context)
        if GET in self.denied:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, NOT_AUTHORIZED)
        if topic not in self._topics:
            name = topic.rpartition("/")[2]
            context.abort(grpc.StatusCode.NOT_FOUND, f"Resource not found (resource={name}).")

    def _authenticate(self, context: grpc.ServicerContext) -> None:
        if not self.authenticated:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials. [code=16]")
