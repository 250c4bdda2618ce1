"""When to try again: the trailing metadata of a call that was refused for want of room."""

from collections.abc import Iterable

import grpc
from google.protobuf.duration_pb2 import Duration

from hisparse_sidecar._proto.hisparse.v1 import error_details_pb2
from hisparse_sidecar.errors import DeviceArenaFull, HostPoolFull, TierFull
from hisparse_sidecar.wire.names import DETAILS_KEY

_WANT_OF_ROOM = (HostPoolFull, DeviceArenaFull, TierFull)
_TYPE_URL = "type.googleapis.com/google.rpc.RetryInfo"


def encode_retry_info(
    error: Exception, code: grpc.StatusCode, message: str, seconds: float
) -> tuple[tuple[str, bytes], ...]:
    """The metadata that says to wait for `seconds`; none if waiting cannot help."""
    if not isinstance(error, _WANT_OF_ROOM):
        return ()
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    details = error_details_pb2.StatusDetails(code=code.value[0], message=message)
    info = details.details.add(type_url=_TYPE_URL)
    info.value = error_details_pb2.RetryInfo(retry_delay=delay).SerializeToString()
    return ((DETAILS_KEY, details.SerializeToString()),)


def decode_retry_info(metadata: Iterable[tuple[str, str | bytes]]) -> float | None:
    """Seconds to wait; None if the metadata does not say."""
    for value in (value for key, value in metadata if key == DETAILS_KEY):
        assert isinstance(value, bytes), "gRPC gives bytes for a key that ends in -bin"
        for detail in error_details_pb2.StatusDetails.FromString(value).details:
            if detail.type_url == _TYPE_URL:
                info = error_details_pb2.RetryInfo.FromString(detail.value)
                return info.retry_delay.ToNanoseconds() / 1e9
    return None
