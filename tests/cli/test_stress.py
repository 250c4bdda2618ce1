"""`hisparse stress`: sound under every kind of fault, and not blind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.command import run_hisparse
from hisparse_sidecar.cli import main
from hisparse_sidecar.cli.stress import endings
from hisparse_sidecar.cli.stress.counts import Counts
from hisparse_sidecar.cli.stress.dealer import Dealer, Operation
from hisparse_sidecar.cli.stress.driver import _OPERATIONS, Driver
from hisparse_sidecar.cli.stress.progress import StressProgress
from hisparse_sidecar.cli.stress.replay import read_replay
from hisparse_sidecar.cli.stress.report import tables
from hisparse_sidecar.cli.stress.run_stress import run_stress
from hisparse_sidecar.cli.stress.settings import FAULTS, StressSettings

pytestmark = pytest.mark.cpu_only

KEYS = {
    "seed",
    "operations",
    "faults_injected",
    "pages_lost_acknowledged",
    "wrong_bytes",
    "leaked_pages",
    "leaked_leases",
    "latency_us",
    "recovery_ms",
}
MUST_BE_0 = ("pages_lost_acknowledged", "wrong_bytes", "leaked_pages", "leaked_leases")
LONG = 600.0  # these runs end by their number of operations


def settings_of(faults: tuple[str, ...], operations: int, **changes: Any) -> StressSettings:
    tiers = ("remote",) if faults == ("remote",) else ("file", "remote")
    values = {"seed": 8, "sessions": 3, "tiers": tiers, "operations": operations}
    return StressSettings(LONG, faults=faults, **(values | changes))


def stress(settings: StressSettings, replay_to: Path) -> dict[str, Any]:
    with StressProgress(Console(quiet=True), settings.seconds) as progress:
        return run_stress(settings, None, replay_to, progress)


def show_nothing(_counts: Counts, _seconds: float) -> None:
    """No progress."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose name leaves room for those of sockets."""
    return tmp_path_factory.mktemp("s")


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_under_a_fault(fault: str, tmp_path: Path) -> None:
    report = stress(settings_of((fault,), 100), tmp_path / "replay.json")

    assert report["remarks"] == []
    assert [report[name] for name in MUST_BE_0] == [0, 0, 0, 0]
    assert report["faults_injected"][fault] > 0
    assert report["clients"]["slow"] > 0
    assert report["clients"]["dying"] > 0
    assert report["checked_bytes"] > 5e6
    assert report["replay"] is None
    if fault in ("alloc", "kill"):
        assert report["checked_promises"] > 0


def test_nothing_is_lost_under_all_faults_together(tmp_path: Path) -> None:
    report = stress(settings_of(FAULTS, 200), tmp_path / "replay.json")

    assert report["remarks"] == []
    assert set(report) >= KEYS
    assert set(report["faults_injected"]) == set(FAULTS)
    assert len(report["never_injected"]) <= 2  # a kill may come before the calls that were to fail
    assert report["recovery_ms"] > 0
    assert report["latency_us"]["open"]["p99"] >= report["latency_us"]["open"]["p50"] > 0


@pytest.mark.slow
def test_nothing_is_lost_for_minutes_under_all_faults(tmp_path: Path) -> None:
    settings = StressSettings(100.0, 1, 4, FAULTS, ("file", "remote"))
    report = stress(settings, tmp_path / "replay.json")

    assert report["remarks"] == []
    assert report["never_injected"] == []


def test_a_wrong_byte_fails_the_run_and_its_replay(tmp_path: Path) -> None:
    replay = tmp_path / "replay.json"
    report = stress(settings_of((), 80, self_check="byte"), replay)
    assert report["wrong_bytes"] > 0
    written = json.loads(replay.read_text())
    assert "flip" in [operation["do"] for operation in written["operations"]]
    assert written["found"] == report["remarks"]

    again = run_hisparse("stress", "--json", "--replay", str(replay), "--replay-to", str(replay))
    assert again.exit_code == 1
    assert again.json["wrong_bytes"] == report["wrong_bytes"]
    assert set(again.json) >= KEYS
    assert f"hisparse stress --replay {replay}" in again.stderr


@pytest.mark.parametrize(
    ("spoiled", "found"), [("page", "pages_lost_acknowledged"), ("lease", "leaked_leases")]
)
def test_what_is_lost_or_leaked_fails_the_run(spoiled: str, found: str, tmp_path: Path) -> None:
    report = stress(settings_of((), 66, self_check=spoiled), tmp_path / "replay.json")
    assert report[found] > 0
    assert not report["holds"]


def drawn_with(driver: Driver, at: int, act: Any) -> Iterator[Operation]:
    """Operations of a dealer, and what a test does after `at` of them."""
    dealer = Dealer(driver.run.settings)
    for number in range(at + 1):
        if number == at:
            yield {"do": "checkpoint", "drains": True}
            act()
            return
        yield dealer.next(driver.run.lives)


def test_what_somebody_still_has_at_the_end_is_a_leak(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_LEAK_SECONDS", 0.2)
    driver = Driver(settings_of((), 100), folder)
    forgotten = []

    def forget() -> None:
        forgotten.append(driver.run.server.connect())
        forgotten[0].open(64, 0)

    counts = driver.drive(drawn_with(driver, 10, forget), show_nothing)
    forgotten[0].close()
    assert counts.leaked_pages == 1
    assert any("sequences are open" in remark for remark in counts.remarks)


def test_a_fault_that_never_came_is_named(tmp_path: Path) -> None:
    report = stress(settings_of(("kill",), 1), tmp_path / "replay.json")
    assert report["never_injected"] == ["kill"]
    assert "never injected: kill" in str(tables(report)[-1])


def test_an_error_of_any_kind_leaves_a_replay_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(_OPERATIONS, "prefill", fail)
    report = stress(settings_of((), 30), tmp_path / "replay.json")
    assert "ZeroDivisionError" in report["remarks"][0]
    assert read_replay(tmp_path / "replay.json")[1][-1]["do"] == "prefill"


def test_a_seed_draws_the_same_operations_again(folder: Path) -> None:
    performed = []
    for name in ("1", "2"):
        (folder / name).mkdir()
        driver = Driver(settings_of(("alloc", "corrupt"), 60, sessions=2), folder / name)
        assert driver.drive(None, show_nothing).holds
        performed.append(driver.performed)
    assert performed[0] == performed[1]
    assert len(performed[0]) == 60


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--faults", "fire"], "faults has fire, known are alloc, io, kill"),
        (["--faults", "io,io"], "faults names one twice: io, io"),
        (["--tiers", "tape"], "tiers has tape, known are file, remote"),
        (["--tiers", "file", "--faults", "remote"], "fault remote needs tier remote, tiers are"),
        (["--tiers", "remote", "--self-check", "page", "--faults", ""], "a lost page needs tier"),
        (["--tiers", "", "--faults", "corrupt"], "fault corrupt needs tier file, tiers are none"),
        (["--sessions", "0"], "sessions is 0, must be 1 to 64"),
        (["--seconds", "0"], "seconds is 0, must be > 0"),
        (["--operations", "0"], "operations is 0, must be >= 1"),
        (["--seed", "-1"], "seed is -1, must be 0 to 2**63 - 1"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stress", "--json", *flags]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"hisparse stress: {message}")


def test_a_directory_with_files_and_a_file_that_is_no_replay_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["stress", "--json", "--directory", str(tmp_path)]) == 1
    assert "has files already, needs an empty one" in capsys.readouterr().err
    assert main(["stress", "--json", "--replay", str(other)]) == 1
    assert "is no replay file" in capsys.readouterr().err
