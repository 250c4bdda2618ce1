"""Suite `copy`: the swap-in and spill twins on host memory, beside a copy of the same bytes.

Host memory stands in for the device: these rates say how the twins compare with a plain copy, and
nothing about PCIe.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hisparse_kernels.layouts import KV_LAYOUTS, PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.spill import spill_ref
from hisparse_kernels.swap_in import swap_in_ref
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch

_POOL_PAGES = 4096
_NUM_SEQUENCES = 8
_PEER = "torch copy_"


@dataclass(frozen=True)
class _Case:
    """`num_rows` rows of one layout, scattered over the host pool."""

    layout: str
    num_rows: int

    @property
    def row_bytes(self) -> int:
        return KV_LAYOUTS[self.layout].row_bytes

    @property
    def name(self) -> str:
        return f"{self.num_rows} rows of {self.row_bytes} B"


_CASES = tuple(
    _Case(layout, num_rows) for layout in ("fp8_ds_mla", "bf16") for num_rows in (512, 2048, 32768)
)


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for case in _CASES:
        torch.manual_seed(0)
        for operation, prepare in (("swap_in", _prepare_swap_in), ("spill", _prepare_spill)):
            yield from _measure_one(stopwatch, case, operation, prepare(case))


def _measure_one(
    stopwatch: Stopwatch, case: _Case, operation: str, run: Callable[[], object]
) -> Iterator[Measurement]:
    copied_bytes = case.num_rows * case.row_bytes
    source = torch.zeros(copied_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    ours = stopwatch.time(run)
    peer = stopwatch.time(lambda: target.copy_(source))
    for statistic in ("median", "p99"):
        rates = [
            copied_bytes / getattr(timing, f"{statistic}_seconds") / 1e9 for timing in (ours, peer)
        ]
        name = f"{operation} {case.name}"
        yield Measurement(name, f"{statistic} GB/s", rates[0], "higher", _PEER, rates[1])


def _prepare_swap_in(case: _Case) -> Callable[[], object]:
    rows_each = case.num_rows // _NUM_SEQUENCES
    pages_each = _POOL_PAGES // _NUM_SEQUENCES
    pages = torch.randperm(_POOL_PAGES, dtype=torch.int32).view(_NUM_SEQUENCES, pages_each)
    items = [torch.randperm(pages_each * PAGE_TOKENS)[:rows_each] for _ in range(_NUM_SEQUENCES)]
    slots = torch.randperm(case.num_rows, dtype=torch.int32).view(_NUM_SEQUENCES, rows_each)
    plan = MissPlan(
        miss_item=torch.stack(items).sort(dim=1).values.int(),
        miss_dst=slots,
        miss_count=torch.full((_NUM_SEQUENCES,), rows_each, dtype=torch.int32),
        item_count=torch.full((_NUM_SEQUENCES,), rows_each, dtype=torch.int32),
    )
    host_rows = _host_rows(case)
    hot_rows = torch.empty(case.num_rows, case.row_bytes, dtype=torch.uint8)
    return lambda: swap_in_ref(host_rows, pages, plan, hot_rows)


def _prepare_spill(case: _Case) -> Callable[[], object]:
    host_rows = _host_rows(case)
    rows = torch.zeros(case.num_rows, case.row_bytes, dtype=torch.uint8)
    row_ids = torch.randperm(_POOL_PAGES * PAGE_TOKENS)[: case.num_rows]
    return lambda: spill_ref(rows, row_ids, host_rows)


def _host_rows(case: _Case) -> torch.Tensor:
    return torch.zeros(_POOL_PAGES * PAGE_TOKENS, case.row_bytes, dtype=torch.uint8)


SUITE = Suite(
    name="copy",
    summary="swap-in and spill twins on host memory (GB/s), beside a plain copy of the same bytes",
    device="cpu",
    measure=_measure,
)
