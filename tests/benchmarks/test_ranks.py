"""The suite `ranks` at its smallest: times of ranks in processes of their own."""

from benchmarks.ranks.plans import time_alone, time_ranks
from benchmarks.suite_ranks import _compared
from hisparse_sidecar.cli.bench.timing import summarize


def test_every_rank_tells_the_seconds_of_each_step() -> None:
    by_rank = [*time_ranks(2, 2, 100, 3), time_alone(2, 100, 3)]
    assert [len(seconds) for seconds in by_rank] == [3, 3, 3]
    assert all(one > 0 for seconds in by_rank for one in seconds)


def test_rows_have_the_ranks_beside_the_manager_alone() -> None:
    rows = list(_compared("2 ranks", "rank 0's ", summarize([3e-4]), summarize([1e-4])))
    assert [row.metric for row in rows] == ["rank 0's median us", "rank 0's p99 us"]
    assert [round(row.ours) for row in rows] == [300, 300]
