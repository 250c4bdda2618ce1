"""One call, one stream of layers: the status of either becomes the exception that it stands for."""

import contextlib
import queue
from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc

from hisparse_sidecar._proto.hisparse.v1 import step_pb2, step_pb2_grpc
from hisparse_sidecar.wire.errors import ServerUnavailable, code_of_number, error_of
from hisparse_sidecar.wire.names import ERROR_KEY

_Response = TypeVar("_Response")
Metadata = tuple[tuple[str, str], ...]


def call(make: Callable[[], _Response]) -> _Response:
    """The response of a gRPC call, or the exception that its status stands for."""
    try:
        return make()
    except grpc.RpcError as error:
        raise _exception(error) from None


def _exception(error: grpc.RpcError) -> Exception:
    status = cast(Any, error)  # every RpcError of a call is a grpc.Call too
    names = [value for key, value in status.trailing_metadata() or () if key == ERROR_KEY]
    return error_of(status.code(), names[0] if names else None, status.details() or "")


class LayerStream:
    """A RunLayers stream: one layer is out at a time."""

    def __init__(self, stub: step_pb2_grpc.StepServiceStub, metadata: Metadata) -> None:
        self._requests: queue.SimpleQueue[step_pb2.RunLayersRequest | None] = queue.SimpleQueue()
        self._responses: Any = stub.RunLayers(iter(self._requests.get, None), metadata=metadata)

    def run(self, layer: step_pb2.RunLayerRequest) -> None:
        """Runs one layer; refused, it raises, and the stream goes on."""
        self._requests.put(step_pb2.RunLayersRequest(layer=layer))
        response = call(lambda: next(self._responses, None))
        if response is None:
            raise ServerUnavailable("the server ended the stream of layers")
        if response.WhichOneof("result") == "refused":
            refused = response.refused
            raise error_of(code_of_number(refused.status_code), refused.error, refused.message)

    def is_open(self) -> bool:
        """Whether the stream can take another layer."""
        return cast(bool, self._responses.is_active())

    def close(self) -> None:
        """Ends the stream; an open step stays open."""
        self._requests.put(None)
        with contextlib.suppress(grpc.RpcError):  # it had ended, with a status that run has raised
            list(self._responses)
