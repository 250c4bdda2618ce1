"""What the coordinator asks of SGLang's requests, in the words of both supported versions."""

from http import HTTPStatus
from typing import Any

# SGLang may run one step more than a request has tokens for, and takes the last token along
_SPARE_TOKENS = 2


def table_row_of(req: Any) -> int:  # noqa: ANN401
    """Row of the request in SGLang's `req_to_token`."""
    return int(_table_row(req))


def table_row_or_none(req: Any) -> int | None:  # noqa: ANN401
    """The same, of a request that may have none."""
    row = _table_row(req)
    return None if row is None else int(row)


def _table_row(req: Any) -> Any:  # noqa: ANN401
    return req.req_pool_idx if hasattr(req, "req_pool_idx") else req.kv.req_pool_idx


def tree_tokens(req: Any) -> int:  # noqa: ANN401
    """Tokens from the first on whose slots are the prefix cache's."""
    holder = req if hasattr(req, "cache_protected_len") else req.kv
    return int(holder.cache_protected_len)


def has_embeddings(req: Any) -> bool:  # noqa: ANN401
    """Whether the request's token ids do not say what its tokens are."""
    names = "input_embeds", "positional_embed_overrides"
    return any(getattr(req, name, None) is not None for name in names)


def may_be_cached(req: Any) -> bool:  # noqa: ANN401
    """Whether others may find what the request has computed."""
    return not (has_embeddings(req) or getattr(req, "skip_radix_cache_insert", False))


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


def end_as_unavailable(req: Any, message: str) -> None:  # noqa: ANN401
    """Marks a request to end as aborted (HTTP 503); one that is to end already stays as it is."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    if req.to_finish is None:
        req.to_finish = FINISH_ABORT(message, status_code=HTTPStatus.SERVICE_UNAVAILABLE)
