"""What the indexer of one layer contributes: queries, head weights and keys, one row a token."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.engines.transformers.family import EngineModule, Rotation


@dataclass(frozen=True)
class IndexRows:
    """One layer's indexer inputs.

    Attributes:
        index_q: [rows, index_heads, 128] float, RoPE applied to the first 64 values.
        index_weights: [rows, index_heads] fp32, `heads**-0.5` and `128**-0.5` folded in.
        index_k: [rows, 128] float, normed, RoPE applied to the first 64 values.
    """

    index_q: torch.Tensor
    index_weights: torch.Tensor
    index_k: torch.Tensor


def index_rows(
    indexer: EngineModule,
    hidden: torch.Tensor,
    q_resid: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotate: Rotation,
) -> IndexRows:
    """Projects hidden states to indexer queries, weights and keys.

    Args:
        indexer: the layer's indexer module.
        hidden: [rows, hidden_size] float.
        q_resid: [rows, q_lora_rank] float, normed low-rank query of the attention.
        cos: [rows, 64] float, likewise `sin`; the RoPE table at each row's position.
        sin: see `cos`.
        rotate: RoPE of this indexer.
    """
    rope = indexer.qk_rope_head_dim
    query = indexer.wq_b(q_resid).view(hidden.shape[0], -1, indexer.head_dim)
    key = indexer.k_norm(indexer.wk(hidden)).unsqueeze(1)  # [rows, 1, 128]
    q_rope, k_rope = rotate(query[..., :rope], key[..., :rope], cos, sin, unsqueeze_dim=1)
    scale = indexer.n_heads**-0.5 * indexer.head_dim**-0.5
    weights = indexer.weights_proj(hidden.to(indexer.weights_proj.weight.dtype)).float() * scale
    return IndexRows(
        index_q=torch.cat([q_rope, query[..., rope:]], dim=-1),
        index_weights=weights,
        index_k=torch.cat([k_rope, key[..., rope:]], dim=-1).squeeze(1),
    )
