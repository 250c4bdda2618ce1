"""Folders from which SGLang's engine starts: the trained small model, and shapes of large ones."""

import json
from pathlib import Path
from typing import Any

from hisparse_sidecar.cli.checkout import find_beside

TINY_DSA = find_beside("models/tiny-dsa")
NUM_LAYERS = 8  # the host pool of 64 contexts of 128K tokens is 46 GB then

# Layers as published, but with a plain MLP of an expert's width in the place of the experts.
_V32 = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "vocab_size": 1024,
    "hidden_size": 7168,
    "intermediate_size": 2048,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": NUM_LAYERS,
    "moe_layer_freq": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "num_nextn_predict_layers": 0,
    "use_cache": True,
    "initializer_range": 0.02,
}
_GLM5 = {
    **_V32,
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "v_head_dim": 256,
    "index_n_heads": 32,
}
SHAPES: dict[str, dict[str, Any]] = {"DeepSeek-V3.2": _V32, "GLM-5": _GLM5}


def write_shape(name: str, folder: Path) -> Path:
    """Writes the config.json of a model of SHAPES; its weights are random."""
    (folder / "config.json").write_text(json.dumps(SHAPES[name]))
    return folder
