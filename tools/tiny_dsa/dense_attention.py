"""Causal attention over the whole prefix, through the fastest working SDPA backend."""

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.tiny_dsa.config import DEVICE, ModelConfig

_MAX_RELATIVE_ERROR = 2e-2
_CHECKED_ROWS = 512

_pads_values = False  # flash wants values as wide as queries


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal softmax(q k^T * scale) v, all [batch, heads, tokens, dim]."""
    missing = query.shape[-1] - value.shape[-1]
    if _pads_values and missing:
        padded = F.pad(value, (0, missing))
        out = F.scaled_dot_product_attention(query, key, padded, is_causal=True, scale=scale)
        return out[..., : value.shape[-1]]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)


def choose_backend(config: ModelConfig) -> None:
    """Time forward and backward at full context on the GPU and keep the fastest right backend."""
    query, key, value = _inputs(config)
    rows = slice(_CHECKED_ROWS)
    exact = [x[:, :, rows].float() for x in (query, key, value)]
    reference = F.scaled_dot_product_attention(exact[0], exact[1], exact[2], is_causal=True)
    times = {}
    for name in ("cudnn", "flash", "efficient"):
        _use(name)
        try:
            seconds, out = _time_once_warm(query, key, value)
        except RuntimeError as error:
            print(f"sdpa {name}: {str(error).splitlines()[0][:160]}", flush=True)
            continue
        difference = ((out[:, :, rows].float() - reference).norm() / reference.norm()).item()
        print(f"sdpa {name}: {seconds * 1e3:.2f} ms, relative error {difference:.1e}", flush=True)
        if difference < _MAX_RELATIVE_ERROR:
            times[name] = seconds
    if not times:
        raise RuntimeError(f"no SDPA backend has a relative error below {_MAX_RELATIVE_ERROR}")
    _use(min(times, key=times.__getitem__))


def _inputs(config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    heads, tokens = config.num_attention_heads, config.max_position_embeddings
    wide = config.qk_nope_head_dim + config.qk_rope_head_dim
    query, key, value = (
        torch.randn(1, heads, tokens, dim, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for dim in (wide, wide, config.v_head_dim)
    )
    return query, key, value


def _use(name: str) -> None:
    global _pads_values
    _pads_values = name == "flash"
    torch.backends.cuda.enable_math_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_mem_efficient_sdp(name == "efficient")


def _time_once_warm(query: Tensor, key: Tensor, value: Tensor) -> tuple[float, Tensor]:
    """Seconds of the fourth forward and backward pass, and its output."""
    seconds, out = 0.0, query
    for _ in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        out = dense_attention(query, key, value, query.shape[-1] ** -0.5)
        out.backward(torch.ones_like(out))
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, out
