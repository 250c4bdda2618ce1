"""Index scores and masked softmax with hand-written gradients, and the indexer's loss.

The gradients recompute per-head products instead of keeping them: [heads, rows, tokens] would
not fit at 16K tokens.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.tiny_dsa.config import compiled

_NEVER = float("-inf")


def index_scores(query: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """I[t, s] = sum_j w[t, j] * relu(q[t, j] . k[s]).

    Args:
        query: [batch, rows, heads, dim] float.
        key: [batch, tokens, dim] float.
        weights: [batch, rows, heads] fp32.

    Returns:
        [batch, rows, tokens] fp32.
    """
    return cast(Tensor, _IndexScores.apply(query, key, weights))


def masked_softmax(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax of `scores * scale` where `mask`, in the dtype of `scores`.

    Args:
        scores: [batch, heads, rows, tokens] float.
        mask: [batch or 1, rows, tokens] bool; each row needs one True.
        scale: factor of the scores.

    Returns:
        [batch, heads, rows, tokens].
    """
    return cast(Tensor, _MaskedSoftmax.apply(scores, mask, scale))


@compiled(dynamic=True)
def selection_loss(scores: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
    """KL(head-averaged attention || softmax of the index scores) over `mask`, mean over rows.

    Args:
        scores: [batch, rows, tokens] fp32, index scores.
        attention: [batch, heads, rows, tokens] probabilities, the target.
        mask: [batch or 1, rows, tokens] bool.

    Returns:
        [] fp32.
    """
    target = attention.float().mean(1)
    target = target / target.sum(-1, keepdim=True)
    log_predicted = torch.log_softmax(torch.where(mask, scores, _NEVER), -1)
    log_ratio = torch.log(target + 1e-12) - torch.where(mask, log_predicted, 0.0)
    return (target * log_ratio).sum(-1).mean()


class _IndexScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, weights: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(query, key, weights)
        return _sum_heads(_head_dots(query, key), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        (grad,) = grads
        query, key, weights = ctx.saved_tensors
        dots = _head_dots(query, key)
        grad_weights = _weights_gradient(dots, grad)
        grad_dots = _dots_gradient(dots, weights, grad).flatten(1, 2)  # [batch, rows*heads, tokens]
        grad_key = grad_dots.transpose(1, 2) @ query.flatten(1, 2)
        return (grad_dots @ key).view_as(query), grad_key, grad_weights


class _MaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, mask: Tensor, scale: float) -> Tensor:  # noqa: ANN401
        probabilities = _softmax_where(scores, mask, scale)
        ctx.save_for_backward(probabilities)
        ctx.scale = scale
        return probabilities

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        (probabilities,) = ctx.saved_tensors
        return _softmax_gradient(probabilities, grads[0].contiguous(), ctx.scale), None, None


def _head_dots(query: Tensor, key: Tensor) -> Tensor:
    """[batch, rows, heads, tokens]: one product for all heads."""
    batch, rows, heads, _ = query.shape
    return (query.flatten(1, 2) @ key.transpose(1, 2)).view(batch, rows, heads, key.shape[1])


@compiled(dynamic=True)
def _sum_heads(dots: Tensor, weights: Tensor) -> Tensor:
    return (F.relu(dots.float()) * weights.unsqueeze(-1)).sum(2)


@compiled(dynamic=True)
def _dots_gradient(dots: Tensor, weights: Tensor, grad: Tensor) -> Tensor:
    return torch.where(dots > 0, weights.unsqueeze(-1) * grad.unsqueeze(2), 0.0).to(dots.dtype)


@compiled(dynamic=True)
def _weights_gradient(dots: Tensor, grad: Tensor) -> Tensor:
    return (F.relu(dots.float()) * grad.unsqueeze(2)).sum(-1)


@compiled(dynamic=True)
def _softmax_where(scores: Tensor, mask: Tensor, scale: float) -> Tensor:
    scaled = torch.where(mask.unsqueeze(1), scores.float() * scale, _NEVER)
    return torch.softmax(scaled, -1).to(scores.dtype)


@compiled(dynamic=True)
def _softmax_gradient(probabilities: Tensor, grad: Tensor, scale: float) -> Tensor:
    p, g = probabilities.float(), grad.float()
    return (p * (g - (p * g).sum(-1, keepdim=True)) * scale).to(probabilities.dtype)
