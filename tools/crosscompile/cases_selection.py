"""Cases of the ops that score keys and choose."""

from functools import partial

import torch

from hisparse_kernels.gpu.block_topm import block_topm_triton
from hisparse_kernels.gpu.index_logits import index_logits_triton, paged_index_logits_triton
from hisparse_kernels.gpu.locate_rows import locate_rows_triton
from hisparse_kernels.gpu.look_up_blocks import look_up_blocks_triton
from hisparse_kernels.gpu.paged_batch import lay_out_batch_triton
from hisparse_kernels.gpu.prefix_positions import prefix_positions_triton
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.gpu.route_heads import route_heads_triton
from hisparse_kernels.gpu.score_positions import score_positions_triton
from hisparse_kernels.gpu.select_blocks import select_blocks_triton
from hisparse_kernels.gpu.select_tokens import select_tokens_triton
from hisparse_kernels.gpu.tail_share import tail_share_triton
from hisparse_kernels.gpu.topk import candidate_positions_triton, topk_triton
from hisparse_kernels.index_logits import SlotPages
from hisparse_kernels.layouts import INDEX_LAYOUTS, PAGE_TOKENS, IndexLayout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_kernels.pooled_rows import PooledRows
from hisparse_kernels.refine_logits import HostBlocks
from hisparse_kernels.select_blocks import BlockScratch
from hisparse_kernels.window_slots import WindowSlots
from tools.crosscompile.case import Case, Expects
from tools.crosscompile.tensors import (
    BLOCK_TOKENS,
    HOST_TOKENS,
    MAX_PAGES,
    NUM_SEQS,
    ROWS,
    fp32,
    index_pages,
    index_rows,
    int32,
    page_table,
)

_E4M3 = torch.float8_e4m3fn
_SCORED_ROWS = (1, 128, 4096)
_MAX_LOGITS = 1 << 28  # bytes of one call's logits
_MAX_KEYS = HOST_TOKENS * 4  # 2.2 GB of fp8 rows: past 2**31 bytes
_FP8, _FP32 = INDEX_LAYOUTS["fp8"], INDEX_LAYOUTS["fp32"]
_MATRIX = Expects(matrix_unit=True)

# heads, dtype of the queries, layout, what must hold; fp32 products stay in fp32
_SCORERS = [
    (64, _E4M3, _FP8, _MATRIX),
    (32, _E4M3, _FP8, _MATRIX),
    (8, _E4M3, _FP8, _MATRIX),
    (64, torch.bfloat16, _FP8, _MATRIX),
    (32, torch.bfloat16, _FP8, _MATRIX),
    (64, torch.float32, _FP8, Expects()),
    (4, torch.float32, _FP32, Expects()),
    (8, torch.float32, _FP32, Expects()),
]


def cases() -> list[Case]:
    """The scoring ops with each kind of key and query, and top-k of each size."""
    found = []
    for heads, dtype, layout, expects in _SCORERS:
        name = f"{layout.name}, {str(dtype).removeprefix('torch.')} x {heads} heads"
        for op, call in (
            ("index_logits", _score_packed),
            ("paged_index_logits", _score_pages),
            ("refine_logits", _refine),
            ("score_positions", _score_positions),
            ("select_blocks", _select_blocks),
            ("select_tokens", _select_tokens),
        ):
            found.append(Case(f"{op}, {name}", partial(call, heads, dtype, layout), expects))
        found.append(Case(f"route_heads, {name}", partial(_route, heads, dtype, layout)))
    return (
        found
        + [
            Case(
                f"refine_logits from the host, {heads} heads",
                partial(_refine, heads, _E4M3, _FP8, with_host=True),
                Expects(matrix_unit=True, mostly_wide=("host_codes_ptr",)),
            )
            for heads in (32, 64)
        ]
        + [
            Case(
                f"select_tokens from the host, {heads} heads",
                partial(_select_tokens, heads, _E4M3, _FP8, with_host=True),
                Expects(matrix_unit=True, mostly_wide=("host_codes_ptr",)),
            )
            for heads in (32, 64)
        ]
        + [
            Case(f"{op} by row, {heads} heads", partial(call, heads, _E4M3, _FP8, by_row=True), how)
            for heads in (32, 64)
            for op, call, how in (
                ("select_blocks", _select_blocks, _MATRIX),
                ("route_heads", _route, Expects()),
            )
        ]
        + [
            Case(f"{op}, {picked} of 64 heads", partial(call, 64, _E4M3, _FP8, picked), _MATRIX)
            for picked in (8, 16, 32)
            for op, call in (("index_logits", _score_packed), ("paged_index_logits", _score_pages))
        ]
        + [Case(f"topk, k {k}", partial(_topk, k)) for k in (64, 512, 2048, 8192)]
        + [
            Case("block_topm", _block_topm),
            Case("candidate_positions", _candidates),
            Case("look_up_blocks", _look_up_blocks),
            Case("paged_batch", _paged_batch),
            Case("prefix_positions", _prefix_positions),
            Case("tail_share", _tail_share),
        ]
    )


def _queries(rows: int, heads: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(rows, heads, 128, dtype=dtype), fp32(rows, heads)


def _score_packed(
    heads: int, dtype: torch.dtype, layout: IndexLayout, picked: int | None = None
) -> None:
    for rows in _SCORED_ROWS:
        keys = min(_MAX_LOGITS // 4 // rows, _MAX_KEYS)
        index_logits_triton(
            *_queries(rows, heads, dtype),
            index_rows(keys, layout),
            int32(rows),
            int32(rows),
            layout,
            out=fp32(rows, keys),
            heads=None if picked is None else int32(rows, picked),
        )


def _score_pages(
    heads: int, dtype: torch.dtype, layout: IndexLayout, picked: int | None = None
) -> None:
    for rows in _SCORED_ROWS:
        pages = min(_MAX_LOGITS // 4 // rows // PAGE_TOKENS, MAX_PAGES)
        paged_index_logits_triton(
            *_queries(rows, heads, dtype),
            index_pages(HOST_TOKENS * 4, layout),
            int32(min(rows, NUM_SEQS), pages),
            int32(rows),
            int32(rows),
            layout,
            out=fp32(rows, pages * PAGE_TOKENS),
            heads=None if picked is None else int32(rows, picked),
        )
    if picked is None:
        _score_window(heads, dtype, layout)


def _score_window(heads: int, dtype: torch.dtype, layout: IndexLayout) -> None:
    """Pages by the slots of a window, for blocks of 64 and of 128 tokens."""
    for per_block, entries in ((1, torch.int32), (2, torch.int16)):
        base = torch.empty(1, dtype=torch.int64)
        pages = SlotPages(torch.empty(4096, dtype=entries), base, base, 1024, per_block)
        paged_index_logits_triton(
            *_queries(1, heads, dtype),
            index_pages(HOST_TOKENS * 4, layout),
            pages,
            int32(1),
            int32(1),
            layout,
            out=fp32(1, pages.max_pages * PAGE_TOKENS),
        )


def _score_positions(heads: int, dtype: torch.dtype, layout: IndexLayout) -> None:
    for rows in _SCORED_ROWS:
        score_positions_triton(
            *_queries(rows, heads, dtype),
            index_pages(HOST_TOKENS * 4, layout),
            page_table(),
            int32(rows),
            int32(rows, 8192),
            layout,
            out=fp32(rows, 8192),
        )


def _refine(
    heads: int, dtype: torch.dtype, layout: IndexLayout, *, with_host: bool = False
) -> None:
    for rows in _SCORED_ROWS:
        for kept in (64, 128):
            refine_logits_triton(
                *_queries(rows, heads, dtype),
                index_pages(HOST_TOKENS * 4, layout),
                int32(rows, kept),
                int32(rows, kept),
                int32(rows),
                BLOCK_TOKENS,
                layout,
                fp32(rows, kept * BLOCK_TOKENS),
                _host(rows, layout) if with_host else None,
            )


def _select_blocks(
    heads: int, dtype: torch.dtype, layout: IndexLayout, *, by_row: bool = False
) -> None:
    for rows in _SCORED_ROWS:
        for pages in (16, MAX_PAGES // 128):
            seqs = min(rows, NUM_SEQS)
            scratch = BlockScratch(fp32(rows, pages * PAGE_TOKENS), int32(rows))
            select_blocks_triton(
                *_queries(rows, heads, dtype),
                index_pages(HOST_TOKENS, layout),
                PooledRows(int32(seqs, pages * PAGE_TOKENS)) if by_row else int32(seqs, pages),
                int32(rows),
                int32(rows),
                64,
                layout,
                scratch,
                int32(rows, 64),
                _window_slots(rows) if rows > 1 else None,
            )


def _select_tokens(
    heads: int, dtype: torch.dtype, layout: IndexLayout, *, with_host: bool = False
) -> None:
    for rows in _SCORED_ROWS:
        for kept in (64, 128):
            select_tokens_triton(
                *_queries(rows, heads, dtype),
                index_pages(HOST_TOKENS * 4, layout),
                int32(rows, kept),
                int32(rows, kept),
                int32(rows),
                BLOCK_TOKENS,
                2048,
                layout,
                fp32(rows, kept * BLOCK_TOKENS),
                int32(rows, 2048),
                _host(rows, layout) if with_host else None,
            )


def _window_slots(rows: int) -> WindowSlots:
    table = torch.empty(HOST_TOKENS // BLOCK_TOKENS, dtype=torch.int16)
    base = torch.empty(NUM_SEQS, dtype=torch.int64)
    return WindowSlots(table, base, base.clone(), int32(rows, 64))


def _host(rows: int, layout: IndexLayout) -> HostBlocks:
    return HostBlocks(index_pages(HOST_TOKENS * 4, layout), page_table(), int32(rows))


def _route(heads: int, dtype: torch.dtype, layout: IndexLayout, *, by_row: bool = False) -> None:
    num_routed, pages = min(heads, 8), MAX_PAGES // 64
    for rows in _SCORED_ROWS:
        table = page_table(NUM_SEQS)[:, :pages].contiguous()
        route_heads_triton(
            *_queries(rows, heads, dtype),
            index_pages(HOST_TOKENS, layout),
            PooledRows(int32(NUM_SEQS, pages * PAGE_TOKENS)) if by_row else table,
            int32(rows),
            int32(rows),
            num_routed,
            layout,
            out=int32(rows, num_routed),
        )


def _topk(k: int) -> None:
    for rows in ROWS:
        for columns in (8192, 16384, 65536, 1 << 20):
            if rows * columns * 4 <= 4 * _MAX_LOGITS:
                topk_triton(fp32(rows, columns), k, out=int32(rows, k))


def _block_topm() -> None:
    for rows in ROWS:
        for kept, blocks in ((64, 1024), (64, 8192), (128, 8192)):
            block_topm_triton(fp32(rows, blocks), int32(rows), kept, out=int32(rows, kept))


def _candidates() -> None:
    for rows in ROWS:
        columns, blocks = int32(rows, 2048), int32(rows, 64)
        candidate_positions_triton(columns, blocks, BLOCK_TOKENS, out=int32(rows, 2048))


def _look_up_blocks() -> None:
    for rows in ROWS:
        for dtype in (torch.int16, torch.int32):
            table, base = torch.empty(8192, dtype=dtype), torch.empty(rows, dtype=torch.int64)
            slots = WindowSlots(table, base, base, int32(rows, 64))
            look_up_blocks_triton(int32(rows, 64), int32(rows), slots)


def _paged_batch() -> None:
    for rows in ROWS:
        lists, lens, entries = int32(rows + 1), int32(rows), int32(rows * 64)
        for causal in (True, False):
            packed = PagedBatch(lists, lens, entries, lists, PAGE_TOKENS, causal)
            dense = PagedBatch(lists, lens, entries.view(rows, 64), None, 1, causal)
            for batch in (packed, dense):
                table = None if batch is dense else int32(rows, 64)
                lay_out_batch_triton(batch, 4096, int32(rows), int32(rows), table)
                for counts in (None, int32(rows)):
                    positions = int32(rows, 2048), batch, 4096, PAGE_TOKENS, counts
                    locate_rows_triton(*positions, out=int32(rows, 2048))


def _prefix_positions() -> None:
    for rows in ROWS:
        prefix_positions_triton(int32(rows), 2048, out=int32(rows, 2048))


def _tail_share() -> None:
    for rows in ROWS:
        for kept, blocks in ((64, 1024), (512, 8192)):
            lists = int32(rows, 2048), int32(rows, kept), fp32(rows, blocks), int32(rows)
            out = fp32(rows), torch.empty(rows, dtype=torch.bool)
            tail_share_triton(*lists, BLOCK_TOKENS, 0.05, out=out)
