from collections import defaultdict

import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.gpu.spill import spill_triton
from hisparse_kernels.gpu.swap_in import swap_in_blocks_triton, swap_in_triton
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.swap_in import FreshRows, swap_in_blocks_ref, swap_in_ref
from tests.kernels.gpu.graphs import assert_allocates_nothing, pinned_on_gpu, replay

ROW_BYTES = pytest.mark.parametrize("row_bytes", [132, 528, 656, 1152, 2304])
PAGE_BYTES = pytest.mark.parametrize("page_bytes", [8448, 32768])
WILD = 2**30  # what entries of a plan hold beyond the count


def random_bytes(rows: int, row_bytes: int, *, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (rows, row_bytes)).byte()


def random_plan(
    counts: list[int], num_items: int, num_slots: int, cap: int, *, seed: int = 0
) -> MissPlan:
    """Distinct ascending items of each sequence, to slots that no other miss takes."""
    torch.manual_seed(seed)
    item, dst = torch.full((2, len(counts), cap), WILD).int()
    slots = torch.randperm(num_slots).int()
    for seq, count in enumerate(counts):
        if count > 0:
            item[seq, :count] = torch.randperm(num_items)[:count].sort().values.int()
            dst[seq, :count], slots = slots[:count], slots[count:]
    count = torch.tensor(counts, dtype=torch.int32)
    return MissPlan(item, dst, count, count)


def tensors(plan: MissPlan) -> list[torch.Tensor]:
    return [plan.miss_item, plan.miss_dst, plan.miss_count, plan.item_count]


def on(device: str, plan: MissPlan) -> MissPlan:
    return MissPlan(*(tensor.to(device) for tensor in tensors(plan)))


def without_refusals(plan: MissPlan) -> MissPlan:
    """The plan as the reference can read it: a refused sequence has no misses."""
    count = plan.miss_count.clamp(min=0)
    return MissPlan(plan.miss_item, plan.miss_dst, count, count)


def fresh_rows(
    num_fresh: list[int], first_item: list[int], row_bytes: int, *, seed: int = 2
) -> FreshRows:
    """So many fresh rows of each sequence, then padding rows."""
    first_row = [sum(num_fresh[:seq]) for seq in range(len(num_fresh))]
    rows = random_bytes(sum(num_fresh) + 3, row_bytes, seed=seed)
    places = (torch.tensor(numbers, dtype=torch.int32) for numbers in (first_item, first_row))
    return FreshRows(rows, *places, torch.full((len(num_fresh),), WILD, dtype=torch.int32))


def fresh_on(device: str, fresh: FreshRows) -> FreshRows:
    return FreshRows(*(tensor.clone().to(device) for tensor in fresh_tensors(fresh)))


def fresh_tensors(fresh: FreshRows) -> list[torch.Tensor]:
    return [tensor for tensor in vars(fresh).values() if tensor is not None]


@ROW_BYTES
@pytest.mark.parametrize(
    ("counts", "num_fresh"),
    [
        pytest.param([0, 192, -1, 60], [1, 1, 1, 1], id="one_each"),
        pytest.param([192, 192, 150], [1, 3, 2], id="several"),
        pytest.param([192, 100], [70, 33], id="more_than_are_counted_at_once"),
        pytest.param([192], [192], id="nothing_else"),
    ],
)
@pytest.mark.parametrize("is_known", [False, True], ids=["counted", "known"])
def test_fresh_rows_come_from_the_step_and_the_others_from_the_host(
    row_bytes: int, counts: list[int], num_fresh: list[int], is_known: bool, device: str
) -> None:
    host, expected = random_bytes(12 * 64, row_bytes), random_bytes(700, row_bytes, seed=1)
    page_table = torch.randperm(12)[: 3 * len(counts)].view(-1, 3).int()
    plan = random_plan(counts, 3 * 64, 700, 192)
    wanted = fresh_rows(num_fresh, [3 * 64 - count for count in num_fresh], row_bytes)
    if is_known:
        wanted = FreshRows(*fresh_tensors(wanted)[:3])
    hot, fresh = expected.clone().to(device), fresh_on(device, wanted)
    swap_in_ref(host, page_table, without_refusals(plan), expected, wanted)

    swap_in_triton(host.to(device), page_table.to(device), on(device, plan), hot, fresh)

    assert_bits_equal(hot.cpu(), expected)
    if not is_known:
        assert fresh.num_missed.tolist() == wanted.num_missed.tolist()
        assert 0 < sum(wanted.num_missed.tolist()) <= sum(num_fresh)


def test_a_padding_row_has_no_fresh_misses(device: str) -> None:
    """Its position is -1, as that of a plan's entries that mean nothing could be."""
    host, hot = random_bytes(64, 528), random_bytes(8, 528, seed=1)
    plan, fresh = random_plan([0, -1], 64, 8, 4), fresh_rows([1, 1], [-1, -1], 528)
    found, table = fresh_on(device, fresh), torch.zeros(2, 1, dtype=torch.int32, device=device)

    swap_in_triton(host.to(device), table, on(device, plan), hot.to(device), found)

    assert found.num_missed.tolist() == [0, 0]


@ROW_BYTES
@pytest.mark.parametrize(
    ("counts", "cap"),
    [
        pytest.param([0, 0], 4, id="no_misses"),
        pytest.param([1], 1, id="one_row"),
        pytest.param([5, 0, -1, 130], 200, id="refused_among_others"),
        pytest.param([63, 64, 65], 65, id="full_plans"),
        pytest.param([], 4, id="no_sequences"),
        pytest.param([0], 0, id="no_room"),
    ],
)
def test_missed_rows_arrive_byte_for_byte_and_others_stay(
    row_bytes: int, counts: list[int], cap: int, device: str
) -> None:
    host, expected = random_bytes(12 * 64, row_bytes), random_bytes(300, row_bytes, seed=1)
    page_table = torch.full((len(counts), 4), -1).int()
    page_table[:, :3] = torch.randperm(12)[: 3 * len(counts)].view(-1, 3).int()
    plan = random_plan(counts, 3 * 64, 300, cap)
    hot = expected.clone().to(device)
    swap_in_ref(host, page_table, without_refusals(plan), expected)

    swap_in_triton(host.to(device), page_table.to(device), on(device, plan), hot)

    assert_bits_equal(hot.cpu(), expected)


@pytest.mark.parametrize("max_programs", [1, 2, 32])
def test_any_number_of_programs_brings_all_rows_of_some_sequences(
    max_programs: int, device: str
) -> None:
    host, expected = random_bytes(12 * 64, 656), random_bytes(700, 656, seed=1)
    page_table = torch.randperm(12).view(4, 3).int().to(device)
    plan = random_plan([192, 5, 0, 60], 3 * 64, 700, 192)
    wanted = fresh_rows([1, 2, 1, 3], [191, 190, 191, 189], 656)
    hot, fresh, held = expected.clone().to(device), fresh_on(device, wanted), on(device, plan)
    swap_in_ref(host, page_table.cpu(), plan, expected, wanted)

    for some in (slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 4)):
        rows = MissPlan(*(tensor[some] for tensor in tensors(held)))
        own = FreshRows(fresh.rows, *(tensor[some] for tensor in fresh_tensors(fresh)[1:]))
        swap_in_triton(host.to(device), page_table[some], rows, hot, own, max_programs)

    assert_bits_equal(hot.cpu(), expected)
    assert fresh.num_missed.tolist() == wanted.num_missed.tolist()


def test_programs_beside_others_do_not_start_before_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They would take room of a GPU while they wait."""
    early: list[bool] = []

    def launch(*_: object, **options: object) -> None:
        early.append("launch_pdl" in options)

    kernel: dict[tuple[int, int], object] = defaultdict(lambda: launch)
    monkeypatch.setattr("hisparse_kernels.gpu.swap_in._swap_in_kernel", kernel)
    monkeypatch.setattr(
        "hisparse_kernels.gpu.swap_in.overlap_options", lambda: {"launch_pdl": True}
    )
    plan, table = random_plan([4], 64, 64, 4), torch.zeros(1, 1, dtype=torch.int32)
    for max_programs in (None, 32):
        rows = random_bytes(64, 656)
        swap_in_triton(rows, table, plan, rows, None, max_programs)
    assert early == [True, False]


@pytest.mark.parametrize("row_bytes", [16, 48, 4112])
def test_rows_of_any_multiple_of_16_bytes_arrive(row_bytes: int, device: str) -> None:
    host, expected = random_bytes(2 * 64, row_bytes), random_bytes(40, row_bytes, seed=1)
    page_table, plan = torch.tensor([[1, 0]]).int(), random_plan([33], 128, 40, 33)
    hot = expected.clone().to(device)
    swap_in_ref(host, page_table, plan, expected)

    swap_in_triton(host.to(device), page_table.to(device), on(device, plan), hot)

    assert_bits_equal(hot.cpu(), expected)


@PAGE_BYTES
@pytest.mark.parametrize("pages_per_block", [1, 2, 3])
def test_missed_blocks_arrive_and_pages_not_there_yet_are_left(
    page_bytes: int, pages_per_block: int, device: str
) -> None:
    host = random_bytes(20, page_bytes)
    expected = random_bytes(8 * pages_per_block, page_bytes, seed=1)
    page_table = torch.full((4, 3 * pages_per_block - 1), -1).int()  # cuts the last block
    page_table[0] = torch.randperm(20)[: page_table.shape[1]].int()
    page_table[1, :1] = 3
    page_table[3, : pages_per_block + 1] = torch.randperm(20)[: pages_per_block + 1].int()
    plan = random_plan([3, 2, -1, 2], 3, 8, 3)
    window = expected.clone().to(device)
    swap_in_blocks_ref(host, page_table, without_refusals(plan), expected, 64 * pages_per_block)

    swap_in_blocks_triton(
        host.to(device), page_table.to(device), on(device, plan), window, 64 * pages_per_block
    )

    assert_bits_equal(window.cpu(), expected)


def test_a_column_slice_of_a_page_table_is_read_by_its_strides(device: str) -> None:
    host, expected = random_bytes(4 * 64, 656), random_bytes(9, 656, seed=1)
    page_table = torch.tensor([[9, 1, 9, 2], [9, 3, 9, 0]]).int()[:, 1::2]
    plan = random_plan([4, 3], 128, 9, 5)
    hot = expected.clone().to(device)
    swap_in_ref(host, page_table, plan, expected)

    wide = torch.tensor([[9, 1, 9, 2], [9, 3, 9, 0]]).int().to(device)
    swap_in_triton(host.to(device), wide[:, 1::2], on(device, plan), hot)

    assert_bits_equal(hot.cpu(), expected)


@pytest.mark.parametrize("row_bytes", [528, 656])
def test_every_code_scale_and_rope_byte_survives_the_way_to_the_host_and_back(
    row_bytes: int, device: str
) -> None:
    rows = torch.arange(256).byte()[:, None].repeat(1, row_bytes)  # NaN codes are bytes too
    rows[:, 512:] += torch.arange(row_bytes - 512).byte()  # scales and rope go through all bytes
    host = torch.zeros(5 * 64, row_bytes, dtype=torch.uint8, device=device)
    hot = torch.zeros(256, row_bytes, dtype=torch.uint8, device=device)
    page_table = torch.tensor([[4, 0, 2, 1]]).int()
    positions = torch.arange(256)
    dst = page_table[0, positions // 64].long() * 64 + positions % 64
    count = torch.tensor([256]).int()
    plan = MissPlan(positions[None].int(), positions.flip(0)[None].int(), count, count)

    spill_triton(rows.to(device), dst.to(device), host)
    swap_in_triton(host, page_table.to(device), on(device, plan), hot)

    assert_bits_equal(hot.cpu(), rows.flip(0))


@pytest.mark.gpu
@pytest.mark.parametrize("row_bytes", [656, 8448])
def test_rows_past_two_to_the_31_bytes_arrive(row_bytes: int) -> None:
    num_pages = 2**31 // (64 * row_bytes) + 2
    pool = torch.zeros(num_pages * 64, row_bytes, dtype=torch.uint8, device="cuda")
    page_table = torch.tensor([[num_pages - 1]]).int().cuda()
    pool[-64:] = random_bytes(64, row_bytes).cuda()
    count = torch.tensor([2]).int()
    near = on(
        "cuda", MissPlan(torch.tensor([[1, 63]]).int(), torch.tensor([[1, 0]]).int(), count, count)
    )
    hot = torch.zeros(2, row_bytes, dtype=torch.uint8, device="cuda")

    swap_in_triton(pool, page_table, near, hot)
    assert_bits_equal(hot.cpu(), pool[[-1, -63]].cpu())

    far = MissPlan(near.miss_item, near.miss_dst + (num_pages - 1) * 64 - 2, *[near.miss_count] * 2)
    swap_in_triton(pool, page_table, far, pool)
    assert_bits_equal(pool[(num_pages - 1) * 64 - 2 :][:2].cpu(), hot.cpu())


@pytest.mark.gpu
@PAGE_BYTES
def test_blocks_past_two_to_the_31_bytes_arrive(page_bytes: int) -> None:
    num_pages = 2**31 // page_bytes // 2 * 2 + 4
    pool = torch.zeros(num_pages, page_bytes, dtype=torch.uint8, device="cuda")
    pool[-2:] = random_bytes(2, page_bytes).cuda()
    page_table = torch.tensor([[num_pages - 1, num_pages - 2]]).int().cuda()
    count = torch.tensor([1]).int()
    slot = torch.tensor([[num_pages // 2 - 2]]).int()
    plan = on("cuda", MissPlan(torch.tensor([[0]]).int(), slot, count, count))

    swap_in_blocks_triton(pool, page_table, plan, pool, 128)

    assert_bits_equal(pool[-4:-2].cpu(), pool[[-1, -2]].cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("num_seqs", [1, 8, 128])
def test_rows_of_pinned_host_memory_arrive_in_every_run(num_seqs: int) -> None:
    host = random_bytes(512 * 64, 656)
    view, hot = pinned_on_gpu(host), torch.zeros(num_seqs * 256, 656, dtype=torch.uint8)
    page_table = torch.randint(0, 512, (num_seqs, 512)).int()
    plan = random_plan([205] * num_seqs, 512 * 64, len(hot), 2048)
    expected = hot.clone()
    swap_in_ref(host, page_table, plan, expected)
    page_table, plan = page_table.cuda(), on("cuda", plan)

    for _ in range(20):
        target = hot.cuda()
        swap_in_triton(view, page_table, plan, target)
        assert_bits_equal(target.cpu(), expected)


@pytest.mark.gpu
def test_a_graph_follows_new_plans_and_page_tables() -> None:
    host, pages = random_bytes(8 * 64, 656), random_bytes(8, 8448)
    hot, window = random_bytes(64, 656, seed=1), random_bytes(16, 8448, seed=1)
    table, new_table = torch.tensor([[0, 1], [2, 3]]).int(), torch.tensor([[7, 5], [4, -1]]).int()
    rows, new_rows = random_plan([9, 0], 64, 64, 32), random_plan([-1, 30], 64, 64, 32, seed=3)
    blocks, new_blocks = random_plan([1, 0], 1, 8, 4), random_plan([1, 1], 1, 8, 4, seed=3)
    held_rows, held_blocks, held_table = on("cuda", rows), on("cuda", blocks), table.cuda()
    on_gpu = [tensor.cuda() for tensor in (host, hot, pages, window)]
    wanted_fresh = fresh_rows([2, 44], [62, 20], 656, seed=4)  # items are below 64
    held_fresh = fresh_on("cuda", fresh_rows([44, 2], [20, 62], 656))

    def call() -> None:
        swap_in_triton(on_gpu[0], held_table, held_rows, on_gpu[1], held_fresh)
        swap_in_blocks_triton(on_gpu[2], held_table, held_blocks, on_gpu[3], 128)

    assert_allocates_nothing(call)
    plans = [*tensors(held_rows), *tensors(held_blocks), *fresh_tensors(held_fresh)]
    new_plans = [*tensors(new_rows), *tensors(new_blocks), *fresh_tensors(wanted_fresh)]
    replay(
        call,
        [held_table, *plans, on_gpu[1], on_gpu[3]],
        [new_table, *new_plans, hot, window],
    )

    swap_in_ref(host, new_table, without_refusals(new_rows), hot, wanted_fresh)
    assert held_fresh.num_missed.tolist() == wanted_fresh.num_missed.tolist()
    swap_in_blocks_ref(pages, new_table, new_blocks, window, 128)
    assert_bits_equal(on_gpu[1].cpu(), hot)
    assert_bits_equal(on_gpu[3].cpu(), window)
