"""Gluon's names for kernels that run on a `Machine`, and a launcher's kernel that does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language import constexpr
from triton.runtime.jit import JITFunction

from tests.kernels.gluon_machine.memory import Machine, Memory
from tests.kernels.gluon_machine.values import Pointer, PointerType, Value, plain


class EmulatedKernel:
    """Takes the place of a Gluon kernel in its launcher's module; runs on CPU tensors.

    Args:
        kernel: what it is to run.
        seed: of the turns of each program; every program has others.
    """

    def __init__(self, kernel: JITFunction, seed: int) -> None:
        self._kernel, self._seed = kernel, seed

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            num_warps = options.pop("num_warps")
            del options["enable_fp_fusion"]
            for at in itertools.product(*map(range, grid)):
                self._seed += 1
                program = _Program(Machine(self._seed), at, grid, num_warps)
                found = [_argument(arg) for arg in args]
                named = {name: _argument(arg) for name, arg in options.items()}
                program.bound(self._kernel)(*found, **named)

        return launch


def _argument(arg: Any) -> Any:
    if isinstance(arg, torch.Tensor):
        return Pointer.to_tensor(arg)
    return arg


class _Program:
    """One program of a launch: its machine, and the kernel's functions with its names in them."""

    def __init__(
        self, machine: Machine, at: tuple[int, ...], grid: tuple[int, ...], num_warps: int
    ) -> None:
        self._machine = machine
        self._bound: dict[Any, Callable[..., Any]] = {}
        self._names = {
            "gl": self._gluon(at, grid, num_warps),
            "tl": SimpleNamespace(range=lambda *ends, **_: map(Value, range(*map(int, ends)))),
            "barrier": lambda: None,
            "hopper": SimpleNamespace(fence_async_shared=machine.fence),
            "mbarrier": self._barriers(),
            "tma": SimpleNamespace(async_gather=self._gather),
            "async_copy": self._async_copy(num_warps),
            "async_load": _copy,
            "allocate_tensor_memory": lambda *args: Memory.tensor_memory(machine, *args[:2]),
            "tcgen05_mma": self._multiply,
            "warpgroup_mma": _multiply_now,
            "warpgroup_mma_wait": lambda _, deps: deps if len(deps) > 1 else deps[0],
            "row_registers": lambda *_: None,
        }

    def bound(self, function: Any) -> Callable[..., Any]:
        """The function with this program's names instead of Gluon's."""
        if function not in self._bound:
            plain_function = function.fn
            names = dict(plain_function.__globals__)
            bound = FunctionType(
                plain_function.__code__,
                names,
                plain_function.__name__,
                plain_function.__defaults__,
                plain_function.__closure__,
            )
            self._bound[function] = bound
            names.update({name: self._name(name, value) for name, value in names.items()})
        return self._bound[function]

    def _name(self, name: str, value: Any) -> Any:
        if name in self._names:
            return self._names[name]
        if isinstance(value, JITFunction):
            return lambda *args, **options: self.bound(value)(*args, **options)
        return value.value if isinstance(value, constexpr) else value

    def _gluon(self, at: tuple[int, ...], grid: tuple[int, ...], num_warps: int) -> SimpleNamespace:
        machine = self._machine
        return SimpleNamespace(
            **_LANGUAGE,
            program_id=lambda axis: Value(torch.tensor(at[axis])),
            num_programs=lambda axis: grid[axis],
            num_warps=lambda: machine.warps(num_warps),
            allocate_shared_memory=lambda dtype, shape, _: Memory.shared(machine, dtype, shape),
            warp_specialize=partial(self._specialize, num_warps),
        )

    def _specialize(
        self, num_warps: int, functions: list[Any], warps: list[int], _registers: list[int]
    ) -> Any:
        return self._machine.run(
            [
                (partial(function, *args), count)
                for (function, args), count in zip(functions, [num_warps, *warps], strict=True)
            ]
        )

    def _barriers(self) -> SimpleNamespace:
        machine = self._machine

        def expect(barrier: Memory, count: int) -> None:
            state = machine.barrier(barrier)
            state.missing_bytes += count
            state.arrive()
            machine.pause()

        def arrive(barrier: Memory) -> None:
            machine.barrier(barrier).arrive()
            machine.pause()

        return SimpleNamespace(
            MBarrierLayout=lambda: None,
            init=machine.init_barrier,
            wait=machine.wait,
            expect=expect,
            arrive=arrive,
        )

    def _async_copy(self, num_warps: int) -> SimpleNamespace:
        """Copies by warps: done at once, for the pipelines whose copies a GPU tests."""
        machine = self._machine

        def arrive(barrier: Memory, increment_count: bool) -> None:
            assert not increment_count
            machine.barrier(barrier).arrive(32 * machine.warps(num_warps))

        return SimpleNamespace(mbarrier_arrive=arrive, wait_group=lambda _: None)

    def _gather(
        self, rows: TensorDescriptor, ids: Value, first: int, barrier: Memory, target: Memory
    ) -> None:
        """Four rows at a time, in any order; zeros of rows that are not there."""
        values = torch.as_strided(rows.base, rows.shape, rows.strides, rows.base.storage_offset())
        count, columns = target.shape
        assert columns % rows.block_shape[1] == 0

        def copy(group: int) -> None:
            found = torch.zeros(4, columns, dtype=values.dtype)
            for place, row in enumerate(ids.tensor[group : group + 4].tolist()):
                if 0 <= row < rows.shape[0]:
                    found[place] = values[row, first : first + columns]
            target.slice(group, 4, dim=0).write_async(found)
            state = self._machine.barrier(barrier)
            state.missing_bytes -= found.numel() * found.element_size()
            state.settle()

        for group in range(0, count, 4):
            self._machine.copy_later(partial(copy, group))

    def _multiply(
        self,
        left: Memory,
        right: Memory,
        sums: Memory,
        use_acc: Any = True,
        mbarriers: tuple[Memory, ...] = (),
    ) -> None:
        keeps = bool(use_acc)

        def multiply() -> None:
            product = left.fenced.float() @ right.fenced.float()
            sums.write_async(sums.own + product if keeps else product)
            for barrier in mbarriers:
                self._machine.barrier(barrier).arrive()

        self._machine.multiply_later(multiply)


def _multiply_now(
    left: Memory, right: Memory, sums: Value, use_acc: bool = True, is_async: bool = False
) -> Value:
    product = left.fenced.float() @ right.fenced.float()
    return Value(sums.tensor + product if use_acc else product)


def _copy(target: Memory, source: Pointer, mask: Value) -> None:
    target.write_async(source.load(mask, 0.0).tensor)


def _load(source: Pointer, mask: Any = None, other: Any = None) -> Value:
    return source.load(mask, other)


def _store(target: Pointer, values: Any, mask: Any = None) -> None:
    target.store(values, mask)


def _expand(value: Any, dim: int) -> Any:
    return value.expanded(dim) if isinstance(value, Pointer) else Value(value.tensor.unsqueeze(dim))


def _pair(function: Callable[..., torch.Tensor]) -> Callable[[Any, Any], Value]:
    def apply(left: Any, right: Any) -> Value:
        one, other = plain(left), plain(right)
        like = one if isinstance(one, torch.Tensor) else other
        if not isinstance(like, torch.Tensor):
            like = torch.tensor(like)
        return Value(function(*(torch.as_tensor(side, dtype=like.dtype) for side in (one, other))))

    return apply


def _where(condition: Value, left: Any, right: Any) -> Value:
    return Value(torch.where(condition.tensor, plain(left), plain(right)))


_LANGUAGE: Mapping[str, Any] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float8e4nv": torch.float8_e4m3fn,
    "int64": torch.int64,
    "pointer_type": PointerType,
    "arange": lambda start, end, _layout: Value(torch.arange(start, end)),
    "full": lambda shape, value, dtype, _layout: Value(torch.full(shape, value, dtype=dtype)),
    "load": _load,
    "store": _store,
    "expand_dims": _expand,
    "where": _where,
    "maximum": _pair(torch.maximum),
    "minimum": _pair(torch.minimum),
    "max": lambda value, axis: Value(value.tensor.amax(axis)),
    "sum": lambda value, axis: Value(value.tensor.sum(axis)),
    "exp2": lambda value: Value(torch.exp2(value.tensor)),
    "log2": lambda value: Value(torch.log2(value.tensor)),
    "convert_layout": lambda value, _layout: value,
    "static_range": range,
    **{
        layout: lambda *_, **__: None
        for layout in (
            "BlockedLayout",
            "SliceLayout",
            "NVMMASharedLayout",
            "NVMMADistributedLayout",
        )
    },
}
