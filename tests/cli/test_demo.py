"""The demo at a small size, end to end: the real model, the real server, its client."""

import io
from typing import Any

import pytest
from rich.console import Console

from cli.command import Finished, run_hisparse
from hisparse_sidecar.cli import main, output
from hisparse_sidecar.cli.checkout import find_beside
from hisparse_sidecar.cli.commands import demo as demo_command
from hisparse_sidecar.cli.demo.progress import DemoProgress
from hisparse_sidecar.cli.demo.run_demo import run_demo
from hisparse_sidecar.cli.demo.settings import DemoSettings
from hisparse_sidecar.cli.demo.tables import demo_tables
from hisparse_sidecar.config import SelectionConfig

RUN_KEYS = {
    "tokens_equal_fraction",
    "needle_found",
    "recall_mean",
    "hot_hit_rate",
    "block_hit_rate",
    "device_bytes_per_token",
    "tokens_per_second",
}
# 25 blocks of a sequence against 8 on the device: both runs stream through the window
SMALL = ("--prompt-tokens", "1500", "--window-blocks", "8", "--hot-slots", "520")


BACKENDS = {"cpu": "reference", "cuda": "triton"}
# Hopper's tensor cores sum e4m3 products in 14 bits: a few near-ties go the other way
LEAST_RECALL = {"cpu": 1.0, "cuda": 0.99}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def finished(device: str) -> Finished:
    return run_hisparse("demo", "--json", *SMALL, "--device", device, timeout_seconds=300)


@pytest.fixture(scope="module")
def found(finished: Finished) -> Any:
    return finished.json


def test_the_demo_succeeds_and_writes_one_object(
    finished: Finished, found: Any, device: str
) -> None:
    assert finished.exit_code == 0, finished.stderr
    assert {"prompt_tokens", "backend", "plain_device_bytes_per_token"} <= set(found)
    assert found["prompt_tokens"] == 1500
    assert found["backend"] == BACKENDS[device]
    assert found["device"].split()[0] == device
    for run in ("flat", "hisa"):
        assert set(found[run]) >= RUN_KEYS


def test_flat_gives_every_token_of_the_reference(found: Any) -> None:
    assert found["flat"]["tokens_equal_fraction"] == 1.0
    assert found["flat"]["text"] == found["reference"]["text"]
    assert found["new_tokens"] == 64


def test_the_needle_is_found_by_every_run(found: Any) -> None:
    digits = found["asked"]["digits"]
    for run in ("reference", "flat", "hisa"):
        assert found[run]["needle_found"] is True
        assert found[run]["text"].startswith(digits)


def test_every_fact_is_answered_when_asked_in_turn(found: Any) -> None:
    for run in ("flat", "hisa"):
        assert found[run]["facts_found"] == len(found["needles"]) == 6


def test_the_plain_bytes_are_those_of_the_rows(found: Any) -> None:
    assert found["plain_device_bytes_per_token"] == 4 * (656 + 132)


def test_flat_selects_what_a_flat_selection_of_its_own_state_selects(
    found: Any, device: str
) -> None:
    assert LEAST_RECALL[device] <= found["flat"]["recall_mean"] <= 1.0
    assert set(found["flat"]["recall_per_layer"]) == {"0", "1", "2", "3"}


def test_hisa_is_exact_where_it_keeps_every_block(found: Any, device: str) -> None:
    assert LEAST_RECALL[device] <= found["hisa"]["recall_mean"] <= 1.0
    assert found["hisa"]["tokens_equal_fraction"] == 1.0


def test_a_hot_buffer_and_a_window_smaller_than_the_context_miss(found: Any) -> None:
    for run in ("flat", "hisa"):
        traffic = found[run]["traffic"]
        assert 0.0 < found[run]["hot_hit_rate"] < 1.0
        assert 0.0 < found[run]["block_hit_rate"] < 1.0
        assert traffic["rows_moved_bytes"] == 656 * traffic["rows_moved"] > 0
        assert traffic["blocks_read_bytes"] == 64 * 132 * traffic["blocks_missed"] > 0


def test_the_tiers_add_up(found: Any) -> None:
    pages = -(-(1500 + 63) // 64)
    for run in ("flat", "hisa"):
        held = found[run]["held_bytes"]
        parts = ("hot_buffer", "hot_tables", "block_window", "window_tables", "pooled_keys")
        assert held["device"] == sum(held[part] for part in parts)
        assert found[run]["device_bytes_per_token"] == pytest.approx(held["device"] / 1563)
        # 4 layers: rows, index rows, one pooled key a page
        assert held["host"] == pages * 4 * (64 * 656 + 64 * 132 + 132)


def test_a_wrong_selection_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DemoSettings(
        model_dir=find_beside("models/tiny-dsa"),
        text=find_beside("examples/text"),
        prompt_tokens=1500,
        new_tokens=8,
        device="cpu",
    )
    # 8 of 25 blocks, and every token of them: most of the flat selection is lost
    wrong = SelectionConfig("hisa", num_kept_blocks=8)
    with DemoProgress(Console(quiet=True)) as progress:
        report = run_demo(settings, progress, flat_selection=wrong)

    assert report.flat.recall_mean is not None
    assert report.flat.recall_mean < 0.9
    assert report.flat.tokens_equal_fraction < 1.0
    assert not report.holds
    assert _exit_code_of_command(monkeypatch, report) == 1
    shown = io.StringIO()
    Console(file=shown, width=100).print(*demo_tables(report))
    assert "must give all" in shown.getvalue()


def _exit_code_of_command(monkeypatch: pytest.MonkeyPatch, report: Any) -> int:
    from hisparse_sidecar.cli.demo import run_demo as module
    from hisparse_sidecar.cli.main import build_parser

    monkeypatch.setattr(module, "run_demo", lambda *_: report)
    monkeypatch.setattr(output, "write_json", lambda _: None)
    return demo_command.run(build_parser().parse_args(["demo", "--json"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt-tokens", "16380"], "16444 tokens asked for, the model's context has 16384"),
        (["--prompt-tokens", "0"], "prompt_tokens is 0, must be >= 1"),
        (["--text", "/no/such/text.txt"], "/no/such/text.txt"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", *arguments]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert message in written.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu"], "device is 'gpu', must be cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "device is 'cuda:99', torch"),
        (
            ["--backend", "cuda"],
            "backend is 'cuda', must be one of auto, flash_mla, gluon_sm100, reference, triton",
        ),
    ],
)
def test_a_device_or_backend_that_is_not_there_is_refused_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json", *arguments]) == 1
    written = capsys.readouterr()
    assert written.out == ""
    said = written.err.strip()
    assert said.startswith(f"hisparse demo: {message}")
    assert "\n" not in said
