"""One production configuration of one op, and what must hold of its kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

PRODUCTION = tuple(
    f"tools.crosscompile.cases_{group}"
    for group in ("rows", "selection", "pipelines", "resolve", "mla")
)


@dataclass(frozen=True)
class Expects:
    """What must hold of a case's kernels, besides the limits that hold of all.

    Attributes:
        matrix_unit: a low-precision product of 64 or more rows is there (that each such product
            runs on wgmma or tcgen05 is checked in every case).
        wide: pointer arguments, named as the kernel names them, whose bytes move 16 at a time.
        mostly_wide: the same, but for the few scales that lie between the values.
        accumulator_columns: where it is not 0, each kernel is in Gluon, whose products no IR tells:
            they are on the matrix unit, and on tcgen05 so many TMEM columns hold them.
        instructions: kinds of `Ptx.async_counts` that each kernel has.
        unread: pointer arguments that no kernel loads from in 16 bytes at a time: TMA does.
    """

    matrix_unit: bool = False
    wide: tuple[str, ...] = ()
    mostly_wide: tuple[str, ...] = ()
    accumulator_columns: int = 0
    instructions: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """`call` runs the launcher on CPU tensors; name it `op, configuration`.

    With `only` the kernel is meant for that compute capability alone.
    """

    name: str
    call: Callable[[], object]
    expects: Expects = Expects()
    only: int | None = None


def cases_of(module: str) -> list[Case]:
    """What the module's `cases()` makes.

    Raises:
        ValueError: two cases have one name.
    """
    cases: list[Case] = import_module(module).cases()
    names = [case.name for case in cases]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{module}: several cases are called {', '.join(sorted(repeated))}")
    return cases


def case_of(module: str, name: str) -> Case:
    """The case of that name."""
    (case,) = [case for case in cases_of(module) if case.name == name]
    return case
