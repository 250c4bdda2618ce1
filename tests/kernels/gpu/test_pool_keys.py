import pytest
import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, PAGE_EDGES, paged_keys
from hisparse_kernels.gpu.pool_keys import (
    append_index_rows_triton,
    rebuild_pooled_keys_triton,
    resum_open_blocks_triton,
)
from hisparse_kernels.index_rows import read_index_rows_ref
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.pool_keys import (
    append_index_rows_ref,
    rebuild_pooled_keys_ref,
    resum_open_blocks_ref,
)
from tests.kernels.gpu.pooling import (
    State,
    append,
    rebuild,
    resum,
    rows_of,
    state_rows,
)

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
LENGTHS = (*PAGE_EDGES, 0)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


SPANS = [
    pytest.param([(1, 0, 1)], id="one_row"),
    pytest.param([(0, 63, 64), (2, 0, 1), (1, 70, 71)], id="decode_closing_one_block"),
    pytest.param([(0, 60, 70), (1, 64, 128), (2, 3, 5)], id="across_and_up_to_an_edge"),
    pytest.param([(1, 0, 130), (0, 20, 300)], id="many_blocks_of_an_open_start"),
    pytest.param([(2, 0, 192), (0, 64, 128)], id="whole_blocks_leave_nothing_open"),
    pytest.param([(0, 100, 129), (1, 127, 129), (2, 1, 200)], id="every_sequence_goes_on"),
]


@LAYOUTS
@pytest.mark.parametrize("bt", [64, 192])
@pytest.mark.parametrize("spans", SPANS)
def test_append_leaves_the_references_bytes(
    layout: IndexLayout, bt: int, spans: list[tuple[int, int, int]], device: str
) -> None:
    stored = paged_keys((300, 130, 200), layout, block_tokens=bt)
    expected = State.fresh(layout, 3, len(stored.index_pages))
    before = [(seq, 0, first) for seq, first, _ in spans if first]
    if before:
        append(append_index_rows_ref, expected, rows_of(stored, before, layout), bt, layout)
    rows, state = rows_of(stored, spans, layout, padding=3), expected.to(device)
    append(append_index_rows_ref, expected, rows, bt, layout)

    append(append_index_rows_triton, state, rows, bt, layout)

    state.assert_same(expected)


@LAYOUTS
@pytest.mark.parametrize("step", [7, 64, 65, 1000])
def test_append_has_the_bits_of_one_call_for_any_split(
    layout: IndexLayout, step: int, device: str
) -> None:
    lengths = LENGTHS if step > 7 else (70, 1, 64, 0)
    stored = paged_keys(lengths, layout)
    expected = State.fresh(layout, len(lengths), len(stored.index_pages))
    state = expected.to(device)
    whole = [(seq, 0, length) for seq, length in enumerate(lengths)]
    append(append_index_rows_ref, expected, rows_of(stored, whole, layout), 64, layout)

    for first in range(0, max(lengths), step):
        ends = [min(first + step, length) for length in lengths]
        spans = [(seq, first, end) for seq, end in enumerate(ends) if end > first]
        rows = rows_of(stored, spans[::-1], layout)
        append(append_index_rows_triton, state, rows, 64, layout)

    state.assert_same(expected)


def test_calls_of_no_rows_or_padding_alone_change_nothing(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((5,), layout)
    expected = State.fresh(layout, 1, len(stored.index_pages))
    state = expected.to(device)

    for padding in (0, 3):
        nothing = rows_of(stored, [(0, 0, 0)], layout, padding=padding)
        append(append_index_rows_triton, state, nothing, 64, layout)

    state.assert_same(expected)


def test_a_row_that_is_not_to_be_written_is_still_folded(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((66,), layout)
    expected = State.fresh(layout, 1, len(stored.index_pages))
    rows, state = rows_of(stored, [(0, 0, 66)], layout), expected.to(device)
    rows.row_ids[5:60] = -1
    append(append_index_rows_ref, expected, rows, 64, layout)

    append(append_index_rows_triton, state, rows, 64, layout)

    state.assert_same(expected)


@LAYOUTS
@pytest.mark.parametrize("bt", [64, 128, 192])
def test_rebuild_leaves_the_references_bytes(layout: IndexLayout, bt: int, device: str) -> None:
    stored = paged_keys(LENGTHS, layout, block_tokens=bt)
    expected = State.fresh(layout, len(LENGTHS), 1)
    state, lengths = expected.to(device), stored.lengths.clone()
    lengths[3] = -1  # left alone
    rebuild(rebuild_pooled_keys_ref, expected, stored, lengths, bt, layout)

    rebuild(rebuild_pooled_keys_triton, state, stored, lengths, bt, layout)

    state.assert_same(expected)


@pytest.mark.parametrize("kept", [0, 1, 63, 64, 65, 127, 128, 129, 192, 299])
def test_rollback_then_append_has_the_bits_of_never_having_gone_on(kept: int, device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((300,), layout)
    rejected = paged_keys((300,), layout, seed=9)
    straight = State.fresh(layout, 1, len(stored.index_pages))
    state = straight.to(device)
    append(append_index_rows_ref, straight, rows_of(stored, [(0, 0, 300)], layout), 64, layout)
    for held, span in ((stored, (0, 0, kept)), (rejected, (0, kept, 300))):
        append(append_index_rows_triton, state, rows_of(held, [span], layout), 64, layout)

    resum(resum_open_blocks_triton, state, stored, int32(kept), 64, layout)
    append(append_index_rows_triton, state, rows_of(stored, [(0, kept, 300)], layout), 64, layout)

    for actual, wanted in zip(state.tensors()[1:], straight.tensors()[1:], strict=True):
        assert_bits_equal(actual.cpu(), wanted)


@LAYOUTS
@pytest.mark.parametrize("bt", [64, 192])
def test_resum_leaves_the_references_bytes(layout: IndexLayout, bt: int, device: str) -> None:
    stored = paged_keys(LENGTHS, layout, block_tokens=bt)
    expected = State.fresh(layout, len(LENGTHS), 1)
    state, lengths = expected.to(device), (stored.lengths - 1).clamp(min=-1)
    for seq, length in enumerate(lengths.tolist()):  # rows of other blocks may not be read
        for page in range(max(length, 0) // bt * bt // 64):
            stored.index_pages[stored.page_table[seq, page]] = NAN_BYTE
    resum(resum_open_blocks_ref, expected, stored, lengths, bt, layout)

    resum(resum_open_blocks_triton, state, stored, lengths, bt, layout)

    state.assert_same(expected)


@pytest.mark.gpu
@LAYOUTS
@pytest.mark.parametrize("bt", [64, 128, 192])
def test_a_prefill_chunk_over_an_open_block_is_the_same_in_every_run(
    layout: IndexLayout, bt: int
) -> None:
    lengths = (4000, 3000, 1000)
    stored = paged_keys(lengths, layout, block_tokens=bt)
    started = State.fresh(layout, 3, len(stored.index_pages))
    first = rows_of(stored, [(0, 0, 33), (1, 0, bt - 1), (2, 0, bt)], layout)
    append(append_index_rows_ref, started, first, bt, layout)
    rest = rows_of(stored, [(0, 33, 4000), (1, bt - 1, 3000), (2, bt, 1000)], layout, padding=9)
    expected = started.to("cpu")
    append(append_index_rows_ref, expected, rest, bt, layout)

    for _ in range(20):
        state = started.to("cuda")
        append(append_index_rows_triton, state, rest, bt, layout)
        state.assert_same(expected)


@pytest.mark.gpu
@LAYOUTS
def test_rebuild_and_resum_of_long_sequences_are_the_same_in_every_run(
    layout: IndexLayout,
) -> None:
    stored = paged_keys((8000, 5000, 64), layout, block_tokens=128)
    expected = State.fresh(layout, 3, 1)
    rebuild(rebuild_pooled_keys_ref, expected, stored, stored.lengths, 128, layout)

    for _ in range(20):
        state = State.fresh(layout, 3, 1).to("cuda")
        rebuild(rebuild_pooled_keys_triton, state, stored, stored.lengths, 128, layout)
        state.assert_same(expected)
        state.open_sums[state_rows(3).cuda()] = torch.nan
        resum(resum_open_blocks_triton, state, stored, stored.lengths, 128, layout)
        state.assert_same(expected)


@pytest.mark.gpu
@LAYOUTS
def test_pages_past_two_to_the_31_bytes_are_summed(layout: IndexLayout) -> None:
    stored = paged_keys((64,), layout)
    num_pages = 2**31 // layout.page_bytes + 2
    pages = torch.empty(num_pages, layout.page_bytes, dtype=torch.uint8, device="cuda")
    pages[-1] = stored.index_pages[stored.page_table[0, 0]].cuda()
    expected, table = State.fresh(layout, 1, 1), int32(num_pages - 1)[None].cuda()
    rebuild(rebuild_pooled_keys_ref, expected, stored, stored.lengths, 64, layout)
    last = torch.tensor([num_pages - 2]) * 64
    sums = torch.full((3, 128), torch.nan, device="cuda")

    rebuild_pooled_keys_triton(
        pages,
        table,
        int32(64).cuda(),
        sums,
        state_rows(1).cuda(),
        pages,
        last.cuda(),
        64,
        layout,
    )

    assert_bits_equal(sums.cpu(), expected.open_sums)
    first = torch.tensor([0])
    held = read_index_rows_ref(pages[-2:-1].cpu(), first, layout)
    assert_bits_equal(held, read_index_rows_ref(expected.pooled_pages, first, layout))
