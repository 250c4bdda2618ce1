"""State and rows of the ops that pool keys, and calls of these ops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE, PagedKeys, row_ids_of
from hisparse_kernels.index_rows import read_index_rows, write_index_rows
from hisparse_kernels.layouts import IndexLayout
from hisparse_kernels.pooled_rows import PooledRows

Op = Callable[..., None]
POOLED_ROWS = 64  # room of one sequence in the pooled pages


@dataclass
class State:
    """What the ops change, full of NaN before the first write."""

    index_pages: torch.Tensor
    open_sums: torch.Tensor
    pooled_pages: torch.Tensor

    @staticmethod
    def fresh(layout: IndexLayout, num_seqs: int, num_pages: int) -> "State":
        return State(
            torch.full((num_pages, layout.page_bytes), NAN_BYTE).byte(),
            torch.full((num_seqs + 2, 128), torch.nan),
            torch.full((num_seqs, layout.page_bytes), NAN_BYTE).byte(),
        )

    def to(self, device: str) -> "State":
        return State(*(tensor.clone().to(device) for tensor in self.tensors()))

    def tensors(self) -> list[torch.Tensor]:
        return [self.index_pages, self.open_sums, self.pooled_pages]

    def assert_same(self, expected: "State") -> None:
        for actual, wanted in zip(self.tensors(), expected.tensors(), strict=True):
            assert_bits_equal(actual.cpu(), wanted.cpu())


def state_rows(num_seqs: int) -> torch.Tensor:
    return torch.arange(num_seqs).flip(0) + 1


def pooled_base(num_seqs: int) -> torch.Tensor:
    return torch.arange(num_seqs) * POOLED_ROWS


@dataclass
class Rows:
    """Rows of one call, on the CPU."""

    rows: torch.Tensor
    row_ids: torch.Tensor
    row_seq: torch.Tensor
    row_pos: torch.Tensor

    def tensors(self) -> list[torch.Tensor]:
        return [self.rows, self.row_ids, self.row_seq, self.row_pos]


def rows_of(
    stored: PagedKeys,
    spans: Sequence[tuple[int, int, int]],
    layout: IndexLayout,
    *,
    padding: int = 0,
) -> Rows:
    """Tokens [first, end) of each sequence named in `spans`, then padding rows of NaN."""
    pos = [torch.arange(first, end) for _, first, end in spans]
    row_ids = [row_ids_of(stored.page_table[s[0]], p) for s, p in zip(spans, pos, strict=True)]
    seqs = [torch.full((end - first,), seq) for seq, first, end in spans]
    none = torch.full((padding,), -1)
    garbage = torch.full((padding, layout.row_bytes), NAN_BYTE).byte()
    return Rows(
        torch.cat([stored.rows[seq][first:end] for seq, first, end in spans] + [garbage]),
        torch.cat([*row_ids, none]),
        torch.cat([*seqs, none]).int(),
        torch.cat([*pos, none]).int(),
    )


def append(op: Op, state: State, rows: Rows, bt: int, layout: IndexLayout) -> None:
    num_seqs, device = len(state.pooled_pages), state.open_sums.device
    on_device = Rows(*(tensor.to(device) for tensor in rows.tensors()))
    op(
        on_device.rows,
        on_device.row_ids,
        state.index_pages,
        on_device.row_seq,
        on_device.row_pos,
        state.open_sums,
        state_rows(num_seqs).to(device),
        state.pooled_pages,
        pooled_base(num_seqs).to(device),
        bt,
        layout,
    )


def rebuild(
    op: Op, state: State, stored: PagedKeys, lengths: torch.Tensor, bt: int, layout: IndexLayout
) -> None:
    num_seqs, device = len(state.pooled_pages), state.open_sums.device
    op(
        stored.index_pages.to(device),
        stored.page_table.to(device),
        lengths.to(device),
        state.open_sums,
        state_rows(num_seqs).to(device),
        state.pooled_pages,
        pooled_base(num_seqs).to(device),
        bt,
        layout,
    )


def resum(
    op: Op, state: State, stored: PagedKeys, lengths: torch.Tensor, bt: int, layout: IndexLayout
) -> None:
    device = state.open_sums.device
    op(
        stored.index_pages.to(device),
        stored.page_table.to(device),
        lengths.to(device),
        state.open_sums,
        state_rows(len(lengths)).to(device),
        bt,
        layout,
    )


def apart(
    pages: torch.Tensor, table: torch.Tensor, layout: IndexLayout
) -> tuple[torch.Tensor, PooledRows]:
    """The same pooled keys, each somewhere else, and a table of their rows."""
    held = torch.where(table >= 0, table, 0).long()
    rows = (held[..., None] * 64 + torch.arange(64)).flatten(1)
    place = torch.randperm(rows.numel()).view(rows.shape)
    moved = torch.full((-(-rows.numel() // 64), layout.page_bytes), NAN_BYTE).byte()
    stored = read_index_rows(pages, rows.flatten(), layout)
    write_index_rows(moved, place.flatten(), stored, layout)
    is_held = (table >= 0).repeat_interleave(64, dim=1)
    return moved, PooledRows(torch.where(is_held, place, -1).int())
