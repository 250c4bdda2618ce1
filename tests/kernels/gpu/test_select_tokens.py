"""`select_tokens`: the chain of the three ops that it stands for, in one launch or two."""

import pytest
import torch

from accuracy import assert_bits_equal
from cases import PagedKeys, on, paged_keys, queries_of
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.gpu.select_tokens import select_tokens_triton
from hisparse_kernels.gpu.topk import candidate_positions_triton, topk_triton
from hisparse_kernels.layouts import IndexLayout, index_layout
from hisparse_kernels.refine_logits import HostBlocks
from hisparse_kernels.select_tokens import select_tokens, select_tokens_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.refining import F8, F32, LENGTHS, PATHS, chosen_blocks, int32

ROW_SEQ = int32(0, 1, 2, 3, -1, 3)
ROW_POS = int32(0, 40, 191, 650, -1, 699)
Inputs = tuple[torch.Tensor, ...]


def logits_of(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.full((rows, columns), torch.nan, device=device)


def inputs_of(stored: PagedKeys, dtype: torch.dtype, block_tokens: int, heads: int) -> Inputs:
    """Queries, window, slots, ascending ids, positions: what `select_tokens` begins with."""
    slots, ids = chosen_blocks(stored, ROW_SEQ, 4, block_tokens)
    ids, order = torch.where(ids < 0, 2**30, ids).sort(1)
    ids = torch.where(ids == 2**30, -1, ids).contiguous()
    queries = queries_of(dtype, len(ROW_SEQ), heads)
    return *queries, stored.index_pages, slots.gather(1, order), ids, ROW_POS


def chain(inputs: Inputs, block_tokens: int, k: int, layout: IndexLayout) -> torch.Tensor:
    ids = inputs[4]
    logits = torch.full((len(ids), ids.shape[1] * block_tokens), -torch.inf, device=ids.device)
    refine_logits_triton(*inputs, block_tokens, layout, logits)
    return candidate_positions_triton(topk_triton(logits, k), ids, block_tokens)


def selected(
    inputs: Inputs, block_tokens: int, k: int, layout: IndexLayout, **kwargs: object
) -> torch.Tensor:
    ids = inputs[4]
    logits = logits_of(len(ids), ids.shape[1] * block_tokens, str(ids.device))
    found = select_tokens_triton(*inputs, block_tokens, k, layout, logits, **kwargs)  # type: ignore[arg-type]
    assert not logits[ids[:, 0] >= 0].isnan().any() if ids.shape[1] else True
    return found


@PATHS
@pytest.mark.parametrize("k", [1, 77, 1000])
def test_tokens_are_those_of_the_chain(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, k: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)
    inputs = tuple(on(device, *inputs_of(stored, dtype, block_tokens, heads)))

    found = selected(inputs, block_tokens, k, rows)

    assert_bits_equal(found, chain(inputs, block_tokens, k, rows))


def test_tokens_are_the_references_where_scores_are_exact(device: str) -> None:
    layout = index_layout("fp32")
    stored = paged_keys(LENGTHS, layout, signs_only=True)
    index_q, weights, *rest = inputs_of(stored, F32, 64, 8)
    inputs = index_q.round(), weights.sign(), *rest
    columns = rest[2].shape[1] * 64
    logits = logits_of(len(ROW_SEQ), columns, "cpu")
    expected = select_tokens_ref(*inputs, 64, 60, layout, logits)

    found = selected(tuple(on(device, *inputs)), 64, 60, layout)

    assert int((expected >= 0).sum()) > 200
    assert_bits_equal(found.cpu(), expected)


def test_blocks_outside_the_window_are_read_from_the_host(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys(LENGTHS, layout, block_tokens=128)
    inputs = inputs_of(stored, F8, 128, 64)
    whole = tuple(on(device, *inputs))
    some = inputs[3].masked_fill(torch.arange(4) % 2 == 0, -1)
    parted = (*whole[:3], some.to(device), *whole[4:])

    host = HostBlocks(*on(device, stored.index_pages, stored.page_table, ROW_SEQ))
    found = selected(parted, 128, 300, layout, host=host)

    assert_bits_equal(found, selected(whole, 128, 300, layout))


@pytest.mark.parametrize("k", [77, 1000])
@pytest.mark.parametrize("ops", ["kernel", "reference"])
def test_rows_are_those_of_the_tokens_in_the_window(ops: str, k: int, device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys(LENGTHS, layout, block_tokens=128)
    inputs = inputs_of(stored, F8, 128, 64)
    slots, ids = inputs[3:5]
    ids[3, 3] = -1  # a list with a padded tail
    columns = torch.full((len(ids), ids.shape[1] * 128), torch.nan)

    def found(*, as_rows: bool) -> torch.Tensor:
        if ops == "kernel":
            return selected(tuple(on(device, *inputs)), 128, k, layout, as_rows=as_rows).cpu()
        return select_tokens_ref(*inputs, 128, k, layout, columns.clone(), as_rows=as_rows)

    expected = [
        [row_of(position, slots[row], ids[row]) for position in listed]
        for row, listed in enumerate(found(as_rows=False).tolist())
    ]
    assert found(as_rows=True).tolist() == expected
    assert expected != found(as_rows=False).tolist()


def row_of(position: int, slots: torch.Tensor, ids: torch.Tensor) -> int:
    if position < 0:
        return -1
    place = ids.tolist().index(position // 128)
    return int(slots[place]) * 128 + position % 128


def test_rows_of_tokens_on_the_host_are_refused() -> None:
    layout = index_layout("fp8")
    stored = paged_keys(LENGTHS, layout)
    inputs = inputs_of(stored, F8, 64, 64)
    host = HostBlocks(stored.index_pages, stored.page_table, ROW_SEQ)
    logits = logits_of(len(ROW_SEQ), inputs[4].shape[1] * 64, "cpu")

    with pytest.raises(ValueError, match="as_rows is True with a host"):
        select_tokens(*inputs, 64, 5, layout, logits, host=host, as_rows=True)


def test_no_blocks_have_no_tokens(device: str) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((64,), layout)
    none = torch.empty(2, 0, dtype=torch.int32)
    queries = queries_of(F8, 2, 32)
    inputs = tuple(on(device, *queries, stored.index_pages, none, none, int32(3, 4)))

    assert_bits_equal(selected(inputs, 64, 5, layout).cpu(), torch.full((2, 5), -1).int())


def production(rows: int, m: int) -> Inputs:
    torch.manual_seed(0)
    stored = paged_keys((m * 128 * 2,), index_layout("fp8"), block_tokens=128)
    index_q, weights = queries_of(F8, rows, 64)
    ids = torch.rand(rows, 2 * m).topk(m, 1).indices.sort(1).values.int()
    slots = stored.page_table[0][ids.long() * 2] // 2
    row_pos = torch.full((rows,), 2 * m * 128 - 1).int()
    row_pos[-1] = ids[-1, m // 2] * 128 + 5
    return tuple(on("cuda", index_q, weights, stored.index_pages, slots, ids.contiguous(), row_pos))


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "m"), [(1, 64), (8, 64), (64, 64), (1024, 64), (3, 128)])
def test_production_sizes_give_the_chains_tokens_twenty_times(rows: int, m: int) -> None:
    layout, inputs = index_layout("fp8"), production(rows, m)
    expected = chain(inputs, 128, 2048, layout)
    logits = logits_of(rows, m * 128, "cuda")

    for _ in range(20):
        found = select_tokens_triton(*inputs, 128, 2048, layout, logits)
        assert torch.equal(found, expected)


@pytest.mark.gpu
def test_a_graph_follows_new_blocks_and_positions_and_allocates_nothing() -> None:
    layout, inputs, new = index_layout("fp8"), production(4, 64), production(4, 64)
    new = *new[:4], new[4], int32(-1, 70, 8191, 3000).cuda()
    held = tuple(tensor.clone() for tensor in inputs)
    logits = logits_of(4, 64 * 128, "cuda")
    out = torch.full((4, 2048), 7, dtype=torch.int32, device="cuda")

    def call() -> None:
        select_tokens_triton(*held, 128, 2048, layout, logits, out)

    replay(call, held, new)

    assert_bits_equal(out, chain(new, 128, 2048, layout))
    assert_allocates_nothing(call)
