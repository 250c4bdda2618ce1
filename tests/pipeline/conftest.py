"""Every pipeline test runs on the CPU with the reference, and on a GPU with Triton.

The few marked `interpreted` run with the other backend in both places, too; those marked `gpu` and
`cpu_only` only where they say.
"""

from collections.abc import Iterator

import pytest
import torch

from hisparse_kernels.gpu.interpreter import interpreting
from tests.pipeline import world

CPU = pytest.param(world.Place("cpu", "reference"), id="cpu")
INTERPRETED = pytest.param(world.Place("cpu", "triton"), id="interpreted")
CUDA, CUDA_REFERENCE = [
    pytest.param(world.Place("cuda", backend), marks=pytest.mark.gpu, id=name)
    for backend, name in (("triton", "cuda"), ("reference", "cuda-reference"))
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where each test runs."""
    if "_place" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker
    places = []
    if not marker("gpu"):
        places += [CPU, INTERPRETED] if marker("interpreted") else [CPU]
    if not marker("cpu_only"):
        places += [CUDA, CUDA_REFERENCE] if marker("interpreted") else [CUDA]
    metafunc.parametrize("_place", places, indirect=True)


@pytest.fixture(autouse=True)
def _place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `small_config` asks for."""
    if request.param == world.Place("cpu", "triton") and not interpreting():
        pytest.skip("Triton compiles here: the interpreter is for machines without a GPU")
    monkeypatch.setattr(world, "PLACE", request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors are worked on by one thread: a second one only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
