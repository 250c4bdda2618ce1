"""Tests with the real SGLang, on the CPU; without it they are skipped, and say so."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from tests.engines.sglang.prefix_world import CachingEngine

HAS_SGLANG = importlib.util.find_spec("sglang") is not None
FOLDER = Path(__file__).parent
NEEDS_SGLANG = ("test_plugin.py", "test_live_", "test_backend", "test_writers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs SGLang where it is not; its own warnings are no failures of ours."""
    skip = pytest.mark.skip(reason="SGLang is not installed: make test-engines")
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            if not HAS_SGLANG and item.path.name.startswith(NEEDS_SGLANG):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def sglang() -> Iterator[None]:
    """SGLang with its plug-ins loaded, told that there is an H100: it asks when it starts."""
    from tests.engines.sglang.torchvision_stand_in import stand_in_for_torchvision

    patch, widths = pytest.MonkeyPatch(), contextlib.ExitStack()
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setenv("SGLANG_OPT_USE_TOPK_V2", "0")  # its plan is made by a kernel for the GPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stand_in_for_torchvision()
        from sglang.srt.plugins import load_plugins

        load_plugins()
        _run_on_the_cpu(patch)
        from sglang.srt import runtime_context

        if not hasattr(runtime_context, "SpawnRanks"):  # 0.5.17 asks process groups
            alone = {"attn_tp_size": 1, "attn_cp_size": 1, "attn_cp_rank": 0}
            widths.enter_context(runtime_context.get_parallel().override(**alone))
        yield
    widths.close()
    patch.undo()


def _run_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """Puts plain PyTorch in place of the one kernel that verify passes need a GPU for."""
    from sglang.srt.layers.attention import dsa_backend

    def expanded(new: torch.Tensor, lens: torch.Tensor, *_: int) -> torch.Tensor:
        spans = zip(new.tolist(), lens.tolist(), strict=True)
        rows = [torch.arange(n - count + 1, n + 1) for count, n in spans]
        return torch.cat(rows).to(torch.int32)

    patch.setattr(dsa_backend, "seqlens_expand_triton", expanded)


@pytest.fixture
def caching(sglang: None, tmp_path: Path) -> Iterator[Callable[..., "CachingEngine"]]:
    """Makes engines with our prefix cache, under the options of a server that has it."""
    from tests.engines.sglang.prefix_world import CachingEngine
    from tests.engines.sglang.world import server_args

    options = "--attention-backend hisparse --enable-hisparse --disable-radix-cache"
    server_args(tmp_path, *options.split(), "--radix-cache-backend", "hisparse")
    made: list[CachingEngine] = []

    def make_one(**named: Any) -> CachingEngine:
        made.append(CachingEngine(**named))
        return made[-1]

    yield make_one
    for engine in made:
        engine.coordinator.destroy()
