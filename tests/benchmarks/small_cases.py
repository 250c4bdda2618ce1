"""Every kind of case of the suite `ops` at sizes for Triton's interpreter."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from benchmarks.ops import (
    append_cases,
    attention_cases,
    copy_cases,
    hot_buffers,
    logits_cases,
    paged_cases,
    pooled_cases,
    refine_cases,
    rerank_cases,
    row_cases,
    swap_cases,
    topk_cases,
)
from benchmarks.ops.case import Prepared
from benchmarks.ops.inputs import BF16_ROWS, FP8_ROWS

_SIZES: dict[ModuleType, dict[str, int]] = {
    append_cases: {"_HEADS": 3},
    attention_cases: {"_TOPK": 512, "_CONTEXT": 2048, "_ROWS": 2},
    copy_cases: {"TOPK": 32, "_CONTEXT": 512, "_WINDOW_BLOCKS": 4},
    hot_buffers: {"TOPK": 32, "HOT_SLOTS": 64},
    logits_cases: {"_ROWS": 6},
    paged_cases: {"_TOPK": 32, "_CONTEXT": 512},
    pooled_cases: {"_HEADS": 16, "_ROUTED": 4, "_CONTEXT": 128 * 64},
    refine_cases: {"_PREFILL_ROWS": 6, "_KEPT": 4, "_CONTEXT": 1024},
    rerank_cases: {"_HEADS": 16, "_CANDIDATES": 70, "_CONTEXT": 256, "_PREFILL_ROWS": 5},
    row_cases: {"_HEADS": 4, "_POOL_PAGES": 8},
    swap_cases: {"TOPK": 32, "HOT_SLOTS": 64, "_CONTEXT": 512, "_STEPS": 3},
    topk_cases: {"_TOPK": 32, "_KEPT": 4},
}

# what prepares each, of (peers, pinned pool)
SMALL: dict[str, Callable[[Any, Any], Prepared]] = {
    "index_logits": lambda peers, pool: logits_cases._prefill(peers, 256, 16),
    "index_logits, MISA": lambda peers, pool: logits_cases._prefill(peers, 256, 16, 8),
    "paged_index_logits": lambda peers, pool: logits_cases._paged(peers, 2, 256, 16),
    "refine_logits, prefill": lambda peers, pool: refine_cases._prefill(1024, 16),
    "refine_logits, decode": lambda peers, pool: refine_cases._decode(2, 16),
    "tail_share": lambda peers, pool: topk_cases._tail_share(3),
    "score_positions": lambda peers, pool: rerank_cases._score(5, 2),
    "pack_kv_rows": lambda peers, pool: row_cases._pack_kv(5),
    "unpack_kv_rows": lambda peers, pool: row_cases._unpack_kv(5),
    "pack_index_rows": lambda peers, pool: row_cases._pack_index(5),
    "unpack_index_rows": lambda peers, pool: row_cases._unpack_index(5),
    "write_index_rows": lambda peers, pool: row_cases._write_index(5),
    "read_index_rows": lambda peers, pool: row_cases._read_index(5),
    "quantize_index_q": lambda peers, pool: row_cases._quantize(5),
    "append_rows, anchor": lambda peers, pool: append_cases._append(pool, 3, is_anchor=True),
    "append_rows, shared": lambda peers, pool: append_cases._append(pool, 3, is_anchor=False),
    "lay_out_batch": lambda peers, pool: paged_cases._lay_out(3),
    "locate_rows": lambda peers, pool: paged_cases._locate(3),
    "append_index_rows, decode": lambda peers, pool: pooled_cases._append(2, 2),
    "append_index_rows, prefill": lambda peers, pool: pooled_cases._append(129, 1),
    "rebuild_pooled_keys": lambda peers, pool: pooled_cases._rebuild(128),
    "resum_open_blocks": lambda peers, pool: pooled_cases._resum(1),
    "route_heads": lambda peers, pool: pooled_cases._route(2, 2, 128 * 64),
    "topk": lambda peers, pool: topk_cases._topk(peers, 3, 256, "ReLU"),
    "block_topm": lambda peers, pool: topk_cases._block_topm(3, 64),
    "candidate_positions": lambda peers, pool: topk_cases._candidate_positions(3),
    "resolve + swap_in": lambda peers, pool: swap_cases.prepare_steps(peers, pool, 2, 5),
    "resolve + swap_in, all resident": lambda peers, pool: swap_cases.prepare_steps(
        peers, pool, 2, 0
    ),
    "resolve": lambda peers, pool: swap_cases._resolve(pool, 2, 5),
    "release_items": lambda peers, pool: swap_cases._release(pool),
    "swap_in": lambda peers, pool: copy_cases._swap_in(pool, 64),
    "swap_in_blocks": lambda peers, pool: copy_cases._swap_in_blocks(pool, 2, 2),
    "spill": lambda peers, pool: copy_cases._spill(pool, 70),
    "sparse_mla, prefill": lambda peers, pool: attention_cases._prefill(
        peers, 64, BF16_ROWS, "random"
    ),
    "sparse_mla, fp8": lambda peers, pool: attention_cases._prefill(
        peers, 16, FP8_ROWS, "overlapping"
    ),
    "sparse_mla, decode": lambda peers, pool: attention_cases.prepare_decode(
        peers, 2, 16, FP8_ROWS
    ),
    "sparse_mla, bf16 decode": lambda peers, pool: attention_cases.prepare_decode(
        peers, 2, 8, BF16_ROWS
    ),
}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the sizes for the time of one test; two sets of inputs for each case."""
    for module, sizes in _SIZES.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
        if hasattr(module, "num_sets"):
            monkeypatch.setattr(module, "num_sets", lambda bytes_each: 2)
