from dataclasses import replace

import pytest
import torch

from accuracy import assert_bits_equal, assert_near
from cases import PagedKeys, naive_scores, paged_keys, queries
from hisparse_kernels.index_logits import paged_index_logits
from hisparse_kernels.layouts import INDEX_LAYOUTS, PAGE_TOKENS, IndexLayout, index_layout
from hisparse_kernels.refine_logits import HostBlocks, refine_logits

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
LENGTHS = (1, 63, 64, 65, 300, 640)
UNTOUCHED = 12345.0


def block_slots_of(
    stored: PagedKeys, row_seq: list[int], ids: torch.Tensor, bt: int
) -> torch.Tensor:
    """Slot of every block id: its first page over the pages of a block; -1 where there is none."""
    ppb = bt // PAGE_TOKENS
    slots = torch.full_like(ids, -1)
    for row, seq in enumerate(row_seq):
        pages = stored.page_table[seq, ids[row].clamp(min=0).long() * ppb]
        slots[row] = torch.where(ids[row] < 0, -1, pages // ppb)
    return slots


def refined(
    stored: PagedKeys,
    index_q: torch.Tensor,
    weights: torch.Tensor,
    slots: torch.Tensor,
    ids: torch.Tensor,
    row_pos: torch.Tensor,
    block_tokens: int,
    layout: IndexLayout,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    out = torch.full((len(ids), ids.shape[1] * block_tokens), UNTOUCHED)
    returned = refine_logits(
        index_q, weights, stored.index_pages, slots, ids, row_pos, block_tokens, layout, out, host
    )
    assert returned.data_ptr() == out.data_ptr()
    return out


def all_blocks(stored: PagedKeys, row_seq: list[int], bt: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Every block of each row's sequence: slots and ids, -1 beyond the sequence's end."""
    num_blocks = -(-stored.lengths[row_seq] // bt)
    ids = torch.arange(int(num_blocks.max())).int().repeat(len(row_seq), 1)
    ids = ids.masked_fill(ids >= num_blocks[:, None], -1)
    return block_slots_of(stored, row_seq, ids, bt), ids


@LAYOUTS
@pytest.mark.parametrize(("block_tokens", "heads"), [(64, 32), (128, 1), (128, 64), (192, 5)])
def test_all_blocks_refine_to_the_flat_logits_bit_for_bit(
    layout: IndexLayout, block_tokens: int, heads: int
) -> None:
    stored = paged_keys(LENGTHS, layout, block_tokens=block_tokens)
    row_seq = [0, 1, 2, 3, 4, 4, 5, 5, 5]
    row_pos = torch.tensor([0, 62, 63, 64, 299, 128, 639, 63, 0]).int()
    index_q, weights = queries(len(row_seq), heads)
    slots, ids = all_blocks(stored, row_seq, block_tokens)

    out = refined(stored, index_q, weights, slots, ids, row_pos, block_tokens, layout)

    flat = paged_index_logits(
        index_q,
        weights,
        stored.index_pages,
        stored.page_table,
        torch.tensor(row_seq).int(),
        row_pos + 1,
        layout,
    )
    out = torch.where(out == UNTOUCHED, -torch.inf, out)
    width = min(out.shape[1], flat.shape[1])
    assert_bits_equal(out[:, :width].contiguous(), flat[:, :width].contiguous())
    assert bool((out[:, width:] == -torch.inf).all())


@LAYOUTS
@pytest.mark.parametrize(("rows", "num_blocks"), [(1, 3), (3, 5), (40, 4)])
def test_chosen_blocks_match_the_formula(layout: IndexLayout, rows: int, num_blocks: int) -> None:
    stored = paged_keys((640,), layout, block_tokens=128)
    index_q, weights = queries(rows, 32)
    row_pos = torch.randint(0, 640, (rows,)).int()
    ids = torch.stack([torch.randperm(5)[:num_blocks].sort().values for _ in range(rows)]).int()
    slots = block_slots_of(stored, [0] * rows, ids, 128)

    out = refined(stored, index_q, weights, slots, ids, row_pos, 128, layout)

    for row in range(rows):
        position = (ids[row, :, None] * 128 + torch.arange(128)).flatten()
        scores = naive_scores(index_q[row][None], weights[row][None], stored.keys[0][position])
        scores = scores[0].float().masked_fill(position > row_pos[row], -torch.inf)
        assert_near(out[row], scores)


@LAYOUTS
def test_rows_have_the_bits_they_have_alone_in_any_grouping(layout: IndexLayout) -> None:
    stored = paged_keys((640, 300), layout, block_tokens=64)
    torch.manual_seed(3)
    row_seq = [0] * 60 + [1] * 9
    row_pos = torch.tensor([639 - i for i in range(60)] + [299 - i for i in range(9)]).int()
    index_q, weights = queries(69, 32)
    num_blocks = [10] * 60 + [5] * 9
    ids = torch.stack([torch.randperm(n)[:4].sort().values for n in num_blocks]).int()
    slots = block_slots_of(stored, row_seq, ids, 64)
    call = lambda part: refined(  # noqa: E731
        stored, index_q[part], weights[part], slots[part], ids[part], row_pos[part], 64, layout
    )
    together = call(slice(None))

    for part in (slice(0, 1), slice(5, 7), slice(20, 69), slice(68, 69), slice(0, 60)):
        assert_bits_equal(call(part), together[part])


def test_one_row_over_more_keys_than_a_chunk_has_the_bits_of_the_flat_logits() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((8192 + 300,), layout, block_tokens=128)
    index_q, weights = queries(1, 8)
    slots, ids = all_blocks(stored, [0], 128)
    row_pos = torch.tensor([8192 + 290]).int()

    out = refined(stored, index_q, weights, slots, ids, row_pos, 128, layout)

    row_seq, pages = torch.zeros(1).int(), (stored.index_pages, stored.page_table)
    flat = paged_index_logits(index_q, weights, *pages, row_seq, row_pos + 1, layout)
    assert_bits_equal(out, flat[:, : out.shape[1]].contiguous())


def test_columns_of_a_missing_block_are_left_alone_and_keep_earlier_scores() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((256,), layout)
    index_q, weights = queries(2, 8)
    slots, ids = all_blocks(stored, [0, 0], 64)
    row_pos = torch.tensor([255, 255]).int()
    whole = refined(stored, index_q, weights, slots, ids, row_pos, 64, layout)
    out = torch.full_like(whole, UNTOUCHED)

    for column in (2, 0, 3, 1):  # as a stream through a window does
        only = torch.full_like(slots, -1)
        only[:, column] = slots[:, column]
        refine_logits(index_q, weights, stored.index_pages, only, ids, row_pos, 64, layout, out)

    assert_bits_equal(out, whole)


def test_slot_numbers_do_not_change_the_bits() -> None:
    layout = index_layout("fp8")
    index_q, weights = queries(3, 32)
    row_pos = torch.tensor([299, 150, 64]).int()
    outs = []
    for spread in (5, 9):  # the second pool has garbage blocks between
        stored = paged_keys((300,), layout)
        pages = torch.full((spread * 5, layout.page_bytes), 0xFF).byte()
        order = torch.randperm(spread * 5)[:5]
        pages[order] = stored.index_pages[stored.page_table[0].long()]
        ids = torch.arange(5).int().repeat(3, 1)
        out = torch.empty(3, 320)
        slots = order.int().repeat(3, 1)
        refine_logits(index_q, weights, pages, slots, ids, row_pos, 64, layout, out)
        outs.append(out)

    assert_bits_equal(outs[0], outs[1])


@LAYOUTS
def test_garbage_after_a_rows_position_never_shows(layout: IndexLayout) -> None:
    stored = paged_keys((70,), layout, block_tokens=128)  # NaN from position 70 on
    index_q, weights = queries(3, 4)
    slots, ids = all_blocks(stored, [0, 0, 0], 128)
    row_pos = torch.tensor([69, 0, -1]).int()

    out = refined(stored, index_q, weights, slots, ids, row_pos, 128, layout)

    assert not out.isnan().any()
    assert (out > -torch.inf).sum(1).tolist() == [70, 1, 0]


def test_no_rows_and_no_held_block_change_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((64,), layout)
    index_q, weights = queries(2, 4)
    none = torch.full((2, 3), -1).int()

    out = refined(stored, index_q, weights, none, none, torch.tensor([5, -1]).int(), 64, layout)
    empty = refined(
        stored, index_q[:0], weights[:0], none[:0], none[:0], torch.zeros(0).int(), 64, layout
    )

    assert bool((out == UNTOUCHED).all())
    assert empty.shape == (0, 192)


def host_of(stored: PagedKeys, row_seq: list[int]) -> HostBlocks:
    """The same pages in another order, so that the pages of a block are not adjacent."""
    order = torch.randperm(len(stored.index_pages))
    pages = torch.empty_like(stored.index_pages)
    pages[order] = stored.index_pages
    table = order[stored.page_table.clamp(min=0).long()].masked_fill(stored.page_table < 0, -1)
    return HostBlocks(pages, table.int(), torch.tensor(row_seq).int())


@LAYOUTS
@pytest.mark.parametrize("share_on_host", [0.5, 1.0])
def test_blocks_on_the_host_have_the_bits_that_they_have_in_the_window(
    layout: IndexLayout, share_on_host: float
) -> None:
    stored = paged_keys((640, 300), layout, block_tokens=128)
    row_seq = [0] * 30 + [1] * 3  # many rows share a slot, and none of a copy from the host
    row_pos = torch.tensor([639 - 20 * i for i in range(30)] + [299, 128, 5]).int()
    index_q, weights = queries(33, 8)
    slots, ids = all_blocks(stored, row_seq, 128)
    kept = slots.masked_fill(torch.rand(slots.shape) < share_on_host, -1)
    host = host_of(stored, row_seq)

    found = refined(stored, index_q, weights, kept, ids, row_pos, 128, layout, host)

    assert_bits_equal(found, refined(stored, index_q, weights, slots, ids, row_pos, 128, layout))


def test_tokens_that_the_host_does_not_have_become_minus_infinity() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((256,), layout, block_tokens=128)
    index_q, weights = queries(2, 8)
    host = host_of(stored, [0, 0])
    host.page_table[0, 1] = -1
    ids = torch.tensor([[0, 1, 7], [0, 1, 7]]).int()  # no page of block 7 is listed
    row_pos = torch.tensor([255, 200]).int()

    out = refined(
        stored, index_q, weights, torch.full_like(ids, -1), ids, row_pos, 128, layout, host
    )

    there = [[*range(64), *range(128, 256)], [*range(64), *range(128, 201)]]
    assert [(row > -torch.inf).nonzero()[:, 0].tolist() for row in out] == there
    assert not bool((out == UNTOUCHED).any())


def test_blocks_without_an_id_and_rows_without_a_sequence_are_not_read_from_the_host() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((128,), layout)
    index_q, weights = queries(2, 8)
    host, ids = host_of(stored, [0, -1]), torch.tensor([[-1, 0], [0, 1]]).int()
    row_pos = torch.tensor([127, -1]).int()

    out = refined(
        stored, index_q, weights, torch.full_like(ids, -1), ids, row_pos, 64, layout, host
    )

    assert (out == UNTOUCHED).sum(1).tolist() == [64, 128]
    assert bool(out[0, 64:].isfinite().all())


@pytest.mark.parametrize(
    ("field", "wrong", "match"),
    [
        ("pages", torch.zeros(4, 132).byte(), "host.pages has 132 page_bytes, needs 8448"),
        ("pages", torch.zeros(0, 8448).byte(), "number of host.pages is 0, needs at least 1"),
        ("pages", torch.zeros(8448, 4).byte().T, "host.pages has strides"),
        ("page_table", torch.zeros(1, 2), "host.page_table has dtype torch.float32"),
        ("row_seq", torch.zeros(3).int(), "host.row_seq has 3 rows, needs 2"),
    ],
)
def test_a_host_that_does_not_fit_is_refused(field: str, wrong: torch.Tensor, match: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((128,), layout)
    query, ids = queries(2, 8), torch.zeros(2, 1).int()
    host = replace(host_of(stored, [0, 0]), **{field: wrong})

    with pytest.raises(ValueError, match=match):
        refined(stored, *query, ids, ids, torch.zeros(2).int(), 64, layout, host)
