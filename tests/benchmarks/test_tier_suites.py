"""The suites of the tiers: what they make of the lines that the core's programs print."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    suite_durability,
    suite_eviction,
    suite_prefix,
    suite_remote,
    suite_sessions,
    suite_stress,
    suite_tiers,
)
from benchmarks.cargo_runs import Line, bench_lines
from benchmarks.eviction.plot import plot_hit_rates, read_lines
from benchmarks.eviction.record import PAGE_BYTES, read_requests, record, trace_lines
from benchmarks.remote.overhead import BatchContest, Contest, local_store
from hisparse_sidecar._core import InvalidArgument
from hisparse_sidecar.cli.bench.rows import Environment, Measurement, make_row
from hisparse_sidecar.cli.stress.footprint import Footprint
from hisparse_sidecar.cli.stress.sampler import Opening, Sample
from hisparse_sidecar.cli.stress.settings import FAULTS
from hisparse_sidecar.cli.stress.soak import to_json

ENVIRONMENT = Environment("cpu: A Fine CPU (2 cores)", "", "2.15.0", "3.9.0", "abc1234")


def replayed(policy: str, hit_rate: float, nanoseconds: float, pages: int = 64) -> Line:
    line: Line = {"trace": "zipf_0.9", "policy": policy, "capacity_pages": pages}
    return line | {"hit_rate": hit_rate, "ns_per_request": nanoseconds, "requests": 9}


def policies(pages: int = 64) -> Iterator[Line]:
    yield replayed("lru", 0.4, 10.0, pages)
    yield replayed("s3_fifo", 0.5, 20.0, pages)


@pytest.mark.parametrize(("case", "plain"), [("spill", "pwrite"), ("restore", "pread")])
def test_a_rate_of_the_file_tier_is_the_median_beside_those_of_its_peers(
    case: str, plain: str
) -> None:
    line: Line = {"case": case, "page_bytes": 48 << 10, "gb_per_s": [3.0, 1.0, 2.0]}
    line |= {"plain_gb_per_s": [4.0, 4.0, 5.0], "dd_gb_per_s": [1.0, 1.0, 4.0]}
    found = list(suite_tiers.to_measurements(line))
    assert {one.case for one in found} == {f"{case}, pages of 48 KiB"}
    assert [(one.ours, one.peer, one.peer_value, one.ratio) for one in found] == [
        (2.0, f"plain {plain}", 4.0, 0.5),
        (2.0, "dd", 1.0, 2.0),
    ]
    assert found[1].ratio_spread is not None
    low, high = found[1].ratio_spread
    assert 1 / 4 <= low < 1 < high <= 3  # of nine pairs, 1/4 to 3


def test_a_recovery_is_its_seconds() -> None:
    line: Line = {"case": "recovery", "page_bytes": 48 << 10, "pages": 9, "segments": 2}
    found = list(suite_tiers.to_measurements(line | {"scanned": 1, "seconds": 0.25}))
    assert [(one.metric, one.ours) for one in found] == [("s", 0.25), ("segments scanned", 1)]
    assert {one.case for one in found} == {"recovery, pages of 48 KiB, 9 pages in 2 segments"}


def test_a_run_of_stress_is_its_faults_its_losses_and_its_times() -> None:
    times = {name: {"p50": 1.0, "p99": 2.0} for name in suite_stress._TIMED}
    names = (*suite_stress._DONE, *suite_stress._MUST_BE_0)
    report: dict[str, Any] = dict.fromkeys(names, 0)
    seen = [Sample(float(at), 0, Footprint(at << 20, 0, 40, 16), None, 0, {}) for at in range(241)]
    soak = to_json(seen, [Opening(float(at), 2.0, 4, 1) for at in range(241)])
    report |= {"seed": 7, "checked_bytes": 2e9, "recovery_ms": 3.0, "latency_us": times}
    report |= {"faults_injected": {"slow": 4}, "clients": {"slow": 5}, "soak": soak}
    found = {one.metric: one.ours for one in suite_stress.to_measurements(report)}
    assert (found["faults: slow"], found["slow clients"], found["GB compared"]) == (4, 5, 2.0)
    assert (found["pages lost acknowledged"], found["max recovery ms"]) == (0, 3.0)
    assert (found["open, p50 us"], found["flush, p99 us"]) == (1.0, 2.0)
    assert (found["RSS MiB, max"], found["RSS MiB/h"], found["fds, max"]) == (240, 3600, 40)
    assert (found["oldest lease s, at most"], found["open p50 drift %"]) == (0.0, 0.0)


def test_a_run_whose_servers_are_killed_has_no_rows_of_a_process() -> None:
    soak = to_json([Sample(0.0, 0, Footprint(1, 1, 1, 1), None, 0, {})], [])
    assert list(suite_stress._over_time(soak)) == [("oldest lease s, at most", 0.0)]
    assert "every fault" in suite_stress._case(1, FAULTS)
    assert "faults alloc io corrupt slow remote" in suite_stress._case(4, suite_stress._SOAK_FAULTS)


def test_lru_is_the_peer_of_the_other_policies() -> None:
    found = list(suite_eviction.to_measurements(policies()))
    assert [(one.metric, one.peer, one.ratio) for one in found] == [
        ("hit rate", "", None),
        ("ns a request", "", None),
        ("hit rate", "lru", 1.25),
        ("ns a request", "lru", 0.5),
    ]


def test_files_that_a_program_and_its_children_open_are_recorded(tmp_path: Path) -> None:
    for name, num_bytes in {"small": 1, "large": 2 * PAGE_BYTES + 1, "empty": 0}.items():
        (tmp_path / name).write_bytes(bytes(num_bytes))
    program = tmp_path / "program.py"
    child = "import sys; open(sys.argv[1]).close(); open(sys.argv[2]).close()"
    program.write_text(
        "import subprocess, sys\n"
        f"folder = {str(tmp_path)!r}\n"
        "open(folder + '/small').close(); open(folder + '/large').close()\n"
        "open(folder + '/written', 'w').close()\n"
        f"command = [sys.executable, '-c', {child!r}, folder + '/large', folder + '/empty']\n"
        "subprocess.run(command, check=True)\n"
    )
    found = record([str(program)])
    ours = {f"{path.stat().st_dev}:{path.stat().st_ino}": path.name for path in tmp_path.iterdir()}
    opened = [(ours[name], num_bytes) for name, num_bytes in found if name in ours]
    assert [each for each in opened if each[0] != "program.py"] == [
        ("small", 1),
        ("large", 2 * PAGE_BYTES + 1),
        ("large", 2 * PAGE_BYTES + 1),
        ("empty", 0),
    ]


def test_a_recorded_opening_asks_for_every_page_after_the_one_before(tmp_path: Path) -> None:
    opened = [("a", 1), ("b", PAGE_BYTES + 1), ("gone", 0), ("a", 1)]
    trace = tmp_path / "trace.csv.gz"
    trace.write_bytes(gzip.compress("\n".join(trace_lines(opened)).encode()))
    requests = ["0,0.0,", "1,1.0,", "1,1.1,1.0", "2,0.0,"]
    assert list(read_requests(trace)) == requests


def test_hit_rates_are_drawn_by_capacity(tmp_path: Path) -> None:
    measured = [
        *suite_eviction.to_measurements(policies(256)),
        *suite_eviction.to_measurements(policies(64)),
    ]
    rows = [make_row("eviction", one, ENVIRONMENT) for one in measured]
    lines = {"lru": [(64, 0.4), (256, 0.4)], "s3_fifo": [(64, 0.5), (256, 0.5)]}
    assert read_lines(rows) == {"zipf_0.9": lines}
    pytest.importorskip("matplotlib")
    plot_hit_rates(rows, tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    row = make_row("eviction", Measurement("a", "ns a request", 1.0, "lower"), ENVIRONMENT)
    with pytest.raises(ValueError, match="0 hit rates to draw"):
        plot_hit_rates([row], tmp_path / "drawn.png")


def test_rates_of_the_directory_are_the_median_and_the_slowest_round() -> None:
    line: Line = {"case": "match", "order": "lru", "prefix_pages": 8, "threads": 2}
    found = list(suite_prefix.to_measurements(line | {"millions_per_second": [5.0, 1.0, 3.0]}))
    assert [one.ours for one in found] == [3.0, 1.0]
    assert {one.case for one in found} == {"match, 8 pages, 2 threads, lru"}


def test_the_plan_of_a_step_has_a_median_and_a_p99() -> None:
    line: Line = {"case": "plan", "sequences": 256, "microseconds": [float(n) for n in range(101)]}
    found = list(suite_sessions.to_measurements(line))
    assert [round(one.ours) for one in found] == [50, 99]
    found = list(suite_sessions.to_measurements(line | {"case": "lookup", "sessions": 9}))
    assert {one.case for one in found} == {"lookup of one of 9 prompts of 16 pages, in Rust"}


def test_counts_of_a_long_test_are_rows() -> None:
    line: Line = {"case": "kills", "kills": 300, "wrong_bytes": 0}
    found = list(suite_durability.to_measurements(line))
    assert [(one.metric, one.ours, one.better) for one in found] == [
        ("kills", 300, "higher"),
        ("wrong bytes", 0, "lower"),
    ]
    assert {one.case for one in found} == {"file tier, kills"}


def test_each_of_our_sides_stands_beside_the_peers_of_its_direction() -> None:
    seconds = {
        "Mooncake put": [2e-6],
        "Mooncake put_from": [1e-6],
        "put": [4e-6],
        "Mooncake get": [8e-6],
        "Mooncake get_into": [3e-6],
        "read": [6e-6],
    }
    found = [(m.case, m.peer, m.ratio) for m in suite_remote.to_measurements("64 KiB", seconds)]
    assert found == [
        ("put, 64 KiB", "Mooncake put", pytest.approx(0.5)),
        ("put, 64 KiB", "Mooncake put_from", pytest.approx(0.25)),
        ("read, 64 KiB", "Mooncake get", pytest.approx(4 / 3)),
        ("read, 64 KiB", "Mooncake get_into", pytest.approx(0.5)),
    ]


def test_every_side_moves_every_page_of_a_real_store() -> None:
    try:
        with local_store(16 * 4000) as setting:
            seconds = Contest(setting, 4000).seconds(num_pages=3, num_rounds=2)
            usage = setting.tier.usage
            seconds |= BatchContest(setting, 4000).seconds(num_batches=2, num_rounds=2)
            both = setting.tier.usage
    except InvalidArgument as error:
        pytest.skip(str(error))
    assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys(seconds, 2)
    assert {name for name in seconds if not name.startswith("Mooncake")} == {
        "put",
        "put, short deadline",
        "put of shared memory",
        "read",
        "read, short deadline",
        "get",
        "put_many",
        "read_many",
    }
    assert (usage.puts, usage.hits, usage.misses) == (27, 27, 0)
    assert (both.puts - 27, both.hits - 27, both.misses) == (96, 96, 0)


def test_a_program_that_fails_is_an_error() -> None:
    if shutil.which("cargo") is None:
        pytest.skip("cargo is not installed")
    with pytest.raises(ValueError, match="--bench no_such_benchmark"):
        list(bench_lines("no_such_benchmark"))
