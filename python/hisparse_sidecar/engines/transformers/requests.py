"""Check one call of a model's forward, and complete it so that it can be a step of a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Signature
from typing import Any

import torch
from torch import nn

from hisparse_sidecar.engines.transformers.cache import SidecarCache
from hisparse_sidecar.engines.transformers.family import EngineConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.sidecar import Session
from hisparse_sidecar.step.step import StepKind

# what a forward calls its cache: from transformers 5.24 on, and before
_CACHE_NAMES = ("cache", "past_key_values")


@dataclass(frozen=True)
class CheckedCall:
    """A forward that may run.

    Attributes:
        cache: the sequences of the batch.
        num_rows: new tokens of each sequence.
        token_ids: of every row, where the session is told; else None.
        kind: "decode" for as many rows as a decode step takes, else "prefill".
        arguments: forward arguments to replace: positions from the cache, and no mask.
    """

    cache: SidecarCache
    num_rows: int
    token_ids: list[int] | None
    kind: StepKind
    arguments: dict[str, Any]


def with_own_cache_name(kwargs: Mapping[str, Any], signature: Signature) -> dict[str, Any]:
    """Keyword arguments, the cache under the name that `signature` has: callers may use either.

    Raises:
        InvalidArgument: both names are given.
    """
    given = [name for name in _CACHE_NAMES if name in kwargs]
    if len(given) > 1:
        raise InvalidArgument(f"forward got {' and '.join(given)}, needs one of them")
    own = next(name for name in _CACHE_NAMES if name in signature.parameters)
    return {own if name in given else name: value for name, value in kwargs.items()}


def checked_call(arguments: dict[str, Any], model: nn.Module, session: Session) -> CheckedCall:
    """Checks the bound arguments of a `...ForCausalLM.forward`.

    Raises:
        InvalidArgument: no `SidecarCache` of this session, a batch of another size, padding, a
            custom mask, or positions that do not continue the sequences. No step was begun.
    """
    cache = _cache_of(arguments, session)
    tokens = arguments.get("input_ids")
    tokens = arguments.get("inputs_embeds") if tokens is None else tokens
    if tokens is None:
        raise InvalidArgument("forward got neither input_ids nor inputs_embeds, needs one")
    batch_size, num_rows = tokens.shape[:2]
    if batch_size != cache.batch_size or not num_rows:
        found, needed = f"{batch_size} rows of {num_rows} tokens", f"{cache.batch_size} rows"
        raise InvalidArgument(f"input holds {found}, the cache needs {needed} of >= 1")
    _check_mask(arguments.get("attention_mask"), cache.get_seq_length() + num_rows)
    positions = cache.next_positions(num_rows, tokens.device)
    _check_positions(arguments.get("position_ids"), positions)
    kind: StepKind = "decode" if num_rows <= session.config.max_step_rows else "prefill"
    completed = {"position_ids": positions, "attention_mask": _no_mask(model)}
    told = _told_ids(cache, arguments.get("input_ids"))
    return CheckedCall(cache, num_rows, told, kind, completed)


def _cache_of(arguments: dict[str, Any], session: Session) -> SidecarCache:
    cache = next((arguments[name] for name in _CACHE_NAMES if name in arguments), None)
    if not isinstance(cache, SidecarCache):
        found = type(cache).__name__
        raise InvalidArgument(f"cache is a {found}, an attached model needs SidecarCache")
    if cache.session is not session:
        raise InvalidArgument("cache is of another session than the attached one")
    return cache


def _told_ids(cache: SidecarCache, token_ids: torch.Tensor | None) -> list[int] | None:
    """Batch row after batch row. The step before has ended: this waits for one token's choice."""
    if token_ids is None or not cache.tells_tokens:
        return None
    told: list[int] = token_ids.flatten().tolist()
    return told


def _check_mask(mask: Any, num_keys: int) -> None:  # noqa: ANN401  (tensor, dict or None)
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        raise InvalidArgument(
            "attention_mask is a custom mask, must be None or [batch, tokens] of ones"
        )
    padding = int((mask == 0).sum())
    if padding:
        raise InvalidArgument(f"attention_mask has {padding} padding tokens, must have 0")
    if mask.shape[1] != num_keys:
        raise InvalidArgument(
            f"attention_mask covers {mask.shape[1]} tokens, must cover {num_keys}"
        )


def _check_positions(found: torch.Tensor | None, needed: torch.Tensor) -> None:
    if found is None:
        return
    if found.shape[-1] != needed.shape[1] or not bool((found == needed).all()):
        first, last = needed[0, 0].item(), needed[0, -1].item()
        given = f"{found.flatten()[0].item()}..{found.flatten()[-1].item()}"
        raise InvalidArgument(f"position_ids are {given}, the sequence continues {first}..{last}")


def _no_mask(model: nn.Module) -> dict[str, None]:
    """A ready-made mask of None for every layer type: selection knows causality by itself."""
    config: EngineConfig = model.config
    return dict.fromkeys({*config.layer_types, "indexed_attention"})
