"""Tests of the wrapper run on the CPU with the reference, and on a GPU with Triton.

Those marked `interpreted` run in Triton's interpreter, too; those marked `gpu` and `cpu_only` only
where they say.
"""

import pytest
import torch

from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_sidecar import BatchHiSparseMLAPagedAttentionWrapper

CPU = pytest.param(("cpu", "reference"), id="cpu")
INTERPRETED = pytest.param(("cpu", "triton"), id="interpreted")
CUDA = pytest.param(("cuda", "triton"), id="cuda", marks=pytest.mark.gpu)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Where each test runs."""
    if "place" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker
    places = []
    if not marker("gpu"):
        places += [CPU, INTERPRETED] if marker("interpreted") else [CPU]
    if not marker("cpu_only"):
        places.append(CUDA)
    metafunc.parametrize("place", places, indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Device and backend."""
    if request.param == ("cpu", "triton") and not interpreting():
        pytest.skip("Triton compiles here: the interpreter is for machines without a GPU")
    return tuple(request.param)


@pytest.fixture
def device(place: tuple[str, str]) -> str:
    return place[0]


@pytest.fixture
def wrapper(place: tuple[str, str]) -> BatchHiSparseMLAPagedAttentionWrapper:
    device, backend = place
    workspace = torch.empty(1 << 22, dtype=torch.uint8, device=device)
    return BatchHiSparseMLAPagedAttentionWrapper(workspace, backend=backend)
