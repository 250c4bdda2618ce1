"""Triton with a driver that only names a target: kernels are compiled, never run."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tools.crosscompile.coverage import kernel_name

_Grid = tuple[int, ...] | Callable[[Mapping[str, object]], tuple[int, ...]]

_WARP_SIZE = 32
_LOGS: dict[str, str] = {}  # of every kernel of this process, by hash: Triton compiles each once


@dataclass(frozen=True)
class Launch:
    """A kernel that a launcher wanted to run.

    Attributes:
        kernel: file and function, as `kernel_name` says.
        grid: programs in each dimension.
        options: what the launcher said by name: constants and num_warps and so on.
        compiled: Triton's result, with `asm` and `metadata`.
        ptxas_log: what `ptxas -v` said.
    """

    kernel: str
    grid: tuple[int, ...]
    options: Mapping[str, object]
    compiled: CompiledKernel
    ptxas_log: str


class StubDriver(DriverBase):  # type: ignore[misc]
    """The driver of a GPU that is not there; the arch numbers the device, so caches stay apart."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by itself."""
        return False

    def get_current_target(self) -> GPUTarget:
        """What the compiler compiles for."""
        return GPUTarget("cuda", self.arch, _WARP_SIZE)

    def get_current_device(self) -> int:
        """Index under which Triton keeps compiled kernels."""
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        """Never used: nothing is launched."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where the tensors are."""
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Only a launch would need it."""
        raise NotImplementedError(f"nothing is launched here, so {ty} has no C++ type")

    def get_benchmarker(self) -> Callable[..., float]:
        """Only autotuning would need it."""
        raise NotImplementedError("nothing runs here, so nothing can be timed")


def refuse_interpreter() -> None:
    """Raises RuntimeError where TRITON_INTERPRET is set: it leaves nothing to compile."""
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y"):
        raise RuntimeError("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")


@contextlib.contextmanager
def compiling(arch: int) -> Iterator[list[Launch]]:
    """Within it a launch compiles for sm_`arch` and is added to the list."""
    refuse_interpreter()
    launches: list[Launch] = []
    run = JITFunction.run

    def compile_only(
        self: JITFunction, *args: object, grid: _Grid, warmup: bool, **options: object
    ) -> CompiledKernel:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            compiled = run(self, *args, grid=grid, warmup=True, **options)
        log = _LOGS.setdefault(compiled.hash, output.getvalue())
        if callable(grid):
            grid = grid({**dict(zip(self.arg_names, args, strict=False)), **options})
        name = kernel_name(self.fn.__module__, self.fn.__name__)
        launches.append(Launch(name, tuple(grid), options, compiled, log))
        return compiled

    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = True  # a cached kernel would bring no log
        driver.set_active(StubDriver(arch))
        JITFunction.run = compile_only
        try:
            yield launches
        finally:
            JITFunction.run = run
