"""The unchanged transformers model, with the selection that it is told to attend to.

Only the indexer's answer is replaced: its own scores are computed by the class's formula, and the
difference between its own top-k and the given one is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType

import torch

from hisparse_sidecar.engines.transformers.family import attention_modules, family_of
from hisparse_sidecar.engines.transformers.row_rounding import larger_gap


@dataclass
class Difference:
    """Between given selections and the stock indexer's own.

    Attributes:
        rows: rows with another set.
        worst_gap: largest |score - k-th score| / |k-th score| among positions of only one set.
    """

    rows: int = 0
    worst_gap: float = 0.0


def stock_logits(model, ids: torch.Tensor, given: Sequence[torch.Tensor] | None = None):
    """Logits of the stock model in one forward, attending to `given`.

    Args:
        model: not attached.
        ids: [1, tokens] int64.
        given: for each layer [tokens, topk] int32, -1 pads the tail; None = the model's own.

    Returns:
        [tokens, vocab] fp32, and the `Difference` over all layers.
    """
    difference, rotate = Difference(), family_of(model).rotate_index
    indexers = [attention.indexer for attention in attention_modules(model)]
    for layer, indexer in enumerate(indexers):
        if indexer is not None and given is not None:
            answer = _answer(given[layer], rotate, difference)
            indexer.forward = MethodType(answer, indexer)
    try:
        with torch.no_grad():
            return model(ids, use_cache=False).logits[0], difference
    finally:
        for indexer in indexers:
            if indexer is not None:
                indexer.__dict__.pop("forward", None)


def _answer(given: torch.Tensor, rotate, difference: Difference):
    def forward(self, hidden_states, q_resid, position_embeddings, *_, **__):
        scores = _scores(self, hidden_states, q_resid, position_embeddings, rotate)
        _measure(difference, scores, given, self.index_topk)
        # the class scatters into a mask, where a repeated position does no harm and -1 is illegal
        return torch.where(given < 0, given[:, :1], given)[None]

    return forward


def _scores(indexer, hidden, q_resid, position_embeddings, rotate) -> torch.Tensor:
    """[tokens, tokens] fp32, -inf where a token would look ahead."""
    tokens, rope = hidden.shape[1], indexer.qk_rope_head_dim
    query = indexer.wq_b(q_resid).view(1, tokens, indexer.n_heads, indexer.head_dim)
    key = indexer.k_norm(indexer.wk(hidden))[:, :, None]
    q_rope, k_rope = rotate(
        query[..., :rope], key[..., :rope], *position_embeddings, unsqueeze_dim=2
    )
    query = torch.cat([q_rope, query[..., rope:]], dim=-1)
    key = torch.cat([k_rope, key[..., rope:]], dim=-1)[:, :, 0]
    dots = torch.relu(query @ key.mT[:, None] * indexer.softmax_scale)  # [1, tokens, heads, tokens]
    weights = indexer.weights_proj(hidden).float() * indexer.n_heads**-0.5
    scores = (weights[:, :, None] @ dots)[0, :, 0]
    ahead = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, -torch.inf)


def _measure(difference: Difference, scores: torch.Tensor, given: torch.Tensor, topk: int) -> None:
    for row, (row_scores, positions) in enumerate(zip(scores, given, strict=True)):
        taken = min(topk, row + 1)
        best = row_scores.topk(taken)
        own, kth = set(best.indices.tolist()), best.values[-1]
        ours = set(positions[positions >= 0].tolist())
        assert len(ours) == taken, f"row {row} selected {len(ours)} positions, {taken} can be"
        odd = list(own ^ ours)
        if odd:
            scores_odd = row_scores[odd]
            gaps = torch.where(scores_odd == kth, 0.0, (scores_odd - kth).abs() / kth.abs())
            difference.rows += 1
            difference.worst_gap = larger_gap(difference.worst_gap, gaps)
