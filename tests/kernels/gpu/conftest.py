"""Every kernel test runs twice: in Triton's interpreter on the CPU, and on a GPU."""

import pytest
import torch

from hisparse_kernels.gpu.interpreter import interpreting


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not interpreting():
        pytest.skip("Triton compiles here: the interpreter is for machines without a GPU")
    return str(request.param)


@pytest.fixture
def needs_wgmma() -> None:
    found = torch.cuda.get_device_capability()
    if found != (9, 0):
        pytest.skip(f"the pipeline is for compute capability 9.0, found {found}")
