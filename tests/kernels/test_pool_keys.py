from dataclasses import dataclass

import pytest
import torch

from accuracy import assert_bits_equal, assert_near
from cases import NAN_BYTE, PagedKeys, paged_keys, row_ids_of
from hisparse_kernels.index_rows import pack_index_rows, read_index_rows
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout, index_layout
from hisparse_kernels.pool_keys import append_index_rows, rebuild_pooled_keys, resum_open_blocks

LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())
LENGTHS = (300, 1, 64, 127, 128, 129, 0, 640)


@dataclass
class Pooled:
    """Pooled state of the sequences of LENGTHS, full of garbage before the first write."""

    index_pages: torch.Tensor
    open_sums: torch.Tensor
    state_rows: torch.Tensor
    pooled_pages: torch.Tensor
    pooled_base: torch.Tensor

    @staticmethod
    def fresh(layout: IndexLayout, num_seqs: int = len(LENGTHS)) -> "Pooled":
        return Pooled(
            torch.full((40, layout.page_bytes), NAN_BYTE).byte(),
            torch.full((num_seqs + 2, 128), torch.nan),
            torch.arange(num_seqs).flip(0) + 1,
            torch.full((num_seqs, layout.page_bytes), NAN_BYTE).byte(),
            torch.arange(num_seqs) * 64,
        )

    def append(
        self, stored: PagedKeys, spans: list[tuple[int, int, int]], bt: int, layout: IndexLayout
    ) -> None:
        """Appends tokens [first, end) of each sequence named in `spans`, in one call."""
        rows = [stored.rows[seq][first:end] for seq, first, end in spans]
        seqs = [torch.full((end - first,), seq).int() for seq, first, end in spans]
        pos = [torch.arange(first, end).int() for _, first, end in spans]
        row_ids = [
            row_ids_of(stored.page_table[seq], torch.arange(first, end))
            for seq, first, end in spans
        ]
        append_index_rows(
            torch.cat(rows),
            torch.cat(row_ids),
            self.index_pages,
            torch.cat(seqs),
            torch.cat(pos),
            self.open_sums,
            self.state_rows,
            self.pooled_pages,
            self.pooled_base,
            bt,
            layout,
        )

    def rebuild(self, stored: PagedKeys, bt: int, layout: IndexLayout) -> None:
        rebuild_pooled_keys(
            stored.index_pages,
            stored.page_table,
            stored.lengths,
            self.open_sums,
            self.state_rows,
            self.pooled_pages,
            self.pooled_base,
            bt,
            layout,
        )

    def assert_same(self, other: "Pooled", lengths: tuple[int, ...]) -> None:
        assert_bits_equal(self.pooled_pages, other.pooled_pages)
        held = self.state_rows[[length > 0 for length in lengths]]
        assert_bits_equal(self.open_sums[held], other.open_sums[held])


def naive_pooled(
    stored: PagedKeys, seq: int, bt: int, layout: IndexLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed means of the closed blocks, and the open sum: one fp32 addition after the other."""
    means, total = [], torch.zeros(128)
    for pos, key in enumerate(stored.keys[seq]):
        total = total + key
        if (pos + 1) % bt == 0:
            means.append(total / bt)
            total = torch.zeros(128)
    return pack_index_rows(torch.stack(means) if means else torch.zeros(0, 128), layout), total


@LAYOUTS
@pytest.mark.parametrize("bt", [64, 128, 192])
def test_rebuilt_blocks_are_the_sequential_sums(layout: IndexLayout, bt: int) -> None:
    stored = paged_keys(LENGTHS, layout, block_tokens=bt)
    pooled = Pooled.fresh(layout)

    pooled.rebuild(stored, bt, layout)

    for seq, length in enumerate(LENGTHS):
        rows, open_sum = naive_pooled(stored, seq, bt, layout)
        ids = seq * 64 + torch.arange(length // bt)
        assert_bits_equal(read_index_rows(pooled.pooled_pages, ids, layout), rows)
        assert_bits_equal(pooled.open_sums[pooled.state_rows[seq]], open_sum)
    assert bool(pooled.open_sums[[0, -1]].isnan().all())  # rows of no sequence


@LAYOUTS
@pytest.mark.parametrize("step", [1, 7, 63, 64, 65, 200, 1000])
def test_append_has_the_bits_of_rebuild_for_any_split(layout: IndexLayout, step: int) -> None:
    stored = paged_keys(LENGTHS, layout, block_tokens=128)
    rebuilt, appended = Pooled.fresh(layout), Pooled.fresh(layout)
    rebuilt.rebuild(stored, 128, layout)

    for first in range(0, max(LENGTHS), step):
        ends = [min(first + step, length) for length in LENGTHS]
        spans = [(seq, first, end) for seq, end in enumerate(ends) if end > first]
        appended.append(stored, spans[::-1], 128, layout)

    appended.assert_same(rebuilt, LENGTHS)
    assert_bits_equal(appended.index_pages[: len(stored.index_pages)], stored.index_pages)


def test_uneven_calls_have_the_bits_of_one_call() -> None:
    layout = index_layout("fp8")
    stored = paged_keys(LENGTHS, layout)
    whole, pieces = Pooled.fresh(layout), Pooled.fresh(layout)
    whole.append(stored, [(seq, 0, n) for seq, n in enumerate(LENGTHS)], 64, layout)

    torch.manual_seed(5)
    at = [0] * len(LENGTHS)
    while any(done < n for done, n in zip(at, LENGTHS, strict=True)):
        spans = []
        for seq, length in enumerate(LENGTHS):
            end = min(length, at[seq] + int(torch.randint(0, 150, ())))
            spans += [(seq, at[seq], end)] if end > at[seq] else []
            at[seq] = end
        if spans:
            pieces.append(stored, spans, 64, layout)

    pieces.assert_same(whole, LENGTHS)


def test_padding_rows_and_other_sequences_are_left_alone() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((70, 70), layout)
    pooled, alone = Pooled.fresh(layout, 2), Pooled.fresh(layout, 2)
    garbage = torch.full((9, layout.row_bytes), NAN_BYTE).byte()
    among = torch.tensor([75, *range(70), *range(70, 75), *range(76, 79)])  # 70..78 are padding
    rows = torch.cat([stored.rows[0], garbage])[among]
    row_seq = torch.tensor([0] * 70 + [-1] * 9).int()[among]
    row_pos = torch.tensor([*range(70), *[-1] * 9]).int()[among]

    append_index_rows(
        rows,
        torch.where(row_seq == 0, row_pos + 64, -1).long(),
        pooled.index_pages,
        row_seq,
        row_pos,
        pooled.open_sums,
        pooled.state_rows,
        pooled.pooled_pages,
        pooled.pooled_base,
        64,
        layout,
    )

    alone.append(stored, [(0, 0, 70)], 64, layout)
    written = read_index_rows(pooled.index_pages, torch.arange(40 * 64), layout)
    assert_bits_equal(written[64 : 64 + 70], stored.rows[0])
    assert bool((written[64 + 70 :] == NAN_BYTE).all())
    assert bool((written[:64] == NAN_BYTE).all())
    assert_bits_equal(pooled.pooled_pages, alone.pooled_pages)
    assert_bits_equal(pooled.open_sums, alone.open_sums)
    assert bool(pooled.open_sums[pooled.state_rows[1]].isnan().all())


def test_a_call_of_padding_only_changes_nothing() -> None:
    layout = index_layout("fp8")
    pooled, before = Pooled.fresh(layout, 2), Pooled.fresh(layout, 2)
    none = torch.full((3,), -1).int()

    append_index_rows(
        torch.zeros(3, layout.row_bytes).byte(),
        none.long(),
        pooled.index_pages,
        none,
        none,
        pooled.open_sums,
        pooled.state_rows,
        pooled.pooled_pages,
        pooled.pooled_base,
        64,
        layout,
    )

    assert_bits_equal(pooled.index_pages, before.index_pages)
    assert_bits_equal(pooled.pooled_pages, before.pooled_pages)
    assert_bits_equal(pooled.open_sums, before.open_sums)


@LAYOUTS
@pytest.mark.parametrize("kept", [0, 1, 63, 64, 65, 127, 128, 129, 191, 192, 299])
def test_rollback_then_append_has_the_bits_of_never_having_gone_on(
    layout: IndexLayout, kept: int
) -> None:
    stored = paged_keys((300,), layout, block_tokens=64)
    rejected = paged_keys((300,), layout, block_tokens=64, seed=9)
    pooled, straight = Pooled.fresh(layout, 1), Pooled.fresh(layout, 1)
    straight.append(stored, [(0, 0, 300)], 64, layout)
    if kept:
        pooled.append(stored, [(0, 0, kept)], 64, layout)
    pooled.append(rejected, [(0, kept, 300)], 64, layout)
    resum_open_blocks(
        stored.index_pages,
        stored.page_table,
        torch.tensor([kept]).int(),
        pooled.open_sums,
        pooled.state_rows,
        64,
        layout,
    )
    pooled.append(stored, [(0, kept, 300)], 64, layout)

    pooled.assert_same(straight, (300,))


@LAYOUTS
def test_rollback_reads_only_the_open_blocks_rows(layout: IndexLayout) -> None:
    stored = paged_keys((300,), layout, block_tokens=64)
    pooled = Pooled.fresh(layout, 1)
    for page in (0, 1, 3, 4):  # the open block at length 150 is page 2
        stored.index_pages[stored.page_table[0, page]] = NAN_BYTE

    resum_open_blocks(
        stored.index_pages,
        stored.page_table,
        torch.tensor([150]).int(),
        pooled.open_sums,
        pooled.state_rows,
        64,
        layout,
    )

    total = torch.zeros(128)
    for key in stored.keys[0][128:150]:
        total = total + key
    assert_bits_equal(pooled.open_sums[pooled.state_rows[0]], total)


def test_a_length_of_minus_one_leaves_the_sequence_alone() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((300, 130), layout)
    pooled = Pooled.fresh(layout, 2)
    stored.lengths[0] = -1

    pooled.rebuild(stored, 64, layout)

    assert bool(pooled.open_sums[pooled.state_rows[0]].isnan().all())
    assert bool((pooled.pooled_pages[0] == NAN_BYTE).all())
    assert bool(pooled.open_sums[pooled.state_rows[1]].isfinite().all())


def test_the_mean_of_a_block_is_near_the_true_mean() -> None:
    layout = index_layout("fp32")
    stored = paged_keys((640,), layout)
    pooled = Pooled.fresh(layout, 1)
    pooled.rebuild(stored, 64, layout)

    means = read_index_rows(pooled.pooled_pages, torch.arange(10), layout).view(torch.float32)

    assert_near(means, stored.keys[0].double().view(10, 64, 128).mean(1).float())
