"""Greedy generation with chunked prefill, over anything that yields next-token logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from typing_extensions import Unpack

from hisparse_sidecar.config.sequence import OpenOptions
from hisparse_sidecar.engines.transformers.attach import Attachment
from hisparse_sidecar.engines.transformers.cache import SidecarCache
from hisparse_sidecar.engines.transformers.family import device_of
from hisparse_sidecar.errors import InvalidArgument

# stage, tokens done, tokens of the stage
Progress = Callable[[Literal["prefill", "decode"], int, int], None]
# token ids [1, n] int64 on the CPU -> logits of the token after the last one, [vocab] float
NextLogits = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class GreedyOptions:
    """How to generate.

    Attributes:
        max_new_tokens: tokens to generate, >= 1.
        prefill_chunk: most prompt tokens of one forward.
        stop_ids: generation ends after one of these; it is part of the result.
        on_progress: called after every forward, and before the first one if tokens of the prompt
            are cached: these count as done.
    """

    max_new_tokens: int
    prefill_chunk: int = 512
    stop_ids: tuple[int, ...] = ()
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} is {getattr(self, name)}, must be >= 1")

    def report(self, stage: Literal["prefill", "decode"], done: int, total: int) -> None:
        """Calls `on_progress`, if there is one."""
        if self.on_progress is not None:
            self.on_progress(stage, done, total)


def greedy(
    next_logits: NextLogits,
    prompt_ids: Sequence[int],
    options: GreedyOptions,
    *,
    cached_tokens: int = 0,
) -> list[int]:
    """Generates the likeliest tokens; ties go to the lowest token id.

    Args:
        next_logits: runs a forward on the next tokens of the sequence.
        prompt_ids: token ids, >= 1.
        options: how many tokens, in what chunks.
        cached_tokens: of the prompt's beginning, that need no forward; fewer than there are.

    Returns:
        The new token ids, at most `max_new_tokens`.
    """
    if not prompt_ids:
        raise InvalidArgument("prompt has 0 tokens, needs >= 1")
    if not 0 <= cached_tokens < len(prompt_ids):
        found = f"cached_tokens is {cached_tokens}"
        raise InvalidArgument(f"{found}, must be 0 to {len(prompt_ids) - 1}")
    logits = _prefill(next_logits, prompt_ids, options, cached_tokens)
    generated = [int(logits.argmax())]
    while len(generated) < options.max_new_tokens and generated[-1] not in options.stop_ids:
        options.report("decode", len(generated), options.max_new_tokens)
        logits = next_logits(torch.tensor([generated[-1:]]))
        generated.append(int(logits.argmax()))
    options.report("decode", len(generated), options.max_new_tokens)
    return generated


def _prefill(
    next_logits: NextLogits, prompt_ids: Sequence[int], options: GreedyOptions, cached_tokens: int
) -> torch.Tensor:
    total = len(prompt_ids)
    if cached_tokens:
        options.report("prefill", cached_tokens, total)
    for start in range(cached_tokens, total, options.prefill_chunk):
        chunk = prompt_ids[start : start + options.prefill_chunk]
        logits = next_logits(torch.tensor([list(chunk)]))
        options.report("prefill", start + len(chunk), total)
    return logits


def generate(
    attachment: Attachment,
    prompt_ids: Sequence[int],
    options: GreedyOptions,
    *,
    tenant: str = "",
    **opened_with: Unpack[OpenOptions],
) -> list[int]:
    """Greedy generation of one prompt through the session of an attached model.

    The sequence is opened for prompt + `max_new_tokens`, on what any tier has of the prompt, and
    closed at the end; see `SidecarCache.open_prompt`.

    Returns:
        The new token ids.
    """
    with attachment.open_prompt(
        prompt_ids, options.max_new_tokens, tenant=tenant, **opened_with
    ) as cache:
        next_logits, cached_tokens = next_logits_of(attachment, cache), cache.cached_tokens[0]
        return greedy(next_logits, prompt_ids, options, cached_tokens=cached_tokens)


def next_logits_of(attachment: Attachment, cache: SidecarCache) -> NextLogits:
    """What `greedy` takes: forwards of an attached model that continue `cache`."""
    device = device_of(attachment.model)

    def next_logits(token_ids: torch.Tensor) -> torch.Tensor:
        result = attachment.model(
            input_ids=token_ids.to(device), past_key_values=cache, logits_to_keep=1
        )
        logits: torch.Tensor = result.logits[0, -1]
        return logits

    return next_logits
