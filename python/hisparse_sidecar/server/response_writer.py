"""The sending side of a stream: what its client does not read is bounded in bytes and in time.

gRPC takes one response at a time and no more than the client's window has room for, so a stream
buffers no more than that window and the one response that waits for room.
"""

import asyncio

from google.protobuf.message import Message

from hisparse_sidecar.server.grpc_types import Context
from hisparse_sidecar.wire.errors import LimitExceeded

_PROMPT_SHARE = 0.01  # of the limit: who takes a response within it is not behind


class ResponseWriter:
    """Writes to one stream; a client that is behind for too long is refused the rest."""

    def __init__(self, context: Context, max_unread_seconds: float) -> None:
        self._context = context
        self._max_unread_seconds = max_unread_seconds
        self._behind_since: float | None = None

    async def write(self, response: Message) -> None:
        """Returns when there was room for the response.

        Raises:
            LimitExceeded: responses have waited for room, one after the other, for too long.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        since = began if self._behind_since is None else self._behind_since
        left_seconds = since + self._max_unread_seconds - began
        # not wait_for, which may swallow that the stream is cancelled
        writing = asyncio.ensure_future(self._context.write(response))
        try:
            await asyncio.wait((writing,), timeout=left_seconds)
            if not writing.done():
                found, limit = clock() - since, self._max_unread_seconds
                raise LimitExceeded(f"responses wait for {found:.3g} s, at most {limit:g} s")
            writing.result()
        finally:
            writing.cancel()
        prompt = clock() - began <= _PROMPT_SHARE * self._max_unread_seconds
        self._behind_since = None if prompt else since
