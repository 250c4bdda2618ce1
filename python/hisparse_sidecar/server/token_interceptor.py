"""Refuses every call over TCP that does not carry the server's token."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from hisparse_sidecar.server.grpc_types import Context, Handler, Interceptor
from hisparse_sidecar.wire.names import AUTHORIZATION_KEY, ERROR_KEY


class TokenInterceptor(Interceptor):
    """Compares in constant time; health and reflection need the token too."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, or one that refuses."""
        if self._accepts(handler_call_details):
            return await continuation(handler_call_details)
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _accepts(self, details: grpc.HandlerCallDetails) -> bool:
        metadata: Any = details.invocation_metadata or ()
        given = [value for key, value in metadata if key == AUTHORIZATION_KEY]
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), self._expected)


async def _refuse(request_iterator: object, context: Context) -> None:
    message = f"the call needs the metadata {AUTHORIZATION_KEY} with the server's token"
    name = ((ERROR_KEY, "Unauthenticated"),)
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, message, name)
