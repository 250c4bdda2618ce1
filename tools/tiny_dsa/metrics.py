"""Loss on held-out text and the share of needles found."""

import numpy as np
import torch
import torch.nn.functional as F

from tools.tiny_dsa.attention import SelectionPass
from tools.tiny_dsa.config import DEVICE
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.tasks import TaskSampler, Tokens

NUM_DIGITS = 5
_MAX_BATCH_TOKENS = 65_536 if DEVICE == "cuda" else 4096


def needle_accuracy(
    model: TinyDsa,
    sampler: TaskSampler,
    num_tokens: int,
    num_samples: int,
    topk: int | None,
    depth: float = 0.5,
    distractors: int = 0,
) -> float:
    """Share of samples with every digit right; teacher forcing, which equals greedy decoding here.

    Args:
        model: the model to ask.
        sampler: where the samples come from.
        num_tokens: context of the question; a sample has one more.
        num_samples: how many are asked.
        topk: tokens selected per layer; None = dense attention.
        depth: where the fact is planted.
        distractors: other facts around it.

    Returns:
        A fraction from 0 to 1.
    """
    num_right = 0
    per_batch = max(1, min(num_samples, _MAX_BATCH_TOKENS // num_tokens))
    for start in range(0, num_samples, per_batch):
        samples = [
            sampler.needle(num_tokens + 1, depth, distractors).tokens
            for _ in range(min(per_batch, num_samples - start))
        ]
        tokens = to_device(np.stack(samples))
        selection = None if topk is None else SelectionPass(topk)
        logits = model.logits(tokens[:, :-1], selection, last=NUM_DIGITS)
        right = (logits.argmax(-1) == tokens[:, -NUM_DIGITS:]).all(-1)
        num_right += int(right.sum())
    return num_right / num_samples


def text_loss(model: TinyDsa, tokens: Tokens, num_tokens: int, topk: int | None) -> float:
    """Mean loss in nats per token over windows of `num_tokens`; `topk` None = dense attention."""
    losses = []
    for start in range(0, len(tokens) - num_tokens + 1, num_tokens):
        window = to_device(tokens[start : start + num_tokens])[None]
        selection = None if topk is None else SelectionPass(topk)
        logits = model.logits(window[:, :-1], selection)
        losses.append(F.cross_entropy(logits[0].float(), window[0, 1:]).item())
    return float(np.mean(losses))


def to_device(tokens: Tokens) -> torch.Tensor:
    """The same tokens as int64 on the device."""
    return torch.from_numpy(tokens.astype(np.int64)).to(DEVICE)
