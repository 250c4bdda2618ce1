"""The benchmark harness: rows, files, suites, timing."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command import run_hisparse
from hisparse_sidecar.cli import main
from hisparse_sidecar.cli.bench import environment
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
from hisparse_sidecar.cli.bench.run_suites import Results, draw_files, run_suites
from hisparse_sidecar.cli.bench.suite import Suite, choose_suites, load_suites, runnable_suites
from hisparse_sidecar.cli.bench.timing import Stopwatch, summarize

ENVIRONMENT = Environment("cpu: A Fine CPU (2 cores)", "", "2.15.0", "3.9.0", "abc1234")
SUITES = (
    "attend",
    "copy",
    "core",
    "demo",
    "durability",
    "engine",
    "eviction",
    "ops",
    "plan",
    "prefix",
    "ranks",
    "reference_step",
    "remote",
    "round_trip",
    "select",
    "service",
    "sessions",
    "step",
    "stress",
    "swap",
    "tiers",
)
SUITE_FILE = '''\
"""A suite for tests."""

from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite


def _measure(stopwatch):
    timing = stopwatch.time(lambda: None)
    yield Measurement("nothing", "runs", timing.num_runs, "higher", "half", 2.0)


SUITE = Suite("tiny", "does nothing", "cpu", _measure)
'''
GPU_SUITE_FILE = SUITE_FILE.replace('"tiny"', '"large"').replace('"cpu"', '"cuda"')
CASES_SUITE_FILE = '''\
"""A suite of two cases."""

from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite


def _measure(stopwatch):
    for case in ("copy 1", "copy 2"):
        if stopwatch.wants(case):
            yield Measurement(case, "runs", 1.0, "higher")


SUITE = Suite("cases", "two cases", "cpu", _measure)
'''


def _suite(name: str, device: str = "cpu") -> Suite:
    def measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
        yield Measurement("a", "b", 1.0, "higher")

    return Suite(name, "", device, measure)


def _suites_folder(tmp_path: Path, **files: str) -> tuple[str, ...]:
    """Options of `hisparse bench` for suites of that text, and for results beside them."""
    folder = tmp_path / "suites"
    folder.mkdir()
    for name, text in files.items():
        (folder / f"suite_{name}.py").write_text(text)
    return "--suites-dir", str(folder), "--out", str(tmp_path / "out")


def _row(case: str, ours: float, peer: str = "") -> Row:
    value = 2.0 if peer else None
    return make_row("s", Measurement(case, "GB/s", ours, "higher", peer, value), ENVIRONMENT)


def test_the_columns_are_the_agreed_ones() -> None:
    agreed = "suite,case,metric,ours,peer,peer_value,ratio,gpu,driver,torch,triton,commit"
    assert ",".join(COLUMNS) == f"{agreed},ratio_p10,ratio_p90"


@pytest.mark.parametrize(("better", "ratio"), [("higher", 0.5), ("lower", 2.0)])
def test_a_ratio_above_one_means_ours_is_better(better: str, ratio: float) -> None:
    measured = Measurement("c", "m", 3.0, better, "peer", 6.0)  # type: ignore[arg-type]
    assert measured.ratio == ratio
    assert make_row("s", measured, ENVIRONMENT).ratio == f"{ratio:g}"


def test_without_a_peer_its_columns_are_empty() -> None:
    row = _row("c", 3.0)
    assert (row.ours, row.peer, row.peer_value, row.ratio) == ("3", "", "", "")


def test_the_spread_of_a_ratio_is_written_where_it_is_known() -> None:
    spread = Measurement("c", "us", 2.0, "lower", "p", 6.0, ratio_spread=(2.5, 3.25))
    row = make_row("s", spread, ENVIRONMENT)
    assert (row.ratio, row.ratio_p10, row.ratio_p90) == ("3", "2.5", "3.25")
    assert (_row("c", 3.0).ratio_p10, _row("c", 3.0, peer="p").ratio_p90) == ("", "")


def test_a_file_from_before_the_spread_is_read_and_gains_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "s-cpu.csv"
    write_rows(path, [_row("a", 1.0, peer="p")])
    path.write_text(path.read_text().replace(",ratio_p10,ratio_p90", "").replace("1234,,", "1234"))
    assert path.read_text().endswith(",abc1234\n")

    write_rows(path, [_row("b", 2.0)])

    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [(row.case, row.ratio_p10) for row in read_rows(path)] == [("a", ""), ("b", "")]


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
    options = _suites_folder(tmp_path, tiny=SUITE_FILE)
    done = run_hisparse("bench", "tiny", "--json", "--runs", "4", *options)

    assert done.exit_code == 0, done.stderr
    file = tmp_path / "out" / "tiny-cpu.csv"
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
    assert f"unknown suite speed; known suites: {', '.join(SUITES)}" in written.err


def test_bench_lists_the_suites_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in SUITES)


def test_a_row_is_on_disk_before_the_next_one_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "s-cpu.csv"
    write_rows(path, [_row("old", 1.0)])
    seen: list[list[str]] = []

    def measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
        for case in ("a", "b"):
            yield Measurement(case, "GB/s", 1.0, "higher")
            seen.append([row.case for row in read_rows(path)])
        raise KeyboardInterrupt

    results = Results(tmp_path, replace=True, plot=False, checkout=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_suites([Suite("s", "", "cpu", measure)], Stopwatch(0, 1), results)
    assert seen == [["a"], ["a", "b"]]


def test_rows_name_the_commit_of_the_suites_wherever_they_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "find_commit", lambda checkout: f"of {checkout.name}")
    results = Results(tmp_path, replace=False, plot=False, checkout=Path("benchmarks"))
    (row,) = run_suites([_suite("s")], Stopwatch(0, 1), results).rows
    assert row.commit == "of benchmarks"


@pytest.mark.parametrize(
    ("cases", "run"), [("", ["copy 1", "copy 2"]), ("2$", ["copy 2"]), ("^opy", [])]
)
def test_cases_are_chosen_by_a_regular_expression(
    cases: str, run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _suites_folder(tmp_path, cases=CASES_SUITE_FILE)
    assert main(["bench", "cases", "--json", "--cases", cases, *options]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["case"] for row in rows] == run


def test_a_bad_regular_expression_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "core", "--cases", "("]) == 1
    assert "'(' is no regular expression: missing )" in capsys.readouterr().err


def test_suites_that_need_a_gpu_are_told_apart() -> None:
    suites = [_suite("core"), _suite("ops", "cuda")]
    assert runnable_suites(suites, has_gpu=True) == (suites, [])
    assert runnable_suites(suites, has_gpu=False) == (suites[:1], ["ops"])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_its_suites_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _suites_folder(tmp_path, tiny=SUITE_FILE, large=GPU_SUITE_FILE)
    assert main(["bench", "--json", *options]) == 0
    written = capsys.readouterr()
    assert {row["suite"] for row in json.loads(written.out)["rows"]} == {"tiny"}
    assert "left out, no GPU found: large" in written.err


@pytest.mark.usefixtures("no_gpu")
def test_a_suite_that_is_asked_for_without_its_gpu_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = _suites_folder(tmp_path, large=GPU_SUITE_FILE)
    assert main(["bench", "large", *options]) == 1
    assert "the suite runs on a GPU: 0 found, 1 needed" in capsys.readouterr().err


def test_draw_makes_an_image_of_a_file_and_measures_nothing(tmp_path: Path) -> None:
    drawn: list[tuple[list[Row], Path]] = []
    path = tmp_path / "s-nvidia.csv"
    held = write_rows(path, [_row("a", 1.0)])

    def measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
        raise AssertionError("measured")

    suite = Suite("s", "", "cuda", measure, plot=lambda rows, image: drawn.append((rows, image)))
    report = draw_files({"s": suite}, [path])
    assert drawn == [(held, tmp_path / "s-nvidia.png")]
    assert (report.rows, report.files) == (held, [tmp_path / "s-nvidia.png"])
    assert read_rows(path) == held


@pytest.mark.parametrize(
    ("rows", "reason"), [([], "0 rows to draw"), ([_row("a", 1.0)], "unknown suite s")]
)
def test_draw_refuses_a_file_without_rows_or_of_an_unknown_suite(
    rows: list[Row], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s-cpu.csv"
    write_rows(path, rows)
    assert main(["bench", "--draw", str(path)]) == 1
    assert reason in capsys.readouterr().err


def test_a_plot_is_an_image_beside_the_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an optional extra")
    from hisparse_sidecar.cli.bench.plot import plot_rows

    path = tmp_path / "s-cpu.png"
    plot_rows([_row("a", 1.0), _row("b", 2.0, peer="p")], path)
    assert path.read_bytes().startswith(b"\x89PNG")
