"""Measure flat selection and HISA over lengths and rows, on index keys that are resident."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hisparse_kernels.backends import Ops, reference_ops
from hisparse_kernels.layouts import PAGE_TOKENS, index_layout
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.contract import SelectionQuery, Selector
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.gate_table import Cell, Grid, Setting
from hisparse_sidecar.selection.hisa import HisaSelector
from hisparse_sidecar.selection.row_groups import select_in_groups
from hisparse_sidecar.tuning.resident_keys import ResidentKeys, store_keys
from hisparse_sidecar.tuning.stopwatch import captured, time_in_turn

MAX_DECODE_ROWS = 256  # up to here each row is of a sequence of its own, beyond all are of one
_LAYOUT = index_layout("fp8")
_MEMORY_SHARE = 0.6  # of what is free on the GPU, for keys and logits


@dataclass(frozen=True)
class TunePlan:
    """What to measure, for one setting.

    Attributes:
        setting: heads, kept blocks, block size, top-k.
        lengths: tokens of each sequence.
        rows: rows of a call: decode rows, or, beyond MAX_DECODE_ROWS, a prefill chunk.
        device: where.
        num_warm_ups: untimed runs of each.
        num_runs: timed runs of each.
        graphs: on CUDA, time replays of graphs instead of launches.
    """

    setting: Setting
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    device: torch.device
    num_warm_ups: int
    num_runs: int
    graphs: bool = False

    def __post_init__(self) -> None:
        setting = self.setting
        least = min(*self.lengths, *self.rows, setting.index_heads, setting.topk, self.num_runs)
        require(least >= 1, f"a length, a number of rows, heads, topk or runs is {least}, needs 1")
        require(self.num_warm_ups >= 0, f"num_warm_ups is {self.num_warm_ups}, needs 0")
        kept, block_tokens = setting.num_kept_blocks, setting.block_tokens
        require(kept >= 2, f"num_kept_blocks is {kept}, must be >= 2")
        whole = block_tokens > 0 and block_tokens % PAGE_TOKENS == 0
        require(whole, f"block_tokens is {block_tokens}, must be a multiple of {PAGE_TOKENS}")
        message = f"{kept} blocks hold {kept * block_tokens} tokens, topk needs {setting.topk}"
        require(kept * block_tokens >= setting.topk, message)
        on_gpu = self.device.type == "cuda"
        require(on_gpu or not self.graphs, f"graphs need a GPU, the device is {self.device}")

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(length, rows) of every call, each once; a prefill chunk must lie within its sequence."""
        return [
            (length, rows)
            for length in sorted(set(self.lengths))
            for rows in sorted(set(self.rows))
            if rows <= max(length, MAX_DECODE_ROWS)
        ]


def measure_grid(plan: TunePlan, measured: Callable[[Cell | None], None]) -> Grid:
    """The times of every cell that fits the GPU's memory.

    Args:
        plan: what to measure.
        measured: called after each cell of the plan, with None for one that does not fit.
    """
    made = []
    for cell in _measure(plan):
        measured(cell)
        if cell is not None:
            made.append(cell)
    return Grid(plan.setting, tuple(made))


def resident_rows(plan: TunePlan, length: int, rows: int) -> tuple[ResidentKeys, SelectionQuery]:
    """Random keys of sequences of one length, and the rows of one call."""
    torch.manual_seed(0)
    ops = reference_ops() if plan.device.type == "cpu" else _triton_ops()
    values = torch.randn(length, 128, device=plan.device)
    block_tokens = plan.setting.block_tokens
    stored = store_keys(ops, values, _num_sequences(rows), block_tokens, _LAYOUT)
    keys = ResidentKeys(ops, _LAYOUT, stored, length, block_tokens)
    return keys, _query(plan, ops, length, rows)


def _measure(plan: TunePlan) -> Iterator[Cell | None]:
    for length, rows in plan.cells:
        if not _fits(plan, length, rows):
            yield None
            continue
        calls = _calls(plan, length, rows)
        flat_us, hisa_us = time_in_turn(calls, plan.num_warm_ups, plan.num_runs, plan.device)
        yield Cell(length, rows, round(flat_us, 2), round(hisa_us, 2))


def _calls(
    plan: TunePlan, length: int, rows: int
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Flat and HISA on the same keys and queries."""
    keys, query = resident_rows(plan, length, rows)

    def call_of(selector: Selector) -> Callable[[], object]:
        def call() -> object:
            return select_in_groups(selector, query, keys, SidecarConfig.max_logits_bytes)

        return captured(call) if plan.graphs else call

    return call_of(FlatSelector()), call_of(HisaSelector(plan.setting.num_kept_blocks))


def _triton_ops() -> Ops:
    from hisparse_kernels.gpu.backend import triton_ops

    return triton_ops()


def _fits(plan: TunePlan, length: int, rows: int) -> bool:
    if plan.device.type == "cpu":
        return True
    stored = _num_sequences(rows) * length * _LAYOUT.row_bytes
    made = length * 128 * 4 * 3  # one sequence's keys in fp32, and on their way to e4m3
    logits = 4 * min(4 * rows * length, SidecarConfig.max_logits_bytes)
    free, _ = torch.cuda.mem_get_info(plan.device)
    free += torch.cuda.memory_reserved(plan.device) - torch.cuda.memory_allocated(plan.device)
    return stored + made + logits <= _MEMORY_SHARE * free


def _num_sequences(rows: int) -> int:
    return rows if rows <= MAX_DECODE_ROWS else 1


def _query(plan: TunePlan, ops: Ops, length: int, rows: int) -> SelectionQuery:
    """Decode rows at the ends of their sequences, or the last rows of one sequence."""
    heads, device = plan.setting.index_heads, plan.device
    index_q = torch.randn(rows, heads, 128, device=device)
    weights = torch.randn(rows, heads, device=device) * heads**-0.5
    number = torch.arange(rows, dtype=torch.int32, device=device)
    if _num_sequences(rows) == rows:
        row_seq, row_pos = number, torch.full_like(number, length - 1)
    else:
        row_seq, row_pos = torch.zeros_like(number), length - rows + number
    return SelectionQuery(
        *ops.quantize_index_q(index_q, weights), row_seq, row_pos, plan.setting.topk
    )
