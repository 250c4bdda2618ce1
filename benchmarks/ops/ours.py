"""The Triton launchers, one by one: an op whose file does not import costs its own cases only."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

_FILES = {
    "append_index_rows": "pool_keys",
    "pool_full_pages": "pool_pages",
    "candidate_positions": "topk",
    "lay_out_batch": "paged_batch",
    "pack_index_rows": "index_rows",
    "pack_kv_rows": "kv_rows",
    "paged_index_logits": "index_logits",
    "quantize_index_q": "index_rows",
    "read_index_rows": "index_rows",
    "rebuild_pooled_keys": "pool_keys",
    "release_items": "resolve",
    "resum_open_blocks": "pool_keys",
    "swap_in_blocks": "swap_in",
    "unpack_index_rows": "index_rows",
    "unpack_kv_rows": "kv_rows",
    "write_index_rows": "index_rows",
}


def triton_op(name: str) -> Callable[..., Any]:
    """The launcher of a public op: never its reference, which the op takes for CPU tensors."""
    module = import_module(f"hisparse_kernels.gpu.{_FILES.get(name, name)}")
    launcher: Callable[..., Any] = getattr(module, f"{name}_triton")
    return launcher
