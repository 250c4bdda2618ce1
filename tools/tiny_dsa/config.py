"""Shape of the tiny model, and the device and precision it trains in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class ModelConfig:
    """Sizes by the names of transformers' `GlmMoeDsaConfig`; the defaults are `models/tiny-dsa`."""

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    q_lora_rank: int = 128
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    index_n_heads: int = 32
    index_head_dim: int = 128
    index_topk: int = 512
    rms_norm_eps: float = 1e-6
    rope_theta: float = 100_000.0
    max_position_embeddings: int = 16_384

    def scaled_topk(self, scale: int) -> int:
        """Selected tokens of a run whose contexts are `scale` times shorter; never below 4."""
        return max(self.index_topk // scale, 4)


def autocast() -> torch.autocast:
    """bf16 arithmetic on a GPU, fp32 on the CPU."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


def compiled(*, dynamic: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: torch.compile on a GPU, the plain function on the CPU."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return torch.compile(function, dynamic=dynamic) if DEVICE == "cuda" else function

    return decorate
