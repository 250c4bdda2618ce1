"""Copies between host and device alone: rows and index blocks in, rows out, beside one copy."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal
from benchmarks.ops.count import spill_work, swap_in_blocks_work, swap_in_work
from benchmarks.ops.hot_buffers import TOPK, host_pages, host_row_ids
from benchmarks.ops.inputs import FP8_ROWS, INDEX, positions
from benchmarks.ops.ours import triton_op
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan

_CONTEXT = 64 * 1024
_SETS = 4
_ROW_BYTES = FP8_ROWS.row_bytes
_BLOCK_TOKENS, _KEPT, _WINDOW_BLOCKS = 128, 64, 128
_PAGES_PER_BLOCK = _BLOCK_TOKENS // PAGE_TOKENS
_ONE_COPY = "one pinned copy"


def copy_cases(pool: PinnedPool) -> Iterator[Case]:
    for rows in (2048, 8192, 32768, 131072):
        yield Case(f"swap_in {rows} rows of {_ROW_BYTES} B", partial(_swap_in, pool, rows))
    for batch in (1, 8, 64):
        for misses in (8, _KEPT):
            name = f"swap_in_blocks batch {batch} x {misses} blocks of {_BLOCK_TOKENS}, L=64K"
            yield Case(name, partial(_swap_in_blocks, pool, batch, misses))
    for rows in (64, 2048, 131072):
        yield Case(f"spill {rows} rows of {_ROW_BYTES} B", partial(_spill, pool, rows))


def _swap_in(pool: PinnedPool, rows: int) -> Prepared:
    swap_in = triton_op("swap_in")
    host_rows, sequences = pool.rows(_ROW_BYTES), rows // TOPK
    table = host_pages(sequences, _CONTEXT // PAGE_TOKENS, len(host_rows) // PAGE_TOKENS)
    hot_rows = torch.zeros(rows, _ROW_BYTES, dtype=torch.uint8, device="cuda")
    plans = [_plan(sequences, TOPK, _CONTEXT, rows) for _ in range(_SETS)]

    def call(plan: MissPlan) -> None:
        swap_in(host_rows, table, plan, hot_rows)

    def check() -> None:
        call(plans[0])
        sources = host_row_ids(table).gather(1, plans[0].miss_item.long())
        targets = plans[0].miss_dst.flatten().long()
        check_equal("rows", hot_rows[targets], host_rows[sources.flatten()])

    ours = Contender(check, Timed([partial(call, plan) for plan in plans]))
    work = swap_in_work(rows, _ROW_BYTES)
    return Prepared(work, ours, {_ONE_COPY: _to_device(pool, hot_rows)})


def _swap_in_blocks(pool: PinnedPool, batch: int, misses: int) -> Prepared:
    swap_in_blocks = triton_op("swap_in_blocks")
    pages = pool.rows(INDEX.page_bytes)
    table = host_pages(batch, _CONTEXT // PAGE_TOKENS, len(pages))
    slots = batch * _WINDOW_BLOCKS
    window = torch.zeros(
        slots * _PAGES_PER_BLOCK, INDEX.page_bytes, dtype=torch.uint8, device="cuda"
    )
    plans = [_plan(batch, misses, _CONTEXT // _BLOCK_TOKENS, slots) for _ in range(_SETS)]

    def call(plan: MissPlan) -> None:
        swap_in_blocks(pages, table, plan, window, _BLOCK_TOKENS)

    def check() -> None:
        call(plans[0])
        part = torch.arange(_PAGES_PER_BLOCK, device=table.device)
        blocks, targets = (
            (ids.long()[:, :, None] * _PAGES_PER_BLOCK + part).flatten(1)
            for ids in (plans[0].miss_item, plans[0].miss_dst)
        )
        sources = table.gather(1, blocks).flatten().long()
        check_equal("pages", window[targets.flatten()], pages[sources])

    work = swap_in_blocks_work(batch * misses, _BLOCK_TOKENS)
    copied = window[: batch * misses * _PAGES_PER_BLOCK]
    ours = Contender(check, Timed([partial(call, plan) for plan in plans]))
    return Prepared(work, ours, {_ONE_COPY: _to_device(pool, copied)})


def _plan(sequences: int, misses: int, items: int, slots: int) -> MissPlan:
    """Every sequence misses so many of its items, for slots anywhere."""
    chosen = torch.randperm(slots, device="cuda")[: sequences * misses]
    counts = torch.full((sequences,), misses, dtype=torch.int32, device="cuda")
    missed = positions(sequences, misses, items)
    return MissPlan(missed, chosen.int().view(sequences, misses), counts, counts.clone())


def _spill(pool: PinnedPool, rows: int) -> Prepared:
    spill = triton_op("spill")
    host_rows = pool.rows(_ROW_BYTES)
    new = torch.randint(256, (rows, _ROW_BYTES), dtype=torch.uint8, device="cuda")
    targets = [torch.randperm(len(host_rows), device="cuda")[:rows] for _ in range(_SETS)]

    def call(row_ids: torch.Tensor) -> None:
        spill(new, row_ids, host_rows)

    def check() -> None:
        call(targets[0])
        check_equal("rows", host_rows[targets[0]], new)

    copied, source = pool.host[: new.numel()], new.flatten()
    one_copy = _copies(lambda: copied.copy_(source, non_blocking=True))
    ours = Contender(check, Timed([partial(call, row_ids) for row_ids in targets]))
    return Prepared(spill_work(rows, _ROW_BYTES), ours, {_ONE_COPY: one_copy})


def _to_device(pool: PinnedPool, like: torch.Tensor) -> Callable[[], Contender]:
    """As many bytes, adjacent on both sides."""
    source, target = pool.host[: like.numel()], like.flatten()
    return _copies(lambda: target.copy_(source, non_blocking=True))


def _copies(copy: Callable[[], object]) -> Callable[[], Contender]:
    return lambda: Contender(lambda: None, Timed([copy]))
