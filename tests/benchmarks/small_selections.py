"""Every kind of case of the suite `select` at sizes for Triton's interpreter."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from benchmarks.ops.case import Prepared
from benchmarks.select import (
    decode_cases,
    hisa,
    missing_cases,
    part_cases,
    prefill_cases,
    real_cases,
    real_rows,
)
from benchmarks.select.decode_cases import Decode
from benchmarks.select.real_rows import RealRows

TOPK, KEPT, HEADS = 64, 4, 16
_SIZES: dict[ModuleType, dict[str, int]] = {
    decode_cases: {"TOPK": TOPK, "KEPT": KEPT},
    hisa: {"TOPK": TOPK, "KEPT": KEPT},
    missing_cases: {"TOPK": TOPK},
    part_cases: {"TOPK": TOPK, "KEPT": KEPT, "HEADS": HEADS, "PREFILL_ROWS": 3},
    prefill_cases: {"TOPK": TOPK, "KEPT": KEPT, "HEADS": HEADS},
    real_cases: {
        "TOPK": TOPK,
        "KEPT": KEPT,
        "TOKENS": 1024,
        "PREFILL_ROWS": 3,
        "_FEW_KEPT": 3,
        "_FEW": 32,
    },
    real_rows: {"TOKENS": 1024, "PROMPTS": 1},
}


def _decode(batch: int, keys: int, **other: Any) -> Decode:
    return Decode(batch, keys, heads=HEADS, **other)


# what prepares each, of (peers, pinned pool, real rows)
SMALL: dict[str, Callable[[Any, Any, RealRows], Prepared]] = {
    "decode": lambda peers, pool, real: decode_cases._resident(peers, _decode(2, 1)),
    "decode, ReLU-skewed": lambda peers, pool, real: decode_cases._resident(
        peers, _decode(1, 1, kind="ReLU-skewed")
    ),
    "decode, next_n": lambda peers, pool, real: decode_cases._resident(
        peers, _decode(2, 1, next_n=2)
    ),
    "decode, flat": lambda peers, pool, real: decode_cases._flat(peers, _decode(2, 1)),
    "decode, fetched": lambda peers, pool, real: missing_cases._missing(
        pool, _decode(2, 1), 1, missing_cases._fetch
    ),
    "decode, in place": lambda peers, pool, real: missing_cases._missing(
        pool, _decode(2, 1), 1, missing_cases._in_place
    ),
    "decode, real": lambda peers, pool, real: real_cases._decode(peers, real, TOPK, KEPT),
    "prefill": lambda peers, pool, real: prefill_cases._prefill(peers, "normal", 5, 1024),
    "prefill, fewer blocks than it may keep": lambda peers, pool, real: prefill_cases._prefill(
        peers, "normal", 3, 384
    ),
    "select_blocks, decode": lambda peers, pool, real: part_cases._decode_blocks(_decode(2, 1)),
    "select_tokens, decode": lambda peers, pool, real: part_cases._decode_tokens(_decode(2, 1)),
    "select_blocks, prefill": lambda peers, pool, real: part_cases._prefill_blocks(1024),
    "select_tokens, prefill": lambda peers, pool, real: part_cases._prefill_tokens(1024),
    "prefill, real": lambda peers, pool, real: real_cases._prefill(peers, real),
}
NO_PEER = ("decode, fetched", "decode, in place")  # but an aim
PEERED = [name for name in SMALL if name not in NO_PEER and not name.startswith("select_")]


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the sizes for the time of one test; two sets of inputs for each case."""
    for module, sizes in _SIZES.items():
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)
        if hasattr(module, "num_sets"):
            monkeypatch.setattr(module, "num_sets", lambda bytes_each: 2)
