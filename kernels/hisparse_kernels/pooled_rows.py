"""Where the pooled keys of sequences lie: in pages of 64, or each by itself."""

from dataclasses import dataclass

import torch

from hisparse_kernels.index_rows import read_index_rows_ref, write_index_rows_ref
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.shapes import Shapes


@dataclass(frozen=True)
class PooledRows:
    """Pooled keys that lie apart, as those of an engine's pages do (see `pool_full_pages`).

    Attributes:
        rows: [num_seqs, columns] int32, pooled row (page * 64 + place) of each block of a sequence;
            -1 beyond its end. Columns are a multiple of 64.
    """

    rows: torch.Tensor

    @property
    def max_pages(self) -> int:
        """Pages that as many pooled keys would fill."""
        return self.rows.shape[1] // PAGE_TOKENS


PooledTable = torch.Tensor | PooledRows
"""[num_seqs, max_pages] int32, pooled page of each 64 blocks, -1 beyond the end; or rows."""


def pooled_pages_of(table: PooledTable) -> int:
    """Pages of 64 pooled keys that a sequence of the table has at most."""
    return table.max_pages if isinstance(table, PooledRows) else table.shape[-1]


def pooled_entries_of(table: PooledTable) -> torch.Tensor:
    """What a kernel reads: the page of each 64 blocks, or the row of each block; contiguous."""
    return (table.rows if isinstance(table, PooledRows) else table).contiguous()


def check_pooled_table(shapes: Shapes, name: str, table: PooledTable) -> None:
    """Raises ValueError unless the table is as it must be; binds num_seqs and max_pages."""
    if not isinstance(table, PooledRows):
        shapes.check(name, table, "num_seqs max_pages", torch.int32)
        return
    shapes.check_packed(f"{name}.rows", table.rows, "num_seqs blocks", torch.int32)
    columns = table.rows.shape[1]
    if columns % PAGE_TOKENS:
        raise ValueError(f"{name}.rows has {columns} columns, needs a multiple of {PAGE_TOKENS}")


def in_pages(
    pooled_pages: torch.Tensor, table: PooledTable, layout: IndexLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled keys and a table of their pages; rows are copied together for it."""
    if not isinstance(table, PooledRows):
        return pooled_pages, table
    num_seqs, columns = table.rows.shape
    # what stands beyond a sequence's end is never looked at
    rows = read_index_rows_ref(pooled_pages, table.rows.flatten().clamp(min=0).long(), layout)
    pages = pooled_pages.new_zeros(num_seqs * columns // PAGE_TOKENS, layout.page_bytes)
    write_index_rows_ref(pages, torch.arange(len(rows), device=rows.device), rows, layout)
    numbers = torch.arange(len(pages), dtype=torch.int32, device=rows.device)
    return pages, numbers.view(num_seqs, columns // PAGE_TOKENS)
