"""Operations, bytes and the least time of the ops, against numbers counted by hand."""

import pytest

from benchmarks.ops.count import (
    append_work,
    attention_work,
    logits_work,
    moved_work,
    prefill_pairs,
    rebuild_work,
    release_work,
    resolve_work,
    resum_work,
    route_work,
    selection_work,
    spill_work,
    swap_in_blocks_work,
    swap_in_work,
    topk_work,
)
from benchmarks.ops.inputs import num_sets
from benchmarks.ops.timing import runs_that_fit
from benchmarks.ops.work import Ceilings, Work
from hisparse_kernels.layouts import KV_LAYOUTS

CEILINGS = Ceilings(fp8=1000.0, bf16=500.0, device=100.0, to_device=10.0, to_host=5.0)


@pytest.mark.parametrize(
    ("rows", "keys", "pairs"),
    [(1, 7, 7), (3, 5, 3 + 4 + 5), (4, 4, 1 + 2 + 3 + 4), (4096, 65536, 260048896)],
)
def test_each_prefill_row_sees_one_key_more_than_the_one_before(
    rows: int, keys: int, pairs: int
) -> None:
    assert prefill_pairs(rows, keys) == pairs


def test_logits_multiply_every_pair_and_read_every_key_once() -> None:
    work = logits_work(pairs=1000, rows=10, heads=64, keys_read=100)
    assert work.operations == 1000 * 64 * 128 * 2
    assert work.device_bytes == 10 * 64 * (128 + 4) + 100 * 132 + 1000 * 4
    assert (work.link_bytes, work.precision) == (0, "fp8")


def test_a_selection_writes_what_it_chose_and_no_logits() -> None:
    work = selection_work(pairs=1000, rows=10, heads=64, keys_read=100, topk=7)
    assert work.operations == 1000 * 64 * 128 * 2
    assert work.device_bytes == 10 * 64 * (128 + 4) + 100 * 132 + 10 * 7 * 4


def test_attention_reads_each_listed_row_once() -> None:
    work = attention_work(2, 16, 2048, rows_read=3000, layout=KV_LAYOUTS["fp8_ds_mla"])
    assert work.operations == 2 * 16 * 2048 * (576 + 512) * 2
    queries_and_outputs = 2 * 16 * (576 + 512) * 2
    assert work.device_bytes == queries_and_outputs + 2 * 2048 * 4 + 3000 * 656
    assert work.precision == "bf16"


@pytest.mark.parametrize(
    ("work", "device_bytes"),
    [
        (moved_work(3, 10, 4), 42),
        (topk_work(2, 8192, 2048), 2 * (8192 + 2048) * 4),
        (append_work(64, 64, closed_blocks=0), 64 * 2 * 132 + 64 * 2 * 512),
        (append_work(4096, 1, closed_blocks=32), 4096 * 264 + 1024 + 32 * 132),
        (rebuild_work(1024, 128), 1024 * 132 + 8 * 132),
        (resum_work(2, open_tokens=100), 2 * (100 * 132 + 512)),
        (resolve_work(items=8, slots=16, misses=3), 8 * 14 + 16 * 4 + 3 * 16),
        (release_work(4096), 4096 * 14),
    ],
)
def test_bytes_are_counted_once_read_and_once_written(work: Work, device_bytes: int) -> None:
    assert (work.device_bytes, work.operations, work.link_bytes) == (device_bytes, 0, 0)


def test_routing_multiplies_heads_with_groups_and_reads_all_blocks() -> None:
    work = route_work(rows=4, heads=64, blocks=1024, group_blocks=8, sequences=2)
    assert work.operations == 4 * 64 * 128 * 2 * (1024 / 8)
    assert work.device_bytes == 4 * 64 * 132 + 2 * 1024 * 132


def test_copies_count_the_same_bytes_on_the_link_and_in_device_memory() -> None:
    rows_in = swap_in_work(misses=10, row_bytes=656, items=100)
    assert (rows_in.to_device_bytes, rows_in.device_bytes) == (6560, 6560 + 800)
    blocks_in = swap_in_blocks_work(misses=3, block_tokens=128)
    assert (blocks_in.to_device_bytes, blocks_in.device_bytes) == (3 * 128 * 132, 3 * 128 * 132)
    out = spill_work(rows=10, row_bytes=656)
    assert (out.to_host_bytes, out.device_bytes, out.link_bytes) == (6560, 6560, 6560)


@pytest.mark.parametrize(
    ("work", "seconds", "metric", "rate"),
    [
        (Work(operations=4000, device_bytes=100), 4.0, "TFLOP/s", 1000e-12),
        (Work(operations=4000, device_bytes=100, precision="bf16"), 8.0, "TFLOP/s", 500e-12),
        (Work(operations=4000, device_bytes=900), 9.0, "GB/s", 100e-9),
        (Work(device_bytes=100, to_device_bytes=100), 10.0, "link GB/s", 10e-9),
        (Work(device_bytes=100, to_host_bytes=100), 20.0, "link GB/s", 5e-9),
    ],
)
def test_the_slowest_resource_bounds_the_time(
    work: Work, seconds: float, metric: str, rate: float
) -> None:
    assert work.floor_seconds(CEILINGS) == seconds
    assert work.rate(seconds, CEILINGS) == (metric, pytest.approx(rate))


def test_intensity_is_operations_a_byte_and_0_for_a_copy() -> None:
    assert Work(operations=600, device_bytes=200).intensity == 3
    assert Work(to_device_bytes=200).intensity == 0


@pytest.mark.parametrize(
    ("bytes_each", "sets"), [(1, 16), (10 << 20, 13), (64 << 20, 2), (1 << 30, 1)]
)
def test_sets_of_inputs_together_pass_the_cache(bytes_each: int, sets: int) -> None:
    assert num_sets(bytes_each) == sets


@pytest.mark.parametrize(
    ("wanted", "seconds", "runs"), [(20, 1e-3, 20), (20, 0.1, 10), (20, 3.0, 5), (2, 3.0, 2)]
)
def test_long_pieces_are_run_less_often(wanted: int, seconds: float, runs: int) -> None:
    assert runs_that_fit(wanted, seconds) == runs
