from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.append_rows import append_rows
from hisparse_kernels.index_rows import pack_index_rows, read_index_rows
from hisparse_kernels.kv_rows import pack_kv_rows
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, kv_layout
from hisparse_kernels.pool_keys import rebuild_pooled_keys
from tests.kernels.gpu.appending import TOKENS, Given, Spans, given

KV = kv_layout("fp8_ds_mla")
LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


def in_steps(last: Sequence[int], layout: IndexLayout, most: int) -> Given:
    """Sequences that have grown to these lengths, by 1 to `most` rows each in a step."""
    state, done, step = None, [0] * len(last), 0
    while done != list(last):
        ends = [
            min(end, first + 1 + (step + seq) % most)
            for seq, (first, end) in enumerate(zip(done, last, strict=True))
        ]
        spans = [(seq, a, b) for seq, (a, b) in enumerate(zip(done, ends, strict=True)) if b > a]
        call = given(Spans(spans, padding=step % 3), KV, layout, num_seqs=len(last), seed=step)
        if state is not None:  # the rows are new, what they are written to is not
            names = ("index_k", "index_q", "index_weights", "largest")
            rows = {name: getattr(call.index, name) for name in names}
            index = replace(state.index, **rows)
            call = replace(call, host_rows=state.host_rows, index=index)
        call.run(append_rows)
        state, done, step = call, ends, step + 1
    assert state is not None
    return state


@LAYOUTS
def test_sequences_that_grow_have_the_pooled_keys_of_their_rows(layout: IndexLayout) -> None:
    lengths = (129, 64, 70)
    state = in_steps(lengths, layout, 4)
    index, pages = state.index, TOKENS // 64
    table = torch.arange(3 * pages).int().view(3, pages)
    sums, pooled = torch.zeros_like(index.open_sums), torch.zeros_like(index.pooled_pages)
    where = sums, index.state_rows, pooled, index.pooled_base, index.block_tokens, layout

    rebuild_pooled_keys(index.host_pages, table, torch.tensor(lengths).int(), *where)

    assert_bits_equal(index.open_sums[index.state_rows], sums[index.state_rows])
    closed = [(seq, block) for seq, length in enumerate(lengths) for block in range(length // 64)]
    ids = torch.tensor([int(index.pooled_base[seq]) + block for seq, block in closed])
    wanted = read_index_rows(pooled, ids, layout)
    assert_bits_equal(read_index_rows(index.pooled_pages, ids, layout), wanted)
    host_pages = torch.tensor([seq * pages + block for seq, block in closed])  # of 64 tokens
    assert_bits_equal(index.host_pooled[host_pages], wanted)


@LAYOUTS
def test_each_row_lies_where_its_position_says(layout: IndexLayout) -> None:
    spans = Spans([(1, 62, 66), (0, 5, 6)], padding=2, elsewhere=(1,))
    call = given(spans, KV, layout)
    before, index = call.to("cpu"), call.index

    call.run(append_rows)

    packed, rows = pack_kv_rows(call.values[:5], KV), pack_index_rows(index.index_k[:5], layout)
    ids = torch.tensor([TOKENS + 62, TOKENS + 64, TOKENS + 65, 5])
    assert_bits_equal(call.packed[:5], packed)
    assert_bits_equal(call.packed[5:], before.packed[5:])
    assert_bits_equal(call.host_rows[ids], packed[[0, 2, 3, 4]])
    assert_bits_equal(read_index_rows(index.host_pages, ids, layout), rows[[0, 2, 3, 4]])
    changed = (call.host_rows != before.host_rows).any(1).nonzero()[:, 0]
    assert changed.tolist() == sorted(ids.tolist())
    slots = index.slot_table[
        index.window.table_base[[1, 1, 1, 1, 0]] + torch.tensor([0, 0, 1, 1, 0])
    ]
    slots = slots.long() + index.window.slot_base[[1, 1, 1, 1, 0]]
    window_ids = slots * 64 + torch.tensor([62, 63, 0, 1, 5])
    assert_bits_equal(read_index_rows(index.window_pages, window_ids, layout), rows)


def test_rows_of_a_layer_without_an_index_side_are_kv_rows_alone() -> None:
    call = replace(given(Spans([(0, 63, 64)]), KV, INDEX_LAYOUTS["fp8"]), bare=True)
    before = call.to("cpu")

    call.run(append_rows)

    assert_bits_equal(call.host_rows[63:64], pack_kv_rows(call.values, KV))
    for name, tensor in vars(call.index).items():
        if isinstance(tensor, torch.Tensor):
            assert_bits_equal(tensor, getattr(before.index, name))
