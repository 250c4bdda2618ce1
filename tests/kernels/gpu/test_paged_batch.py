import dataclasses

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.paged_batch import lay_out_batch_triton
from hisparse_kernels.paged_batch import PagedBatch, lay_out_batch, lay_out_batch_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.paged import SEQUENCES, moved_to, paged_batch, pages_of, spans

ROWS, TABLE_PAGES = 25, 11  # 18 rows are of sequences
FORMS = pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])


def places(batch: PagedBatch, device: str, rows: int = ROWS) -> tuple[torch.Tensor, ...]:
    lists = torch.full((2, rows), 777, dtype=torch.int32, device=device)
    table = torch.full((batch.num_seqs, TABLE_PAGES), 777, dtype=torch.int32, device=device)
    return lists[0], lists[1], table


@FORMS
@CAUSAL
def test_rows_and_pages_are_laid_out_as_the_batch_says(
    packed: bool, causal: bool, device: str
) -> None:
    batch = paged_batch(packed=packed, causal=causal)
    row_seq, row_pos, table = places(batch, device)

    lay_out_batch_triton(moved_to(batch, device), 64, row_seq, row_pos, table)

    wanted = [(seq if seen else -1, seen - 1) for seq, seen in spans(batch, ROWS)]
    assert list(zip(row_seq.tolist(), row_pos.tolist(), strict=True)) == wanted
    for seq in range(batch.num_seqs):
        pages = pages_of(batch, seq)
        assert table[seq].tolist() == pages + [-1] * (TABLE_PAGES - len(pages))
    twin = places(batch, "cpu")
    lay_out_batch_ref(batch, 64, *twin)
    for found, expected in zip((row_seq, row_pos, table), twin, strict=True):
        assert_bits_equal(found.cpu(), expected)


def test_rows_that_see_more_than_the_bound_are_padding(device: str) -> None:
    batch = paged_batch()
    row_seq, row_pos, _ = places(batch, device)

    lay_out_batch_triton(moved_to(batch, device), 32, row_seq, row_pos)

    seen = [count for _, count in spans(batch, ROWS)]
    assert max(seen) > 32
    assert [pos + 1 for pos in row_pos.tolist()] == [0 if one > 32 else one for one in seen]
    assert [seq >= 0 for seq in row_seq.tolist()] == [0 < one <= 32 for one in seen]


@pytest.mark.parametrize("num_seqs", [0, 1, 255, 256, 257, 600])
def test_any_number_of_sequences_is_legal(num_seqs: int, device: str) -> None:
    batch = paged_batch([(seq % 3, 2 + seq % 5) for seq in range(num_seqs)], packed=False)
    rows = num_seqs + 2
    row_seq, row_pos, table = places(batch, device, rows)

    lay_out_batch_triton(moved_to(batch, device), 64, row_seq, row_pos, table)

    wanted = [(seq if seen else -1, seen - 1) for seq, seen in spans(batch, rows)]
    assert list(zip(row_seq.tolist(), row_pos.tolist(), strict=True)) == wanted


@FORMS
def test_a_table_that_lists_less_than_the_lengths_say_is_not_read_beyond_its_end(
    packed: bool, device: str
) -> None:
    batch = paged_batch(packed=packed)
    liar = dataclasses.replace(batch, kv_lens=torch.full_like(batch.kv_lens, 80))
    row_seq, row_pos, table = places(liar, device)

    lay_out_batch_triton(moved_to(liar, device), 80, row_seq, row_pos, table)

    twin = places(liar, "cpu")
    lay_out_batch_ref(liar, 80, *twin)
    assert_bits_equal(table.cpu(), twin[2])
    if packed:  # one entry past a sequence's own belongs to the next
        assert table[0].tolist() == pages_of(batch, 0) + [-1] * (TABLE_PAGES - 1)


@pytest.mark.gpu
def test_a_graph_lays_out_what_its_tensors_hold_when_it_is_replayed() -> None:
    first, then = paged_batch(seed=0), paged_batch([*reversed(SEQUENCES)], seed=1)
    batch = moved_to(first, "cuda")
    made = places(batch, "cuda")

    def call() -> None:
        lay_out_batch_triton(batch, 64, *made)

    held = batch.qo_indptr, batch.kv_lens, batch.kv_pages, batch.kv_indptr
    replay(call, held, (then.qo_indptr, then.kv_lens, then.kv_pages, then.kv_indptr))
    twin = places(then, "cpu")
    lay_out_batch_ref(then, 64, *twin)
    for found, expected in zip(made, twin, strict=True):
        assert_bits_equal(found.cpu(), expected)
    assert_allocates_nothing(call)


@pytest.mark.parametrize(
    ("name", "bad", "match"),
    [
        ("qo_indptr", torch.zeros(8).int(), "qo_indptr has a dimension of 8, needs 9"),
        ("qo_indptr", torch.zeros(9).long(), "qo_indptr has dtype torch.int64, needs torch.int32"),
        ("kv_indptr", torch.zeros(8).int(), "kv_indptr has a dimension of 8, needs 9"),
        ("kv_pages", torch.zeros(3, 4).int(), "kv_pages has 2 dimensions .*, needs 1"),
        ("kv_lens", torch.zeros(16).int()[::2], "kv_lens has strides"),
        ("page_tokens", 0, "page_tokens is 0, needs at least 1"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_with_both_numbers(
    name: str, bad: object, match: str
) -> None:
    batch = dataclasses.replace(paged_batch(), **{name: bad})

    with pytest.raises(ValueError, match=match):
        lay_out_batch(batch, 64, *places(paged_batch(), "cpu"))
    lay_out_batch(paged_batch(), 64, *places(paged_batch(), "cpu"))
