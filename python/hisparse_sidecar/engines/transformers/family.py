"""The two model classes of transformers that are served, and what differs between them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DeepseekV32ForCausalLM, GlmMoeDsaForCausalLM
from transformers.models.deepseek_v32 import modeling_deepseek_v32 as deepseek
from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as glm

from hisparse_sidecar.errors import InvalidArgument

# Modules and configs of the two classes, which share attribute names but no base class.
EngineModule = Any
EngineConfig = Any
# query, key, cos, sin, unsqueeze_dim -> rotated query, rotated key
Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class ModelFamily:
    """How one model class rotates its queries and keys, and what its attention returns.

    Attributes:
        rotate_rows: RoPE of the attention's queries and latent rows.
        rotate_index: RoPE of the indexer's queries and keys.
        returns_selection: the attention module returns a third value, the selected positions.
    """

    rotate_rows: Rotation
    rotate_index: Rotation
    returns_selection: bool

    def attention_result(self, hidden: torch.Tensor) -> tuple[Any, ...]:
        """What the attention module's `forward` returns, without attention weights."""
        return (hidden, None, None) if self.returns_selection else (hidden, None)


_FAMILIES: dict[type[nn.Module], ModelFamily] = {
    DeepseekV32ForCausalLM: ModelFamily(
        rotate_rows=deepseek.apply_rotary_pos_emb_interleave,
        rotate_index=deepseek.apply_rotary_pos_emb,
        returns_selection=False,
    ),
    GlmMoeDsaForCausalLM: ModelFamily(
        rotate_rows=glm.apply_rotary_pos_emb_interleave,
        rotate_index=glm.apply_rotary_pos_emb_interleave,
        returns_selection=True,
    ),
}


def family_of(model: nn.Module) -> ModelFamily:
    """The family of a model's class.

    Raises:
        InvalidArgument: the class is neither `DeepseekV32ForCausalLM` nor `GlmMoeDsaForCausalLM`.
    """
    for served_class, family in _FAMILIES.items():
        if isinstance(model, served_class):
            return family
    served = " or ".join(served_class.__name__ for served_class in _FAMILIES)
    raise InvalidArgument(f"model is a {type(model).__name__}, need {served}")


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are, and its token ids must be."""
    return next(model.parameters()).device


def attention_modules(model: nn.Module) -> list[EngineModule]:
    """The attention module of every layer, in layer order."""
    layers: EngineModule = model.get_submodule("model.layers")
    return [layer.self_attn for layer in layers]
