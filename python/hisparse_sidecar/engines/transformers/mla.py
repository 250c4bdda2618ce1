"""Absorbed multi-head latent attention: the rows a sidecar stores, and back to hidden states."""

from dataclasses import dataclass

import torch

from hisparse_sidecar.engines.transformers.family import EngineModule, Rotation


@dataclass(frozen=True)
class MlaRows:
    """One layer's attention inputs, one row for each token.

    Attributes:
        query: [rows, heads, 576] float, `q_nope @ W_UK` (512) | rotated part (64).
        kv: [rows, 576] float, normed latent (512) | rotated part (64).
        q_resid: [rows, q_lora_rank] float, normed low-rank query, which the indexer reads too.
    """

    query: torch.Tensor
    kv: torch.Tensor
    q_resid: torch.Tensor


def mla_rows(
    attention: EngineModule,
    hidden: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotate: Rotation,
) -> MlaRows:
    """Projects hidden states to absorbed queries and latent rows.

    Args:
        attention: the layer's attention module.
        hidden: [rows, hidden_size] float.
        cos: [rows, 64] float, likewise `sin`; the RoPE table at each row's position.
        sin: see `cos`.
        rotate: RoPE of this attention.
    """
    nope, rope = attention.qk_nope_head_dim, attention.qk_rope_head_dim
    q_resid = attention.q_a_layernorm(attention.q_a_proj(hidden))
    heads = attention.q_b_proj(q_resid).view(hidden.shape[0], -1, nope + rope)
    q_nope, q_rope = heads.split([nope, rope], dim=-1)  # [rows, heads, nope], [rows, heads, 64]
    latent, k_rope = attention.kv_a_proj_with_mqa(hidden).split(
        [attention.kv_lora_rank, rope], dim=-1
    )
    latent = attention.kv_a_layernorm(latent)
    q_rope, k_rope = rotate(q_rope, k_rope.unsqueeze(1), cos, sin, unsqueeze_dim=1)
    absorb, _ = _absorbed_weights(attention)
    q_latent = torch.bmm(q_nope.transpose(0, 1), absorb).transpose(0, 1)  # [rows, heads, 512]
    return MlaRows(
        query=torch.cat([q_latent, q_rope], dim=-1),
        kv=torch.cat([latent, k_rope.squeeze(1)], dim=-1),
        q_resid=q_resid,
    )


def hidden_of_latents(attention: EngineModule, out: torch.Tensor) -> torch.Tensor:
    """Hidden states of attention results in latent space.

    Args:
        attention: the layer's attention module.
        out: [rows, heads, 512] float, what the sparse MLA returned.

    Returns:
        [rows, hidden_size] float.
    """
    _, expand = _absorbed_weights(attention)
    values = torch.bmm(out.transpose(0, 1), expand).transpose(0, 1)  # [rows, heads, v_head_dim]
    hidden: torch.Tensor = attention.o_proj(values.flatten(1))
    return hidden


def _absorbed_weights(attention: EngineModule) -> tuple[torch.Tensor, torch.Tensor]:
    """W_UK [heads, nope, 512] and W_UV [heads, 512, v_head_dim], views of the layer's weight."""
    nope, value = attention.qk_nope_head_dim, attention.v_head_dim
    weight = attention.kv_b_proj.weight.view(-1, nope + value, attention.kv_lora_rank)
    return weight[:, :nope], weight[:, nope:].transpose(1, 2)
