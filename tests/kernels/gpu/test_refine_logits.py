import pytest
import torch

from accuracy import TOLERANCES, assert_bits_equal, assert_near_largest
from cases import NAN_BYTE, PagedKeys, on, paged_keys, queries
from hisparse_kernels.gpu.index_logits import paged_index_logits_triton
from hisparse_kernels.gpu.refine_logits import refine_logits_triton
from hisparse_kernels.index_rows import quantize_index_q
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout, index_layout
from hisparse_kernels.refine_logits import HostBlocks, refine_logits_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, pinned_on_gpu, replay

F8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
UNTOUCHED = 12345.0
LENGTHS = (1, 63, 192, 700)
PATHS = pytest.mark.parametrize(
    ("layout", "dtype", "block_tokens", "heads"),
    [
        ("fp8", F8, 64, 64),
        ("fp8", F8, 128, 1),
        ("fp8", BF16, 128, 40),
        ("fp8", F32, 192, 5),
        ("fp32", F8, 192, 16),
        ("fp32", F32, 64, 32),
    ],
)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def queries_of(dtype: torch.dtype, rows: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    index_q, weights = queries(rows, heads)
    if dtype == F8:
        return quantize_index_q(index_q, weights)
    return index_q.to(dtype), weights


def chosen_blocks(
    stored: PagedKeys, row_seq: torch.Tensor, m: int, block_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and ids [rows, m] of random distinct blocks, -1 beyond the sequence's end."""
    ids = torch.full((len(row_seq), m), -1).int()
    slots = ids.clone()
    pages_per_block = block_tokens // PAGE_TOKENS
    for row, seq in enumerate(row_seq.tolist()):
        if seq >= 0:
            blocks = torch.randperm(-(-int(stored.lengths[seq]) // block_tokens))[:m].int()
            first = stored.page_table[seq, blocks.long() * pages_per_block]
            ids[row, : len(blocks)], slots[row, : len(blocks)] = blocks, first // pages_per_block
    return slots, ids


def untouched(rows: int, columns: int, device: str = "cpu") -> torch.Tensor:
    return torch.full((rows, columns), UNTOUCHED, device=device)


def refined(
    inputs: tuple[torch.Tensor, ...],
    block_tokens: int,
    layout: IndexLayout,
    device: str,
    host: HostBlocks | None = None,
) -> torch.Tensor:
    """What the kernel leaves in a tensor that it found full of another value."""
    out = untouched(len(inputs[3]), inputs[3].shape[1] * block_tokens, device)
    args = *on(device, *inputs), block_tokens, layout, out
    assert refine_logits_triton(*args, host) is out
    return out.cpu()


@PATHS
def test_logits_are_the_references_and_other_columns_stay(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)  # all else in the pool is NaN
    row_seq = int32(3, 3, 2, 1, 0, -1, 3)
    row_pos = int32(699, 300, 191, 40, 0, -1, 0)
    slots, ids = chosen_blocks(stored, row_seq, 4, block_tokens)
    slots[0, 1] = -1  # a block that is not there
    slots[5], ids[5] = slots[0], ids[0]  # a padding row sees nothing of what it names
    ids[1], slots[1] = ids[1].flip(0), slots[1].flip(0)
    index_q, weights = queries_of(dtype, len(row_seq), heads)
    inputs = index_q, weights, stored.index_pages, slots, ids, row_pos
    expected = untouched(len(row_seq), 4 * block_tokens)
    refine_logits_ref(*inputs, block_tokens, rows, expected)

    found = refined(inputs, block_tokens, rows, device)

    assert_bits_equal((found == UNTOUCHED), (expected == UNTOUCHED))
    assert_near_largest(
        found.masked_fill(found == UNTOUCHED, 0.0),
        expected.masked_fill(expected == UNTOUCHED, 0.0),
        TOLERANCES[dtype],
    )


def on_host(stored: PagedKeys) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pages in another order, so that a block's are not adjacent, and their table."""
    order = torch.randperm(len(stored.index_pages))
    pages = torch.empty_like(stored.index_pages)
    pages[order] = stored.index_pages
    table = order[stored.page_table.clamp(min=0).long()]
    return pages, table.masked_fill(stored.page_table < 0, -1).int()


def window_with(stored: PagedKeys, slots: torch.Tensor, block_tokens: int) -> torch.Tensor:
    """The window with the blocks in those slots; all other bytes are NaN."""
    window = torch.full_like(stored.index_pages, NAN_BYTE).view(
        -1, block_tokens // PAGE_TOKENS * stored.index_pages.shape[1]
    )
    held = slots[slots >= 0].unique().long()
    window[held] = stored.index_pages.view_as(window)[held]
    return window.view_as(stored.index_pages)


@PATHS
def test_blocks_on_the_host_have_the_bits_that_they_have_in_the_window(
    layout: str, dtype: torch.dtype, block_tokens: int, heads: int, device: str
) -> None:
    rows = index_layout(layout)
    stored = paged_keys(LENGTHS, rows, block_tokens=block_tokens)
    row_seq, row_pos = int32(3, 3, 2, 1, 0, 3), int32(699, 300, 191, 40, 0, 65)
    slots, ids = chosen_blocks(stored, row_seq, 4, block_tokens)
    index_q, weights = queries_of(dtype, len(row_seq), heads)
    whole = index_q, weights, stored.index_pages, slots, ids, row_pos
    kept = slots.masked_fill(torch.rand(slots.shape) < 0.6, -1)
    parted = *whole[:2], window_with(stored, kept, block_tokens), kept, *whole[4:]
    pages, table = on_host(stored)

    host = HostBlocks(*on(device, pages, table, row_seq))
    found = refined(parted, block_tokens, rows, device, host)

    assert bool((kept != slots).any())
    assert_bits_equal(found, refined(whole, block_tokens, rows, device))


@pytest.mark.parametrize("block_tokens", [64, 128, 192])
def test_what_the_host_does_not_have_is_no_token_and_without_an_id_nothing(
    block_tokens: int, device: str
) -> None:
    layout = index_layout("fp8")
    stored = paged_keys((700, 700), layout, block_tokens=block_tokens)
    pages, table = on_host(stored)
    table[0, 1:3] = -1
    table[1, 9:] = -1
    row_seq, row_pos = int32(0, 1, -1, 1), int32(699, 699, -1, 250)
    ids = torch.arange(4).int().repeat(4, 1)
    ids[:, 2], ids[1, 3] = -1, 500  # a block beyond the table
    slots = torch.full_like(ids, -1)
    window = torch.full((block_tokens // 64, layout.page_bytes), NAN_BYTE).byte()
    inputs = *queries(4, 8), window, slots, ids, row_pos
    expected = untouched(4, 4 * block_tokens)
    refine_logits_ref(*inputs, block_tokens, layout, expected, HostBlocks(pages, table, row_seq))

    host = HostBlocks(*on(device, pages, table, row_seq))
    found = refined(inputs, block_tokens, layout, device, host)

    assert_bits_equal((found == UNTOUCHED), (expected == UNTOUCHED))
    assert_near_largest(
        found.masked_fill(found == UNTOUCHED, 0.0),
        expected.masked_fill(expected == UNTOUCHED, 0.0),
        TOLERANCES[F32],
    )
    assert bool((found[2] == UNTOUCHED).all())
    assert bool((found[0, 64:128] == -torch.inf).all())


@pytest.mark.parametrize(("rows", "m"), [(0, 3), (2, 0)])
def test_nothing_to_refine_leaves_nothing(rows: int, m: int, device: str) -> None:
    layout = index_layout("fp8")
    none = torch.full((rows, m), -1).int()
    inputs = *queries(rows, 4), torch.zeros(2, layout.page_bytes).byte(), none, none

    out = refined((*inputs, torch.zeros(rows).int()), 128, layout, device)

    assert out.shape == (rows, m * 128)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "heads"), [(1, 64), (8, 32), (128, 64), (4096, 64)])
def test_production_rows_have_the_bits_of_the_paged_logits_twenty_times(
    rows: int, heads: int
) -> None:
    layout, length = index_layout("fp8"), 16384
    stored = paged_keys((length,), layout, block_tokens=128)
    row_seq = torch.zeros(rows).int()
    row_pos = length - 1 - torch.arange(rows).int()
    slots, ids = chosen_blocks(stored, row_seq, 64, 128)
    index_q, weights = on("cuda", *queries_of(F8, rows, heads))
    pool, table = on("cuda", stored.index_pages, stored.page_table)
    held = on("cuda", slots, ids, row_pos)
    out = untouched(rows, 64 * 128, "cuda")

    refine_logits_triton(index_q, weights, pool, *held, 128, layout, out)

    some = torch.arange(0, rows, max(1, rows // 16), device="cuda")
    flat = paged_index_logits_triton(
        index_q[some], weights[some], pool, table, row_seq.cuda()[some], held[2][some] + 1, layout
    )
    column = (held[1][some][:, :, None] * 128 + torch.arange(128, device="cuda")).flatten(1)
    assert_bits_equal(out[some], flat.gather(1, column.long()))
    again = torch.empty_like(out)
    for _ in range(19):
        again.fill_(UNTOUCHED)
        refine_logits_triton(index_q, weights, pool, *held, 128, layout, again)
        assert torch.equal(again, out)


@pytest.mark.gpu
def test_blocks_are_read_from_pinned_memory_in_place() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((32768,), layout, block_tokens=128)
    row_seq = torch.zeros(16).int()
    slots, ids = chosen_blocks(stored, row_seq, 64, 128)
    index_q, weights = queries_of(F8, 16, 64)
    whole = index_q, weights, stored.index_pages, slots, ids, torch.full((16,), 32767).int()
    kept = slots.masked_fill(torch.rand(slots.shape) < 0.3, -1)
    parted = *whole[:2], window_with(stored, kept, 128), kept, *whole[4:]
    pages, table = on_host(stored)

    host = HostBlocks(pinned_on_gpu(pages), *on("cuda", table, row_seq))
    found = refined(parted, 128, layout, "cuda", host)

    assert_bits_equal(found, refined(whole, 128, layout, "cuda"))


@pytest.mark.gpu
def test_a_window_past_two_to_the_31_bytes_is_addressed() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((128,), layout, block_tokens=128)
    num_slots = 2**31 // (2 * layout.page_bytes) + 5
    pages = torch.full((num_slots * 2, layout.page_bytes), NAN_BYTE, dtype=torch.uint8).cuda()
    pages[-2:] = stored.index_pages[stored.page_table[0].long()].cuda()
    query = on("cuda", *queries_of(F8, 1, 64))
    block, pos = on("cuda", int32(0)[None], int32(100))
    near = torch.cat([pages[-2:], pages[:2]])

    far_out = untouched(1, 128, "cuda")
    refine_logits_triton(
        *query, pages, int32(num_slots - 1)[None].cuda(), block, pos, 128, layout, far_out
    )
    near_out = untouched(1, 128, "cuda")
    refine_logits_triton(*query, near, block, block, pos, 128, layout, near_out)

    assert_bits_equal(far_out, near_out)
    assert bool(far_out[0, :101].isfinite().all())


@pytest.mark.gpu
def test_a_graph_follows_new_blocks_and_positions_and_allocates_nothing() -> None:
    layout = index_layout("fp8")
    stored = paged_keys((900, 300), layout, block_tokens=128)
    row_seq, new_seq = int32(0, -1, -1, 1), int32(1, 0, -1, 0)
    row_pos, new_pos = int32(40, -1, -1, 299), int32(299, 899, -1, 128)
    old, new = (chosen_blocks(stored, seq, 4, 128) for seq in (row_seq, new_seq))
    pages, table = on_host(stored)
    pool = on("cuda", *queries_of(F8, 4, 64), stored.index_pages)
    held = on("cuda", *old, row_pos, row_seq)
    host = HostBlocks(*on("cuda", pages, table), held[3])
    new_slots = new[0].masked_fill(torch.rand(4, 4) < 0.5, -1)
    out = untouched(4, 512, "cuda")

    def call() -> None:
        refine_logits_triton(*pool, *held[:3], 128, layout, out, host)

    replay(call, [*held, out], [new_slots, new[1], new_pos, new_seq, untouched(4, 512)])

    again = untouched(4, 512, "cuda")
    refine_logits_triton(*pool, *on("cuda", new_slots, new[1], new_pos), 128, layout, again, host)
    assert_bits_equal(out, again)
    assert_allocates_nothing(call)
