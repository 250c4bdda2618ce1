"""What every test gets: no network, and GPU tests only where a GPU is."""

import os
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads starve busy ones
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


def pytest_report_header() -> str:
    """Which versions the kernels run with: CI has two sets."""
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "numpy"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--ends-of-each", action="store_true", help="of each test the first and last case alone"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` on a machine without one."""
    if config.getoption("--ends-of-each"):
        _keep_ends(config, items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked or _has_gpu():
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    for item in marked:
        item.add_marker(skip)


@pytest.fixture
def needs_flash_mla() -> None:
    """Skips a test where FlashMLA is not, or has no kernels for this GPU."""
    import torch

    from hisparse_kernels.gpu.flash_mla import FlashMlaAbsentError, flash_mla_module

    try:
        flash_mla_module(torch.device("cuda"))
    except FlashMlaAbsentError as error:
        pytest.skip(str(error))


def _keep_ends(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the cases that other options choose."""
    cases = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    kept = {id(item) for one in cases.values() for item in (one[0], one[-1])}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
