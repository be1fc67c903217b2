"""An endpoint that Pub/Sub pushes changes to: `uvicorn --factory examples.api:application`.

What is answered with 204 is done, with anything else Pub/Sub sends it again. PUSH_AUDIENCE and PUSH_SERVICE_ACCOUNT are
the audience and the account of the subscription's `--push-auth-token-audience` and `--push-auth-service-account`.
"""

import logging
import os
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI, Header, Response
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request
from google.oauth2 import id_token
from pydantic import Base64Bytes, BaseModel, Field

from examples.consumer import Event, Memory, read, show

log = logging.getLogger(__name__)


class Message(BaseModel):
    """A message as Pub/Sub wraps it."""

    id: str = Field(alias="messageId")
    published: datetime = Field(alias="publishTime")
    attributes: dict[str, str]
    data: Base64Bytes


class Push(BaseModel):
    """The body of a push."""

    message: Message
    subscription: str


def application(handle: Callable[[Event], None] = show) -> FastAPI:
    """The API, with one route."""
    audience = os.environ.get("PUSH_AUDIENCE")
    account = os.environ["PUSH_SERVICE_ACCOUNT"] if audience else ""
    memory = Memory()
    api = FastAPI(openapi_url=None)

    @api.post("/")
    def push(push: Push, authorization: Annotated[str, Header()] = "") -> Response:
        if audience and not allows(authorization, audience, account):
            return Response(status_code=401)
        message = push.message
        try:
            memory.process(read(message.attributes, message.data), message.published, handle)
        except Exception:
            log.exception("failed: message %s", message.id)
            return Response(status_code=503)
        return Response(status_code=204)

    return api


def allows(authorization: str, audience: str, account: str) -> bool:
    """Whether Google has signed that this account calls this audience.

    The account matters: for any account of its own, anybody gets a token with any audience. Google's keys are fetched
    each time: where that is too much, give the request a session that caches.
    """
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        return False
    try:
        claims = id_token.verify_oauth2_token(token, Request(), audience)  # type: ignore[no-untyped-call]
    except (ValueError, GoogleAuthError) as error:
        log.warning("refused: %s", error)
        return False
    return claims.get("email") == account and claims.get("email_verified") is True
