"""Ranks that share a host pool against a sidecar that is alone: the same bits, whoever is late."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.ranks import RankPlace
from tests.pipeline.world import Rows, run_step, small_config
from tests.ranks.life import Lived, live
from tests.ranks.processes import Group


@pytest.mark.parametrize(
    ("num_ranks", "seed", "most_delay_us"), [(2, 0, 0), (2, 1, 2000), (4, 2, 0), (4, 4, 1000)]
)
def test_ranks_see_what_a_sidecar_alone_sees(
    num_ranks: int, seed: int, most_delay_us: int, tmp_path: Path
) -> None:
    wanted = live(None, tmp_path, seed, 100)
    assert wanted.counts["cached"] > 0
    with Group(live, num_ranks, tmp_path, seed, 100, most_delay_us) as group:
        assert_the_same(group.reports(120), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_long_lives_of_ranks(num_ranks: int, tmp_path: Path) -> None:
    counts = Counter[str]()
    for seed in range(10 * num_ranks, 10 * num_ranks + 8 // num_ranks):
        wanted = live(None, tmp_path / str(seed), seed, 200)
        counts.update(wanted.counts)
        with Group(live, num_ranks, tmp_path / str(seed), seed, 200, 300 * (seed % 2)) as group:
            assert_the_same(group.reports(120), wanted)
    assert all(counts[what] > 0 for what in ("cached", "resumed", "promoted", "errors")), counts


@pytest.mark.gpu
@pytest.mark.parametrize(("num_ranks", "seed"), [(2, 4), (4, 5)])
def test_ranks_on_gpus_see_what_a_sidecar_alone_sees(
    num_ranks: int, seed: int, tmp_path: Path
) -> None:
    devices = tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    wanted = live(None, tmp_path, seed, 100, 0, devices)
    with Group(live, num_ranks, tmp_path, seed, 100, 2000, devices) as group:
        assert_the_same(group.reports(300), wanted)


def assert_the_same(reports: list[Lived], wanted: Lived) -> None:
    for rank, report in enumerate(reports):
        for number, (ours, theirs) in enumerate(zip(report.seen, wanted.seen, strict=True)):
            assert ours == theirs, f"rank {rank}, line {number}"
        assert report.pages == reports[0].pages, f"rank {rank}"
    assert reports[0].counts == wanted.counts


def spilled_in_decode(place: RankPlace | None) -> int:
    """Bytes that this rank wrote to the host pool in 300 decode steps."""
    with Sidecar(small_config(host_pages=16), place) as sidecar:
        sequence = sidecar.open(100, 300)
        run_step(sidecar, [Rows(sequence, 100, 1)], "prefill")
        before = sum(group.spilled_bytes for group in sidecar.stats().groups)
        for number in range(300):
            run_step(sidecar, [Rows(sequence, 1, number)], "decode")
        return sum(group.spilled_bytes for group in sidecar.stats().groups) - before


def test_ranks_write_a_decode_step_once_among_them() -> None:
    total = spilled_in_decode(None)
    with Group(spilled_in_decode, 2) as group:
        shares = group.reports(120)
    assert sum(shares) == total
    assert all(total // 4 < share < total for share in shares)
