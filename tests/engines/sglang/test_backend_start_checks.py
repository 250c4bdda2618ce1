"""What does not fit in our options fails the start before SGLang makes a model."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.install import is_hooked
from hisparse_sidecar.engines.sglang.offload_start import BACKEND_NAME, is_asked_for
from hisparse_sidecar.engines.sglang.start_checks import START_TARGETS, hook_start
from hisparse_sidecar.engines.sglang.targets import check_targets
from hisparse_sidecar.errors import InvalidArgument
from tests.engines.sglang.world import server_args

NAMED = ("--attention-backend", "hisparse")
OFFLOAD = (*NAMED, "--enable-hisparse", "--disable-radix-cache")
Made = list[str]


@pytest.fixture
def made(sglang: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """What SGLang's own function has made of a model, behind the hook."""
    from sglang.srt.managers.scheduler import Scheduler

    check_targets(START_TARGETS)
    found: Made = []
    monkeypatch.setattr(Scheduler, "init_tp_model_worker", lambda self: found.append("weights"))
    for _ in range(2):  # once
        hook_start(is_asked_for, BACKEND_NAME)
    assert is_hooked(Scheduler.init_tp_model_worker)
    return found


def start(folder: Path, *options: str) -> None:
    """What a scheduler of these options does first."""
    scheduler_of(folder, *options).init_tp_model_worker()


def scheduler_of(folder: Path, *options: str) -> Any:
    """As a scheduler is that has read arguments and the model's configuration."""
    from sglang.srt.managers.scheduler import Scheduler

    scheduler: Any = Scheduler.__new__(Scheduler)
    scheduler.server_args = server_args(folder, *options)
    config = SimpleNamespace(index_topk=2048, index_n_heads=64)
    scheduler.model_config = SimpleNamespace(hf_text_config=config)
    return scheduler


@pytest.mark.parametrize(
    ("options", "config", "match"),
    [
        (NAMED, '{"min_tokens": -1}', "min_tokens is -1, must be >= 0"),
        (NAMED, '{"num_kept_blocks": 32}', "num_kept_blocks is 32, 2048 tokens and an open page"),
        (NAMED, '{"index_source": "misa", "routed_heads": 65}', "is 65, the model has 64"),
        (NAMED, '{"offload_index_keys": true}', "offload_index_keys needs --enable-hisparse"),
        (OFFLOAD, '{"host_to_device_ratio": 0}', "host_to_device_ratio is 0, must be >= 1"),
        ((*OFFLOAD, "--enable-mixed-chunk"), "{}", "enable_mixed_chunk is True, offload needs"),
        (
            (*OFFLOAD, "--enable-priority-scheduling"),
            "{}",
            "enable_priority_scheduling is True and disable_priority_preemption is False, offload",
        ),
        (
            (*OFFLOAD, "--prefill-attention-backend", "dsa"),
            '{"offload_index_keys": true}',
            "the prefill attention backend is dsa, offload_index_keys needs hisparse",
        ),
        (
            ("--prefill-attention-backend", "hisparse", "--decode-attention-backend", "dsa"),
            '{"hot_share": 2}',
            "hot_share is 2, must be above 0 and below 1",
        ),
    ],
)
def test_what_does_not_fit_fails_before_a_model_is_made(
    options: tuple[str, ...], config: str, match: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        start(tmp_path, *options, "--hisparse-config", config)
    assert made == []


@pytest.mark.parametrize("options", [NAMED, OFFLOAD])
def test_what_fits_makes_a_model(options: tuple[str, ...], made: Made, tmp_path: Path) -> None:
    start(tmp_path, *options, "--hisparse-config", '{"min_tokens": 4096}')
    assert made == ["weights"]


def test_another_backends_options_are_its_own(made: Made, tmp_path: Path) -> None:
    start(tmp_path, "--attention-backend", "dsa", "--hisparse-config", '{"top_k": 0}')
    assert made == ["weights"]


def test_a_scheduler_of_another_version_is_left_alone(
    sglang: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt.managers.scheduler import Scheduler

    def init_tp_model_worker(self: Any, more: Any) -> None:
        """What a version may have that we do not know."""

    monkeypatch.setattr(Scheduler, "init_tp_model_worker", init_tp_model_worker)
    hook_start(is_asked_for, BACKEND_NAME)
    assert Scheduler.init_tp_model_worker is init_tp_model_worker


@pytest.fixture
def scheduler(request: pytest.FixtureRequest, made: Made, tmp_path: Path) -> Any:
    """In a fixture, since SGLang sets logging up anew for each command line."""
    config = '{"hot_share": 0.4, "min_tokens": 1, "share_host_pool": true}'
    return scheduler_of(tmp_path, *request.param, "--hisparse-config", config)


@pytest.mark.parametrize(
    ("scheduler", "is_told"), [(NAMED, True), (OFFLOAD, False)], indirect=["scheduler"]
)
def test_keys_without_effect_are_told_in_one_line(
    scheduler: Any, is_told: bool, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="hisparse_sidecar.sglang"):
        scheduler.init_tp_model_worker()
    line = "hisparse: without --enable-hisparse these have no effect: hot_share, share_host_pool"
    assert [text for text in caplog.messages if "no effect" in text] == [line] * is_told
    assert made == ["weights"]
