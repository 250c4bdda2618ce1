"""The models that engine tests run: the trained one, and small random ones of both classes."""

import functools
import inspect
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
)

ROOT = Path(__file__).parents[2]
TINY_DSA = ROOT / "models" / "tiny-dsa"
# what transformers' own `generate` calls the cache: newer and older versions differ
CACHE = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(DeepseekV32ForCausalLM.forward).parameters
)
TEXT = ROOT / "examples" / "text" / "opticks.txt"

# as in the large models where the row layouts ask for it, small everywhere else
_SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 512,
    "q_lora_rank": 96,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 16384,
    "index_head_dim": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
}


def deepseek_config(**changes: object) -> DeepseekV32Config:
    """Three layers, YaRN, two expert groups, 16 index heads, topk 96."""
    settings = {
        "num_hidden_layers": 3,
        "index_n_heads": 16,
        "index_topk": 96,
        "n_group": 2,
        "topk_group": 1,
        "rope_parameters": YARN_ROPE,
    }
    return DeepseekV32Config(**(_SMALL | settings | changes))


def glm_config(**changes: object) -> GlmMoeDsaConfig:
    """Four layers of which two share a selection, 8 index heads, topk 64."""
    settings = {
        "num_hidden_layers": 4,
        "index_n_heads": 8,
        "index_topk": 64,
        "indexer_types": ["full", "shared", "full", "shared"],
        "rope_parameters": DEFAULT_ROPE,
    }
    return GlmMoeDsaConfig(**(_SMALL | settings | changes))


@functools.cache
def deepseek_model() -> DeepseekV32ForCausalLM:
    return _random_model(DeepseekV32ForCausalLM(deepseek_config()))


@functools.cache
def glm_shared_model() -> GlmMoeDsaForCausalLM:
    return _random_model(GlmMoeDsaForCausalLM(glm_config()))


@functools.cache
def tiny_dsa() -> GlmMoeDsaForCausalLM:
    return GlmMoeDsaForCausalLM.from_pretrained(TINY_DSA, dtype="float32").eval()


MODELS = {
    "tiny-dsa": tiny_dsa,
    "deepseek": deepseek_model,
    "glm-shared": glm_shared_model,
}


def token_ids(model: torch.nn.Module, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """[1, num_tokens] int64 random tokens, without the special ones."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(2, model.config.vocab_size, (1, num_tokens), generator=made)


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY_DSA / "tokenizer.json"))


def text_ids(path: Path, num_tokens: int) -> torch.Tensor:
    """[1, num_tokens] int64, the first tokens of a text."""
    ids = tokenizer().encode(path.read_text(encoding="utf-8"), add_special_tokens=False).ids
    assert len(ids) >= num_tokens, f"{path.name} has {len(ids)} tokens, need {num_tokens}"
    return torch.tensor([ids[:num_tokens]])


def _random_model(model):
    """Random weights, wide enough for the selection to matter (`test_stock.py` checks that)."""
    made = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                normal = torch.randn(weight.shape, generator=made)
                weight.copy_(normal * weight.shape[-1] ** -0.5)
    return model.eval()
