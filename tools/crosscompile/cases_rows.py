"""Cases of the ops that make rows and move them."""

from functools import partial
from itertools import product

import torch

from hisparse_kernels.append_rows import IndexSide, StepRows
from hisparse_kernels.gpu.append_rows import append_rows_triton
from hisparse_kernels.gpu.index_rows import (
    pack_index_rows_triton,
    quantize_index_q_triton,
    read_index_rows_triton,
    unpack_index_rows_triton,
    write_index_rows_triton,
)
from hisparse_kernels.gpu.kv_rows import pack_kv_rows_triton, unpack_kv_rows_triton
from hisparse_kernels.gpu.pool_keys import (
    append_index_rows_triton,
    rebuild_pooled_keys_triton,
    resum_open_blocks_triton,
)
from hisparse_kernels.gpu.pool_pages import pool_full_pages_triton
from hisparse_kernels.gpu.spill import spill_triton
from hisparse_kernels.gpu.swap_in import swap_in_blocks_triton, swap_in_triton
from hisparse_kernels.layouts import (
    INDEX_LAYOUTS,
    KV_LAYOUTS,
    PAGE_TOKENS,
    IndexLayout,
    KvLayout,
)
from hisparse_kernels.resolve import MissPlan, SlotRanges
from hisparse_kernels.spill import HotPlaces
from hisparse_kernels.swap_in import FreshRows
from tools.crosscompile.case import Case, Expects
from tools.crosscompile.tensors import (
    BLOCK_TOKENS,
    CONTEXT_TOKENS,
    HOST_TOKENS,
    HOT_SLOTS,
    NUM_SEQS,
    ROWS,
    fp32,
    index_pages,
    index_rows,
    int32,
    int64,
    kv_rows,
    page_table,
    pairs,
)

_FLOATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
_SEQS = (1, 3, NUM_SEQS)


def cases() -> list[Case]:
    """Each op with each layout."""
    return [*_kv_cases(), *_index_cases(), *_query_cases(), *_append_cases()]


def _kv_cases() -> list[Case]:
    found = [
        Case(f"pack_kv_rows, {name}", partial(_pack_kv, layout, dtype))
        for name, layout, dtype in pairs(KV_LAYOUTS, _FLOATS)
    ]
    for name, layout in KV_LAYOUTS.items():
        found += [
            Case(f"unpack_kv_rows, {name}", partial(_unpack_kv, layout)),
            Case(
                f"swap_in, {name}", partial(_swap_in, layout), Expects(wide=("host_ptr", "hot_ptr"))
            ),
            Case(
                f"swap_in, {name}, fresh rows",
                partial(_swap_in_fresh, layout),
                Expects(wide=("host_ptr", "fresh_ptr", "hot_ptr")),
            ),
            Case(f"spill, {name}", partial(_spill, layout), Expects(wide=("rows_ptr", "host_ptr"))),
        ]
    return found


def _index_cases() -> list[Case]:
    found = [
        Case(f"pack_index_rows, {name}", partial(_pack_index, layout, dtype))
        for name, layout, dtype in pairs(INDEX_LAYOUTS, _FLOATS)
    ]
    blocks = Expects(wide=("host_ptr", "window_ptr"))
    for name, layout in INDEX_LAYOUTS.items():
        found += [
            Case(f"unpack_index_rows, {name}", partial(_unpack_index, layout)),
            Case(f"write_index_rows, {name}", partial(_write_index, layout)),
            Case(f"read_index_rows, {name}", partial(_read_index, layout)),
            Case(f"append_index_rows, {name}", partial(_append, layout)),
            Case(f"rebuild_pooled_keys, {name}", partial(_rebuild, layout)),
            Case(f"resum_open_blocks, {name}", partial(_resum, layout)),
            Case(f"pool_full_pages, {name}", partial(_pool_full_pages, layout)),
            Case(f"swap_in_blocks, {name}", partial(_swap_in_blocks, layout), blocks),
        ]
    return found


def _query_cases() -> list[Case]:
    return [
        Case(f"quantize_index_q, {heads} heads", partial(_quantize_q, heads, dtype))
        for heads, dtype in ((4, torch.float32), (8, torch.float32), (32, torch.bfloat16))
    ] + [Case("quantize_index_q, 64 heads", partial(_quantize_q, 64, torch.bfloat16))]


def _append_cases() -> list[Case]:
    """Whole rows of a decode step, of both kinds of layers; slots with both kinds of tables."""
    production = partial(_append_rows, KV_LAYOUTS["fp8_ds_mla"], INDEX_LAYOUTS["fp8"])
    oracle = partial(_append_rows, KV_LAYOUTS["fp32"], INDEX_LAYOUTS["fp32"])
    queries = {"bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
    return [
        *(
            Case(f"append_rows, fp8_ds_mla, {name} queries", partial(production, 64, dtype))
            for name, dtype in queries.items()
        ),
        Case("append_rows, fp32, fp32 queries", partial(oracle, 8, torch.float32)),
        Case("append_rows, fp8, given positions", partial(production, 0, torch.bfloat16)),
        *(
            Case(f"append_rows, {name}, shared layer", partial(_append_kv_rows, layout))
            for name, layout in KV_LAYOUTS.items()
        ),
    ]


def _pack_kv(layout: KvLayout, dtype: torch.dtype) -> None:
    for rows in ROWS:
        values = torch.empty(rows, layout.query_dim, dtype=dtype)
        pack_kv_rows_triton(values, layout, out=kv_rows(rows, layout))


def _unpack_kv(layout: KvLayout) -> None:
    for rows in ROWS:
        unpack_kv_rows_triton(kv_rows(rows, layout), layout, out=fp32(rows, layout.query_dim))


def _swap_in(layout: KvLayout) -> None:
    host = kv_rows(HOST_TOKENS, layout)
    for seqs in _SEQS:
        hot = kv_rows(seqs * HOT_SLOTS, layout)
        swap_in_triton(host, page_table(seqs), miss_plan(seqs, HOT_SLOTS), hot)


def _swap_in_fresh(layout: KvLayout) -> None:
    host = kv_rows(HOST_TOKENS, layout)
    for seqs, num_missed in product(_SEQS, (int32, None)):
        counts = None if num_missed is None else num_missed(seqs)
        fresh = FreshRows(kv_rows(4 * seqs, layout), int32(seqs), int32(seqs), counts)
        hot = kv_rows(seqs * HOT_SLOTS, layout)
        swap_in_triton(host, page_table(seqs), miss_plan(seqs, HOT_SLOTS), hot, fresh)
    swap_in_triton(host, page_table(seqs), miss_plan(seqs, HOT_SLOTS), hot, fresh, 32)


def _spill(layout: KvLayout) -> None:
    host = kv_rows(HOST_TOKENS, layout)
    for rows in ROWS:
        spill_triton(kv_rows(rows, layout), int64(rows), host)
        table = torch.empty(1 << 20, dtype=torch.int16)
        for target, num_placed in product((host, None), (int32(rows), None)):
            where = int32(rows), table, int64(rows), int64(rows), num_placed
            spill_triton(kv_rows(rows, layout), int64(rows), target, HotPlaces(host, *where))


def _swap_in_blocks(layout: IndexLayout) -> None:
    host = index_pages(HOST_TOKENS, layout)
    for seqs in _SEQS:
        window = index_pages(seqs * 128 * BLOCK_TOKENS, layout)
        plan = miss_plan(seqs, 128)
        swap_in_blocks_triton(host, page_table(seqs), plan, window, BLOCK_TOKENS)


def _pack_index(layout: IndexLayout, dtype: torch.dtype) -> None:
    for rows in ROWS:
        keys = torch.empty(rows, layout.head_dim, dtype=dtype)
        pack_index_rows_triton(keys, layout, out=index_rows(rows, layout))


def _unpack_index(layout: IndexLayout) -> None:
    for rows in ROWS:
        unpack_index_rows_triton(index_rows(rows, layout), layout, out=fp32(rows, layout.head_dim))


def _write_index(layout: IndexLayout) -> None:
    pages = index_pages(HOST_TOKENS * 4, layout)
    for rows in ROWS:
        write_index_rows_triton(pages, int64(rows), index_rows(rows, layout), layout)


def _read_index(layout: IndexLayout) -> None:
    pages = index_pages(HOST_TOKENS * 4, layout)
    for rows in ROWS:
        read_index_rows_triton(pages, int64(rows), layout, out=index_rows(rows, layout))


def _append(layout: IndexLayout) -> None:
    pages, pooled = index_pages(HOST_TOKENS, layout), index_pages(HOST_TOKENS, layout)
    for rows, seqs in ((1, 1), (3, 3), (128, NUM_SEQS), (4096, 1), (4096, 3)):
        append_index_rows_triton(
            index_rows(rows, layout),
            int64(rows),
            pages,
            int32(rows),
            int32(rows),
            fp32(NUM_SEQS, layout.head_dim),
            int64(seqs),
            pooled,
            int64(seqs),
            BLOCK_TOKENS,
            layout,
        )


def _append_kv_rows(layout: KvLayout) -> None:
    host = kv_rows(HOST_TOKENS, layout)
    for rows in (1, 3, 128):
        values = torch.empty(rows, layout.query_dim, dtype=torch.bfloat16)
        append_rows_triton(values, layout, _step_rows(rows), host, kv_rows(rows, layout))


def _append_rows(
    layout: KvLayout, index_layout: IndexLayout, heads: int, dtype: torch.dtype
) -> None:
    host, pages = kv_rows(HOST_TOKENS, layout), index_pages(HOST_TOKENS, index_layout)
    tables = {torch.int16: torch.empty(CONTEXT_TOKENS // BLOCK_TOKENS, dtype=torch.int16)}
    tables[torch.int32] = int32(CONTEXT_TOKENS // BLOCK_TOKENS)
    for rows, table in product((1, 3, 128), tables.values()):
        index = IndexSide(
            index_k=torch.empty(rows, index_layout.head_dim, dtype=torch.bfloat16),
            index_q=torch.empty(rows, heads, index_layout.head_dim, dtype=dtype) if heads else None,
            index_weights=fp32(rows, heads) if heads else None,
            largest=fp32(3, rows),
            window_pages=pages,
            slot_table=table,
            window=SlotRanges(int64(NUM_SEQS), int64(NUM_SEQS), int64(NUM_SEQS)),
            host_pages=pages,
            host_pooled=index_rows(HOST_TOKENS // PAGE_TOKENS, index_layout),
            open_sums=fp32(NUM_SEQS, index_layout.head_dim),
            state_rows=int64(NUM_SEQS),
            pooled_pages=pages,
            pooled_base=int64(NUM_SEQS),
            block_tokens=BLOCK_TOKENS,
            layout=index_layout,
        )
        values = torch.empty(rows, layout.query_dim, dtype=torch.bfloat16)
        append_rows_triton(values, layout, _step_rows(rows), host, kv_rows(rows, layout), index)


def _step_rows(rows: int) -> StepRows:
    return StepRows(int32(rows), int32(rows), int64(rows))


def _rebuild(layout: IndexLayout) -> None:
    pages, pooled = index_pages(HOST_TOKENS, layout), index_pages(HOST_TOKENS, layout)
    for seqs in _SEQS:
        rebuild_pooled_keys_triton(
            pages,
            page_table(seqs),
            int32(seqs),
            fp32(NUM_SEQS, layout.head_dim),
            int64(seqs),
            pooled,
            int64(seqs),
            BLOCK_TOKENS,
            layout,
        )


def _resum(layout: IndexLayout) -> None:
    pages = index_pages(HOST_TOKENS, layout)
    for seqs in _SEQS:
        sums = fp32(NUM_SEQS, layout.head_dim)
        resum_open_blocks_triton(
            pages, page_table(seqs), int32(seqs), sums, int64(seqs), BLOCK_TOKENS, layout
        )


def _pool_full_pages(layout: IndexLayout) -> None:
    pages, pooled = index_pages(HOST_TOKENS, layout), index_pages(HOST_TOKENS, layout)
    for rows in ROWS:
        for row_ids in (int64(rows), int32(rows)):
            pool_full_pages_triton(pages, row_ids, pooled, layout)


def _quantize_q(heads: int, dtype: torch.dtype) -> None:
    for rows in ROWS:
        out = torch.empty(rows, heads, 128, dtype=torch.float8_e4m3fn), fp32(rows, heads)
        query = torch.empty(rows, heads, 128, dtype=dtype)
        quantize_index_q_triton(query, fp32(rows, heads), out=out)


def miss_plan(num_seqs: int, cap: int) -> MissPlan:
    """An empty plan."""
    return MissPlan(int32(num_seqs, cap), int32(num_seqs, cap), int32(num_seqs), int32(num_seqs))
