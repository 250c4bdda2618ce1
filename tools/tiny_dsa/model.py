"""The tiny model for training: transformers' `GlmMoeDsaForCausalLM` by parameter names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_dsa.attention import Attention, RmsNorm, Rotary, SelectionPass
from tools.tiny_dsa.config import DEVICE, ModelConfig, compiled


class TinyDsa(nn.Module):
    """Embeddings, layers and norm; the output layer is the embedding itself."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, self.model = config, _Trunk(config)
        dims = torch.arange(0, config.qk_rope_head_dim, 2).float()
        frequencies = 1.0 / (config.rope_theta ** (dims / config.qk_rope_head_dim))
        positions = torch.arange(config.max_position_embeddings).float()
        angles = torch.outer(positions, frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=_initial_std(name, parameter))

    def hidden(self, tokens: Tensor, selection: SelectionPass | None = None) -> Tensor:
        """[batch, tokens] integers -> [batch, tokens, hidden]; no selection = dense attention."""
        length = tokens.shape[1]
        rotary = Rotary(self.cos[:length], self.sin[:length])
        x = self.model.embed_tokens(tokens.long())
        if torch.is_autocast_enabled(DEVICE):
            x = x.to(torch.bfloat16)
        run_dense = _compiled_layer if torch.is_grad_enabled() else _plain_layer
        for layer in self.model.layers:
            x = run_dense(layer, x, rotary) if selection is None else layer(x, rotary, selection)
        out: Tensor = self.model.norm(x)
        return out

    def logits(
        self, tokens: Tensor, selection: SelectionPass | None = None, last: int = 0
    ) -> Tensor:
        """[batch, tokens or last, vocab] logits."""
        hidden = self.hidden(tokens, selection)[:, -last:]
        return F.linear(hidden, self.model.embed_tokens.weight)


class _Trunk(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([_Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class _Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(config), _Mlp(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, selection: SelectionPass | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, selection)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


def _plain_layer(layer: nn.Module, x: Tensor, rotary: Rotary) -> Tensor:
    out: Tensor = layer(x, rotary, None)
    return out


_compiled_layer = compiled(dynamic=False)(_plain_layer)


def _initial_std(name: str, parameter: Tensor) -> float:
    if "indexer" in name:
        return 0.05
    if "embed" in name:
        return 0.02
    is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
    return float(parameter.shape[1] ** -0.5 * (0.3 if is_output else 0.6))
