"""The benchmark harness: rows, files, suites, timing."""

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command import run_hisparse
from hisparse_sidecar.cli import main
from hisparse_sidecar.cli.bench.environment import find_commit
from hisparse_sidecar.cli.bench.rows import (
    COLUMNS,
    Environment,
    Measurement,
    Row,
    make_row,
    read_rows,
    results_file,
    write_rows,
)
from hisparse_sidecar.cli.bench.suite import Suite, choose_suites, load_suites
from hisparse_sidecar.cli.bench.timing import Stopwatch, summarize

ENVIRONMENT = Environment("cpu: A Fine CPU (2 cores)", "", "2.15.0", "3.9.0", "abc1234")
SUITE_FILE = '''\
"""A suite for tests."""

from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite


def _measure(stopwatch):
    timing = stopwatch.time(lambda: None)
    yield Measurement("nothing", "runs", timing.num_runs, "higher", "half", 2.0)


SUITE = Suite("tiny", "does nothing", "cpu", _measure)
'''


def _suite(name: str) -> Suite:
    def measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
        yield Measurement("a", "b", 1.0, "higher")

    return Suite(name, "", "cpu", measure)


def _row(case: str, ours: float, peer: str = "") -> Row:
    value = 2.0 if peer else None
    return make_row("s", Measurement(case, "GB/s", ours, "higher", peer, value), ENVIRONMENT)


def test_the_columns_are_the_agreed_ones() -> None:
    agreed = "suite,case,metric,ours,peer,peer_value,ratio,gpu,driver,torch,triton,commit"
    assert ",".join(COLUMNS) == agreed


@pytest.mark.parametrize(("better", "ratio"), [("higher", 0.5), ("lower", 2.0)])
def test_a_ratio_above_one_means_ours_is_better(better: str, ratio: float) -> None:
    measured = Measurement("c", "m", 3.0, better, "peer", 6.0)  # type: ignore[arg-type]
    assert measured.ratio == ratio
    assert make_row("s", measured, ENVIRONMENT).ratio == f"{ratio:g}"


def test_without_a_peer_its_columns_are_empty() -> None:
    row = _row("c", 3.0)
    assert (row.ours, row.peer, row.peer_value, row.ratio) == ("3", "", "", "")


def test_a_new_row_replaces_its_predecessor_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "results" / "s-cpu.csv"
    write_rows(path, [_row("a", 1.0), _row("b", 2.0), _row("a", 3.0, peer="p")])
    held = write_rows(path, [_row("b", 5.0), _row("c", 6.0)])

    shown = [(row.case, row.ours, row.peer) for row in read_rows(path)]
    assert shown == [("a", "1", ""), ("b", "5", ""), ("a", "3", "p"), ("c", "6", "")]
    assert held == read_rows(path)
    assert list(tmp_path.glob("results/*")) == [path]


def test_replace_forgets_what_the_file_held(tmp_path: Path) -> None:
    path = tmp_path / "s-cpu.csv"
    write_rows(path, [_row("a", 1.0)])
    write_rows(path, [_row("b", 2.0)], replace=True)
    assert [row.case for row in read_rows(path)] == ["b"]


def test_a_file_with_other_columns_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "s-cpu.csv"
    path.write_text("suite,case\n1,2\n")
    with pytest.raises(ValueError, match="columns are suite,case, need suite,case,metric,"):
        write_rows(path, [_row("a", 1.0)])
    assert path.read_text() == "suite,case\n1,2\n"


@pytest.mark.parametrize(
    ("gpu", "name"),
    [("cpu: AMD EPYC (2 cores)", "s-cpu.csv"), ("NVIDIA H200", "s-nvidia-h200.csv")],
)
def test_each_suite_and_gpu_has_a_file(gpu: str, name: str) -> None:
    assert results_file(Path("out"), "s", gpu) == Path("out") / name


def test_an_unknown_suite_is_refused_with_the_sorted_list() -> None:
    suites = {name: _suite(name) for name in ("step", "copy", "core")}
    with pytest.raises(ValueError, match="unknown suite speed; known suites: copy, core, step"):
        choose_suites(suites, ["copy", "speed"])
    assert [suite.name for suite in choose_suites(suites, [])] == ["copy", "core", "step"]


def test_a_suite_file_must_define_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "suite_other.py").write_text(SUITE_FILE)
    with pytest.raises(ValueError, match="SUITE is 'tiny', need a Suite named 'other'"):
        load_suites(tmp_path)


def test_p99_is_the_nearest_rank() -> None:
    timing = summarize([float(number) for number in range(200)])
    assert (timing.num_runs, timing.median_seconds, timing.p99_seconds) == (200, 99.5, 197.0)
    assert summarize([1.0, 3.0, 2.0]).p99_seconds == 3.0


def test_warm_ups_are_run_and_not_timed() -> None:
    calls: list[int] = []
    timing = Stopwatch(num_warm_ups=2, num_runs=3).time(lambda: calls.append(1))
    assert (len(calls), timing.num_runs) == (5, 3)
    with pytest.raises(ValueError, match="0 runs asked for, at least 0 and 1 needed"):
        Stopwatch(1, 0)


def test_outside_of_a_repository_there_is_no_commit(tmp_path: Path) -> None:
    assert find_commit(tmp_path) == ""


def test_bench_writes_the_rows_that_it_shows(tmp_path: Path) -> None:
    suites, out = tmp_path / "suites", tmp_path / "out"
    suites.mkdir()
    (suites / "suite_tiny.py").write_text(SUITE_FILE)

    options = ("--suites-dir", str(suites), "--out", str(out), "--runs", "4")
    done = run_hisparse("bench", "tiny", "--json", *options)

    assert done.exit_code == 0, done.stderr
    file = out / "tiny-cpu.csv"
    assert done.json["files"] == [str(file)]
    with file.open(newline="") as lines:
        assert list(csv.DictReader(lines)) == done.json["rows"]
    (row,) = done.json["rows"]
    assert tuple(row) == COLUMNS
    assert (row["ours"], row["peer_value"], row["ratio"]) == ("4", "2", "2")
    assert row["gpu"].startswith("cpu: ")


def test_bench_refuses_an_unknown_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert "unknown suite speed; known suites: copy, core, demo, step" in written.err


def test_bench_lists_the_suites_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("copy", "core", "demo", "step"))


def test_a_plot_is_an_image_beside_the_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    from hisparse_sidecar.cli.bench.plot import plot_rows

    path = tmp_path / "s-cpu.png"
    plot_rows([_row("a", 1.0), _row("b", 2.0, peer="p")], path)
    assert path.read_bytes().startswith(b"\x89PNG")
