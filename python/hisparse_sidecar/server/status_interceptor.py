"""The one place where exceptions become statuses, and where a call without end is ended."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc

from hisparse_sidecar.server.grpc_types import Context, Handler, Interceptor
from hisparse_sidecar.wire.errors import DeadlineExceeded, status_of
from hisparse_sidecar.wire.names import ERROR_KEY
from hisparse_sidecar.wire.retry_info import encode_retry_info

_LOG = logging.getLogger(__name__)
_PREFIX = "/hisparse."  # health and reflection have statuses of their own


class StatusInterceptor(Interceptor):
    """Wraps every method of ours."""

    def __init__(self, max_call_seconds: float, retry_seconds: float) -> None:
        self._max_call_seconds = max_call_seconds
        self._retry_seconds = retry_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The method's handler, or one around it."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_PREFIX):
            return handler
        inner: Any = handler  # the stubs give every handler the types of every kind
        coding = (inner.request_deserializer, inner.response_serializer)
        if inner.unary_unary is not None:
            # gRPC serializes no response of a call whose status is an error
            return grpc.unary_unary_rpc_method_handler(self._unary(inner.unary_unary), *coding)
        return grpc.stream_stream_rpc_method_handler(self._stream(inner.stream_stream), *coding)

    def _unary(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(request: object, context: Context) -> object:
            try:
                return await asyncio.wait_for(method(request, context), self._max_call_seconds)
            except asyncio.TimeoutError:
                limit = f"the call took {self._max_call_seconds:g} s, the most that it may"
                self._refuse(context, DeadlineExceeded(limit))
            except Exception as error:
                self._refuse(context, error)
            return None

        return call

    def _stream(self, method: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def call(request_iterator: object, context: Context) -> None:
            try:
                await method(request_iterator, context)
            except Exception as error:
                await self._abort(context, error)

        return call

    def _refuse(self, context: Context, error: Exception) -> None:
        # an answer as any other: to abort would raise and catch once more, of each refused call
        code, message, metadata = self._status(error)
        context.set_code(code)
        context.set_details(message)
        context.set_trailing_metadata(metadata)

    async def _abort(self, context: Context, error: Exception) -> NoReturn:
        code, message, metadata = self._status(error)
        await context.abort(code, message, metadata)
        raise AssertionError("abort returned")

    def _status(
        self, error: Exception
    ) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]]:
        code, name, message = status_of(error)
        if code is grpc.StatusCode.INTERNAL:
            _LOG.error("a call failed", exc_info=error)
        details = encode_retry_info(error, code, message, self._retry_seconds)
        return code, message, ((ERROR_KEY, name), *details)
