"""Pooled keys: fold in new rows, rebuild them, sum open blocks anew, and route heads by them."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal, check_mostly_equal
from benchmarks.ops.count import (
    INDEX_ROW_BYTES,
    append_work,
    rebuild_work,
    resum_work,
    route_work,
)
from benchmarks.ops.inputs import (
    INDEX,
    index_keys,
    index_pages,
    index_queries,
    num_sets,
    page_tables,
    sample_rows,
)
from benchmarks.ops.ours import triton_op
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS
from hisparse_kernels.pool_keys import (
    append_index_rows_ref,
    rebuild_pooled_keys_ref,
    resum_open_blocks_ref,
)
from hisparse_kernels.pool_pages import pool_full_pages_ref
from hisparse_kernels.route_heads import route_heads_ref, route_workspace_size

_BLOCK_TOKENS, _GROUP_BLOCKS = 128, 8
_HEADS, _ROUTED = 64, 8
_CONTEXT = 128 * 1024
_OPEN_TOKENS = 100  # of a block of 128
_LONG_ROWS = 4096
# rows, sequences, thousands of tokens
_ROUTES = ((1, 1, 8), (1, 1, 128), (1, 1, 1024), (64, 64, 128), (4096, 1, 64), (4096, 1, 128))
_NEAR_TIES = 0.05  # of the rows, whose last head may fall either way


def pooled_cases() -> Iterator[Case]:
    for rows, sequences in ((1, 1), (64, 64), (4096, 1)):
        name = f"append_index_rows {rows} rows of {sequences} sequences"
        yield Case(name, partial(_append, rows, sequences))
    yield Case(f"rebuild_pooled_keys L={_CONTEXT // 1024}K", partial(_rebuild, _CONTEXT))
    for sequences in (1, 64):
        name = f"resum_open_blocks {sequences} sequences, {_OPEN_TOKENS} tokens open"
        yield Case(name, partial(_resum, sequences))
    for pages in (1, 64):
        yield Case(f"pool_full_pages {pages} pages", partial(_pool_pages, pages))
    for rows, sequences, keys in _ROUTES:
        name = f"route_heads {rows} rows of {sequences} sequences, L={keys}K, {_HEADS} heads"
        yield Case(name, partial(_route, rows, sequences, keys * 1024))


class _PoolState:
    """What the pooling ops write: pages, open sums and pooled pages of some sequences."""

    def __init__(self, sequences: int, tokens_each: int) -> None:
        pages_each = -(-tokens_each // PAGE_TOKENS)
        pooled_pages = -(-tokens_each // (_BLOCK_TOKENS * PAGE_TOKENS))
        number = torch.arange(sequences, device="cuda")
        self.index_pages = index_pages(sequences * pages_each)
        self.open_sums = torch.zeros(sequences, INDEX_DIM, device="cuda")
        self.pooled_pages = torch.zeros(
            sequences * pooled_pages, INDEX.page_bytes, dtype=torch.uint8, device="cuda"
        )
        self.page_table = torch.arange(sequences * pages_each, dtype=torch.int32, device="cuda")
        self.page_table = self.page_table.view(sequences, pages_each)
        self.state_rows = number
        self.pooled_base = number * pooled_pages * PAGE_TOKENS

    def on_cpu(self) -> "_PoolState":
        """A copy in host memory."""
        other = object.__new__(_PoolState)
        other.__dict__ = {name: tensor.cpu().clone() for name, tensor in self.__dict__.items()}
        return other

    def check_equal(self, expected: "_PoolState") -> None:
        """Every byte."""
        for name, tensor in self.__dict__.items():
            check_equal(name, tensor.cpu(), getattr(expected, name))

    @property
    def open(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of the open blocks, and where each sequence's is."""
        return self.open_sums, self.state_rows

    @property
    def pooled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The pooled pages, and where each sequence's begin."""
        return self.pooled_pages, self.pooled_base


_Apply = Callable[..., object]
_Step = Callable[[_Apply, _PoolState], object]


def _contender(step: _Step, op: str, reference: _Apply, states: list[_PoolState]) -> Contender:
    """One step on each state; the first must equal the reference, which runs on the CPU.

    On a GPU torch divides by a number that is no tensor by multiplying, which rounds otherwise.
    """
    launch = triton_op(op)

    def check() -> None:
        expected = states[0].on_cpu()
        step(reference, expected)
        step(launch, states[0])
        states[0].check_equal(expected)

    return Contender(check, Timed([partial(step, launch, state) for state in states]))


def _states(work: Work, sequences: int, tokens_each: int) -> list[_PoolState]:
    return [_PoolState(sequences, tokens_each) for _ in range(num_sets(work.device_bytes))]


def _append(rows: int, sequences: int) -> Prepared:
    each = rows // sequences
    first = 0 if each > 1 else _OPEN_TOKENS  # a prompt begins, a decode step goes on
    tokens_each = -(-(first + each) // _BLOCK_TOKENS) * _BLOCK_TOKENS
    sequence = torch.arange(sequences, device="cuda").repeat_interleave(each)
    position = first + torch.arange(each, device="cuda").repeat(sequences)
    new = index_keys(rows), sequence * tokens_each + position
    place = sequence.int(), position.int()

    def step(append_index_rows: _Apply, state: _PoolState) -> None:
        device = state.index_pages.device
        keys, row_ids, row_seq, row_pos = (tensor.to(device) for tensor in (*new, *place))
        append_index_rows(
            keys,
            row_ids,
            state.index_pages,
            row_seq,
            row_pos,
            *state.open,
            *state.pooled,
            _BLOCK_TOKENS,
            INDEX,
        )

    work = append_work(rows, sequences, sequences * ((first + each) // _BLOCK_TOKENS))
    states = _states(work, sequences, tokens_each)
    return Prepared(work, _contender(step, "append_index_rows", append_index_rows_ref, states))


def _rebuild(tokens: int) -> Prepared:
    lengths = torch.tensor([tokens], dtype=torch.int32, device="cuda")

    def step(rebuild_pooled_keys: _Apply, state: _PoolState) -> None:
        where = state.page_table, lengths.to(state.page_table.device)
        rebuild_pooled_keys(
            state.index_pages, *where, *state.open, *state.pooled, _BLOCK_TOKENS, INDEX
        )

    work = rebuild_work(tokens, _BLOCK_TOKENS)
    states = _states(work, 1, tokens)
    return Prepared(work, _contender(step, "rebuild_pooled_keys", rebuild_pooled_keys_ref, states))


def _pool_pages(pages: int) -> Prepared:
    """All rows of so many pages have just been written."""
    row_ids = torch.arange(pages * PAGE_TOKENS, device="cuda")

    def step(pool_full_pages: _Apply, state: _PoolState) -> None:
        written = row_ids.to(state.index_pages.device)
        pool_full_pages(state.index_pages, written, state.pooled_pages, INDEX)

    work = rebuild_work(pages * PAGE_TOKENS, PAGE_TOKENS)
    states = _states(work, 1, pages * PAGE_TOKENS)
    for state in states:  # a pooled row for each page, not for each block
        state.pooled_pages = torch.cat([state.pooled_pages] * (_BLOCK_TOKENS // PAGE_TOKENS))
    return Prepared(work, _contender(step, "pool_full_pages", pool_full_pages_ref, states))


def _resum(sequences: int) -> Prepared:
    tokens = 8 * _BLOCK_TOKENS + _OPEN_TOKENS
    lengths = torch.full((sequences,), tokens, dtype=torch.int32, device="cuda")

    def step(resum_open_blocks: _Apply, state: _PoolState) -> None:
        where = state.page_table, lengths.to(state.page_table.device)
        resum_open_blocks(state.index_pages, *where, *state.open, _BLOCK_TOKENS, INDEX)

    work = resum_work(sequences, _OPEN_TOKENS)
    states = _states(work, sequences, tokens)
    return Prepared(work, _contender(step, "resum_open_blocks", resum_open_blocks_ref, states))


def _route(rows: int, sequences: int, context: int) -> Prepared:
    route_heads = triton_op("route_heads")
    blocks = context // _BLOCK_TOKENS
    sets = num_sets(sequences * blocks * INDEX_ROW_BYTES)
    pages_each = blocks // PAGE_TOKENS
    pooled_pages = index_pages(sets * sequences * pages_each)
    tables = page_tables(sets, sequences, pages_each)
    query, weights = index_queries(rows, _HEADS)
    row_seq = (torch.arange(rows, device="cuda") % sequences).int()
    complete = torch.full((rows,), blocks, dtype=torch.int32, device="cuda")
    routed = torch.empty(rows, _ROUTED, dtype=torch.int32, device="cuda")
    size = route_workspace_size(rows, _HEADS, pages_each, _GROUP_BLOCKS)
    workspace = torch.empty(size, device="cuda")

    def call(table: torch.Tensor) -> object:
        where = pooled_pages, table, row_seq, complete
        args = *where, _ROUTED, INDEX, _GROUP_BLOCKS, routed, workspace
        return route_heads(query, weights, *args)

    def check() -> None:
        call(tables[0])
        some = sample_rows(rows, 64)
        where = pooled_pages, tables[0], row_seq[some], complete[some]
        expected = route_heads_ref(query[some], weights[some], *where, _ROUTED, INDEX)
        check_mostly_equal("heads", routed[some], expected, _NEAR_TIES)

    work = route_work(rows, _HEADS, blocks, _GROUP_BLOCKS, sequences)
    calls = [partial(call, table) for table in tables]
    return Prepared(work, Contender(check, Timed(calls, long=rows >= _LONG_ROWS)))
