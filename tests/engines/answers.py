"""Greedy answers to prompts, with what they were found to have already and every logit."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.engines.transformers import (
    Attachment,
    GreedyOptions,
    SidecarCache,
    greedy,
    next_logits_of,
)

CHUNK = 64  # a page: what is prefilled after cached pages is cut as it was for the first prompt


@dataclass(frozen=True)
class Answer:
    """What one prompt got.

    Attributes:
        cached: tokens of the prompt that were found.
        tokens: the new ones.
        logits: [new tokens, vocab], what these were chosen from.
        chunks: number of tokens of every forward.
    """

    cached: int
    tokens: list[int]
    logits: torch.Tensor
    chunks: list[int]

    def same_as(self, other: "Answer") -> bool:
        """Bit for bit."""
        return self.tokens == other.tokens and torch.equal(self.logits, other.logits)


def answer(
    attached: Attachment,
    prompt: list[int],
    num_new: int,
    *,
    cache: SidecarCache | None = None,
    chunk: int = CHUNK,
    tenant: str = "",
) -> Answer:
    """The answer from an open cache, from where it stands, else from one of its own."""
    if cache is None:
        with attached.open_prompt(prompt, num_new, tenant=tenant) as own:
            return answer(attached, prompt, num_new, cache=own, chunk=chunk)
    logits, chunks, cached = [], [], cache.lengths[0]
    forward = next_logits_of(attached, cache)

    def recorded(token_ids: torch.Tensor) -> torch.Tensor:
        chunks.append(token_ids.shape[1])
        logits.append(forward(token_ids))
        return logits[-1]

    options = GreedyOptions(num_new, prefill_chunk=chunk)
    tokens = greedy(recorded, prompt, options, cached_tokens=cached)
    return Answer(cached, tokens, torch.stack(logits[-num_new:]), chunks)
