"""Every kernel test runs twice: in Triton's interpreter on the CPU, and on a GPU."""

import pytest

from hisparse_kernels.gpu.interpreter import interpreting


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and not interpreting():
        pytest.skip("Triton compiles here: the interpreter is for machines without a GPU")
    return str(request.param)
