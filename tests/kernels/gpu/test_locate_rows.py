import dataclasses

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.locate_rows import locate_rows_triton
from hisparse_kernels.locate_rows import locate_rows, locate_rows_ref
from hisparse_kernels.paged_batch import PagedBatch
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.paged import SEQUENCES, moved_to, paged_batch, pages_of, spans

ROWS, NUM_PAGES = 25, 40
FORMS = pytest.mark.parametrize("packed", [True, False], ids=["packed", "dense"])
CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])


def positions(topk: int, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 90, (ROWS, topk), generator=made, dtype=torch.int32)


def expected(
    listed: torch.Tensor, batch: PagedBatch, num_pages: int, stride: int, counts: list[int]
) -> list[list[int]]:
    found = []
    for row, (seq, seen) in enumerate(spans(batch, len(listed))):
        pages = pages_of(batch, seq) if seq >= 0 else []
        ids = []
        for rank, position in enumerate(listed[row].tolist()):
            row_id = -1
            if 0 <= position < seen and rank < counts[row]:
                page = pages[position // batch.page_tokens]
                if page < num_pages:
                    row_id = page * stride + position % batch.page_tokens
            ids.append(row_id)
        found.append(ids)
    return found


@FORMS
@CAUSAL
@pytest.mark.parametrize(("page_tokens", "stride"), [(8, 8), (1, 1), (8, 13)])
@pytest.mark.parametrize("topk", [1, 7, 64, 1030])
def test_each_position_that_the_row_sees_has_its_row(
    packed: bool, causal: bool, page_tokens: int, stride: int, topk: int, device: str
) -> None:
    batch = paged_batch(page_tokens=page_tokens, packed=packed, causal=causal)
    listed = positions(topk)
    out = torch.full((ROWS, topk), 777, dtype=torch.int32, device=device)

    found = locate_rows_triton(
        listed.to(device), moved_to(batch, device), NUM_PAGES, stride, out=out
    )

    assert found is out
    assert out.tolist() == expected(listed, batch, NUM_PAGES, stride, [topk] * ROWS)
    assert_bits_equal(out.cpu(), locate_rows_ref(listed, batch, NUM_PAGES, stride))


def test_positions_behind_the_valid_count_do_not_count(device: str) -> None:
    batch, listed = paged_batch(), positions(20)
    counts = torch.arange(ROWS).int() % 23 - 1

    found = locate_rows_triton(
        listed.to(device), moved_to(batch, device), NUM_PAGES, 8, counts.to(device)
    )

    assert found.tolist() == expected(listed, batch, NUM_PAGES, 8, counts.tolist())
    assert_bits_equal(found.cpu(), locate_rows_ref(listed, batch, NUM_PAGES, 8, counts))


def test_a_page_that_does_not_exist_gives_no_row(device: str) -> None:
    batch, listed = paged_batch(), positions(64)

    found = locate_rows_triton(listed.to(device), moved_to(batch, device), 9, 8)

    assert found.tolist() == expected(listed, batch, 9, 8, [64] * ROWS)
    assert found.max() < 9 * 8
    assert_bits_equal(found.cpu(), locate_rows_ref(listed, batch, 9, 8))


@FORMS
def test_lengths_beyond_the_table_give_no_row(packed: bool, device: str) -> None:
    batch, listed = paged_batch(packed=packed), positions(64)
    liar = dataclasses.replace(batch, kv_lens=torch.full_like(batch.kv_lens, 2**30))

    found = locate_rows_triton(listed.to(device), moved_to(liar, device), NUM_PAGES, 8)

    assert_bits_equal(found.cpu(), locate_rows_ref(listed, liar, NUM_PAGES, 8))
    assert found.max() < NUM_PAGES * 8


def test_the_list_may_be_its_own_result(device: str) -> None:
    batch, listed = paged_batch(), positions(64)
    wanted = locate_rows_ref(listed, batch, NUM_PAGES, 8)
    place = listed.to(device)

    assert locate_rows_triton(place, moved_to(batch, device), NUM_PAGES, 8, out=place) is place

    assert_bits_equal(place.cpu(), wanted)


def test_rows_of_a_large_pool_do_not_overflow(device: str) -> None:
    page = 2**31 // 64 - 1
    batch = paged_batch([(1, 64)], page_tokens=64)
    batch = dataclasses.replace(batch, kv_pages=torch.tensor([page]).int())
    listed = torch.tensor([[0, 63]]).int()

    found = locate_rows_triton(listed.to(device), moved_to(batch, device), page + 1, 64)

    assert found.tolist() == [[2**31 - 64, 2**31 - 1]]
    assert locate_rows_ref(listed, batch, page + 1, 64).tolist() == found.tolist()


@pytest.mark.gpu
def test_a_graph_locates_what_its_tensors_hold_when_it_is_replayed() -> None:
    first, then = paged_batch(seed=0), paged_batch([*reversed(SEQUENCES)], seed=1)
    batch, listed = moved_to(first, "cuda"), positions(64).cuda()
    out = torch.empty_like(listed)

    def call() -> None:
        locate_rows_triton(listed, batch, NUM_PAGES, 8, out=out)

    held = batch.qo_indptr, batch.kv_lens, batch.kv_pages, batch.kv_indptr, listed
    wanted = then.qo_indptr, then.kv_lens, then.kv_pages, then.kv_indptr, positions(64, 1)
    replay(call, held, wanted)
    assert_bits_equal(out.cpu(), locate_rows_ref(positions(64, 1), then, NUM_PAGES, 8))
    assert_allocates_nothing(call)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"page_stride": 7}, "page_stride is 7, needs at least 8"),
        ({"num_pages": 2**30}, r"num_pages \* page_stride is 8589934592, needs <= 2\*\*31"),
        ({"topk_indices": torch.zeros(4)}, "topk_indices has dtype torch.float32"),
        ({"valid_counts": torch.zeros(4).int()}, "valid_counts has 4 rows, needs 25"),
        ({"out": torch.zeros(ROWS, 5).int()}, "out has 5 topk, needs 7"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(bad: dict[str, object], match: str) -> None:
    good = {"topk_indices": positions(7), "batch": paged_batch(), "num_pages": 40, "page_stride": 8}

    with pytest.raises(ValueError, match=match):
        locate_rows(**good | bad)  # type: ignore[arg-type]
    locate_rows(**good)  # type: ignore[arg-type]
