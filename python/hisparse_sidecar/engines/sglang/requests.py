"""What the coordinator asks of SGLang's requests, in the words of both supported versions."""

from dataclasses import dataclass, field
from typing import Any

import torch

from hisparse_sidecar.side_stream import StreamMark

# SGLang may run one step more than a request has tokens for, and takes the last token along
_SPARE_TOKENS = 2


@dataclass
class StagedRequest:
    """A request between prefill and decode; SGLang's scheduler reads `req`.

    Attributes:
        req: SGLang's request.
        sequence: our handle; 0 = waits for room.
        mark: where its rows have been copied; None = waits for room.
        held: tensors in use until then.
    """

    req: Any
    sequence: int = 0
    mark: StreamMark | None = None
    held: list[torch.Tensor] = field(default_factory=list)

    @property
    def is_ready(self) -> bool:
        """Whether its rows are on the host."""
        return self.mark is not None and self.mark.has_passed


def table_row_of(req: Any) -> int:  # noqa: ANN401
    """Row of the request in SGLang's `req_to_token`."""
    return int(req.req_pool_idx if hasattr(req, "req_pool_idx") else req.kv.req_pool_idx)


def prefilled_tokens(req: Any) -> int:  # noqa: ANN401
    """Tokens whose rows prefill has written."""
    return int(req.extend_end if hasattr(req, "extend_end") else req.extend_range.end)


def tokens_to_come(req: Any, most: int) -> int:  # noqa: ANN401
    """Most rows that decoding may append to a request whose prefill is done.

    Args:
        req: SGLang's request.
        most: tokens that fit at all.
    """
    prefilled, wanted = prefilled_tokens(req), req.sampling_params.max_new_tokens
    room = most - prefilled
    if wanted is None:
        return room
    left = len(req.origin_input_ids) + int(wanted) + _SPARE_TOKENS - prefilled
    return min(left, room)


def most_tokens(context_tokens: int, pool_tokens: int) -> int:
    """Most tokens of one request: the context, or what SGLang's slots can name."""
    return min(context_tokens, pool_tokens) + _SPARE_TOKENS
