"""The checkpoint as transformers reads it: config, tokenizer and bf16 shards."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmMoeDsaConfig, PreTrainedTokenizerFast

from tools.tiny_dsa.config import DEVICE, ModelConfig
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.prepare import END_OF_TEXT

MAX_SHARD_BYTES = 14_400_000


def transformers_config(config: ModelConfig) -> GlmMoeDsaConfig:
    """The same model as a `GlmMoeDsaConfig`; engines read the expert fields, no layer uses them."""
    fields: dict[str, Any] = asdict(config)
    fields |= {
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.qk_rope_head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_interleave": True,
        "indexer_rope_interleave": True,
        "tie_word_embeddings": True,
        "first_k_dense_replace": config.num_hidden_layers,
        "moe_layer_freq": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "routed_scaling_factor": 1.0,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "num_nextn_predict_layers": 0,
        "ep_size": 1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "architectures": ["GlmMoeDsaForCausalLM"],
        "dtype": "bfloat16",
    }
    return GlmMoeDsaConfig(**fields)


def export(model: TinyDsa, tokenizer_file: Path, out: Path) -> None:
    """Write everything that `from_pretrained` needs to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    transformers_config(model.config).save_pretrained(out)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    _write_json(out / "generation_config.json", {**ids, "do_sample": False})
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=model.config.max_position_embeddings,
    ).save_pretrained(out)
    _save_shards(model, out)


def load_exported(folder: Path, config: ModelConfig | None = None) -> TinyDsa:
    """An exported checkpoint in the training code, fp32, on the device."""
    model = TinyDsa(config or ModelConfig())
    weights: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        weights |= {name: weight.float() for name, weight in load_file(shard).items()}
    model.load_state_dict(weights)
    return model.to(DEVICE).eval()


def round_to_bf16(model: TinyDsa) -> None:
    """Make the fp32 weights those that an export holds."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()


def _save_shards(model: TinyDsa, out: Path) -> None:
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in sorted(model.state_dict().items())
    }
    shards = _split(weights)
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, name)
    total_bytes = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": files}
    _write_json(out / "model.safetensors.index.json", index)


def _split(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size_bytes = 0
    for name, weight in weights.items():
        if size_bytes + weight.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            size_bytes = 0
        shards[-1][name] = weight
        size_bytes += weight.nbytes
    return shards


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1))
