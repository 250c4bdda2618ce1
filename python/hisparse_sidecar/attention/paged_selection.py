"""The selection of a plan: rows and pages laid out once, then each layer's tokens chosen."""

from functools import cached_property

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import INDEX_DIM, INDEX_LAYOUTS, PAGE_TOKENS, IndexLayout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_kernels.shapes import INDEX_Q_DTYPES
from hisparse_sidecar.attention.contract import PlanContract
from hisparse_sidecar.attention.metadata import BatchArrays, CheckedArrays
from hisparse_sidecar.attention.paged_index_keys import PagedIndexKeys, PlannedRows
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.contract import SelectionQuery, Selector
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.gate import Gate, gpu_name
from hisparse_sidecar.selection.gate_table import Setting, find_table
from hisparse_sidecar.selection.registry import selector_for
from hisparse_sidecar.selection.row_groups import select_in_groups
from hisparse_sidecar.tensor_checks import check_tensor

_MAX_LOGITS_BYTES = 1 << 28


class PagedSelection:
    """Memory of the rows that select, and their choice.

    Attributes:
        planned: what the last plan laid out; None before the first.
    """

    def __init__(self, ops: Ops, device: torch.device, *, is_fixed: bool) -> None:
        """Without memory yet; `is_fixed`: what the first plan makes must never move."""
        self._ops, self._device, self._is_fixed = ops, device, is_fixed
        self._pooled_table: torch.Tensor | None = None
        self._num_rows = 0
        self._room: PlannedRows | None = None
        self.planned: PlannedRows | None = None

    def plan(
        self,
        contract: PlanContract,
        arrays: BatchArrays,
        checked: CheckedArrays,
        max_rows: int,
        pooled_table: torch.Tensor | None,
    ) -> PagedBatch:
        """Lays out the rows and pages of the next runs, and returns their batch.

        Raises:
            InvalidArgument: the pooled table does not fit, or memory would have to move, and must
                not; the last plan stands.
        """
        tables = None
        if pooled_table is not None:
            _check_pooled_table(contract, pooled_table, checked.num_seqs)
            tables = arrays.check_table("pooled_table", pooled_table)
        room = self._room_for(contract, checked.num_seqs, max_rows)
        planned = self._part_of(room, checked.num_seqs)
        batch = arrays.batch(checked, contract.page_size, causal=contract.causal)
        put_table = None if tables is None else arrays.put(tables)[0]
        assert contract.max_seq_len is not None
        planned.lay_out(self._ops, batch, contract.max_seq_len, contract.block_tokens)
        self._room, self.planned = room, planned
        self._pooled_table, self._num_rows = put_table, max_rows
        return batch

    def _room_for(self, contract: PlanContract, num_seqs: int, max_rows: int) -> PlannedRows:
        """Room for a plan; none is made where there is enough. Changes nothing."""
        assert contract.max_seq_len is not None
        require(max_rows >= 1, f"max_rows is {max_rows}, needs >= 1")
        blocks = -(-contract.max_seq_len // contract.block_tokens)
        pages = blocks * contract.block_tokens // PAGE_TOKENS
        if self._room is not None and _fits(self._room, max_rows, num_seqs, pages):
            return self._room
        return self._made_room(max_rows, num_seqs, pages)

    def _part_of(self, room: PlannedRows, num_seqs: int) -> PlannedRows:
        """The part of the room that so many sequences need."""
        last = self.planned
        is_the_last = room is self._room and last is not None and len(last.page_table) == num_seqs
        return last if is_the_last and last is not None else room.of(num_seqs)

    def _made_room(self, max_rows: int, num_seqs: int, pages: int) -> PlannedRows:
        if self._room is not None and self._is_fixed:
            rows, reserved = len(self._room.row_seq), tuple(self._room.page_table.shape)
            found = f"{max_rows} rows and a page table of {(num_seqs, pages)}"
            message = f"the plan has {found}, the first one reserved {rows} and {reserved}"
            raise InvalidArgument(message)
        if not self._is_fixed:  # so that few of the next plans need more
            max_rows, num_seqs = _next_power(max_rows), _next_power(num_seqs)
        return PlannedRows.empty(max_rows, num_seqs, pages, self._device)

    def select(
        self,
        contract: PlanContract,
        index_q: torch.Tensor | None,
        index_weights: torch.Tensor | None,
        index_k_cache: torch.Tensor | None,
        pooled_k_cache: torch.Tensor | None,
    ) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail.

        Raises:
            InvalidArgument: an input is missing, or does not fit; says what was needed.
        """
        query = self._query(contract, index_q, index_weights)
        layout, pages = self._pages("index_k_cache", index_k_cache)
        message = f"index_k_cache has {len(pages)} pages, a block of {contract.block_tokens} tokens"
        per_block = contract.block_tokens // PAGE_TOKENS
        require(len(pages) >= per_block, f"{message} needs {per_block}")
        pooled = self._pooled(contract, layout, pages, pooled_k_cache)
        assert self.planned is not None
        assert contract.max_seq_len is not None
        how = contract.block_tokens, pooled, pages, self.planned, contract.max_seq_len
        keys = PagedIndexKeys(self._ops, layout, *how)
        if not len(self.planned.page_table):  # every row is padding
            return keys.all_positions(query)
        if keys.num_tokens <= query.topk:  # whatever the scores are
            return keys.all_positions(query)
        selector = self._selector(contract, query)
        return select_in_groups(selector, query, keys, _MAX_LOGITS_BYTES)

    def _query(
        self,
        contract: PlanContract,
        index_q: torch.Tensor | None,
        index_weights: torch.Tensor | None,
    ) -> SelectionQuery:
        if index_q is None or index_weights is None:
            needed = "index_q, index_weights and index_k_cache, or a list"
            source = contract.selection.index_source
            raise InvalidArgument(f"index_source is {source!r}, a run needs {needed}")
        rows, heads = (*index_q.shape, 0)[:2]
        shape, device = (-1, -1, INDEX_DIM), self._device
        check_tensor("index_q", index_q, shape, *INDEX_Q_DTYPES, device=device)
        check_tensor("index_weights", index_weights, (rows, heads), torch.float32, device=device)
        require(heads >= 1, f"index_q has {heads} heads, needs >= 1")
        message = f"the run has {rows} rows, max_rows of the plan is {self._num_rows}"
        require(rows <= self._num_rows, message)
        contract.selection.check_for(contract.model(heads), contract.block_tokens)
        assert self.planned is not None
        return self.planned.query(index_q, index_weights, contract.topk)

    def _pages(self, name: str, pages: torch.Tensor | None) -> tuple[IndexLayout, torch.Tensor]:
        """Layout of some pages of index rows, and the pages as [num_pages, page_bytes]."""
        if pages is None:
            raise InvalidArgument(f"a run that selects needs {name}")
        widths = {layout.page_bytes: layout for layout in INDEX_LAYOUTS.values()}
        page_bytes = pages[0].numel() if pages.dim() > 1 and len(pages) else 0
        layout = widths.get(page_bytes)
        if layout is None or pages.dtype != torch.uint8 or not pages.is_contiguous():
            found = f"{pages.dtype} of shape {tuple(pages.shape)}, strides {pages.stride()}"
            known = " or ".join(map(str, widths))
            raise InvalidArgument(f"{name} is {found}, needs contiguous uint8 pages of {known} B")
        device = self._device
        require(pages.device == device, f"{name} is on {pages.device}, needs {device}")
        return layout, pages.view(len(pages), page_bytes)

    def _pooled(
        self,
        contract: PlanContract,
        layout: IndexLayout,
        index_pages: torch.Tensor,
        pooled_k_cache: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Pages of pooled keys and their table; flat never looks at them."""
        assert self.planned is not None
        if contract.selection.index_source == "flat":
            return index_pages, self.planned.page_table
        if pooled_k_cache is None or self._pooled_table is None:
            source = contract.selection.index_source
            needed = "pooled_k_cache, and a plan with pooled_table (see rebuild_pooled_keys)"
            raise InvalidArgument(f"index_source is {source!r}, a run needs {needed}")
        found, pooled_pages = self._pages("pooled_k_cache", pooled_k_cache)
        message = f"pooled_k_cache has {found.name} rows, index_k_cache {layout.name} rows"
        require(found == layout, message)
        return pooled_pages, self._pooled_table

    @cached_property
    def _gate(self) -> Gate:
        return Gate(find_table(gpu_name(self._device)))

    def _selector(self, contract: PlanContract, query: SelectionQuery) -> Selector:
        assert contract.max_seq_len is not None
        selection, heads = contract.selection, query.index_q.shape[1]
        sizes = selection.num_kept_blocks, contract.block_tokens, contract.topk
        call = selection, Setting(heads, *sizes), contract.max_seq_len, query.num_rows
        return FlatSelector() if self._gate.prefers_flat(*call) else selector_for(selection)


def _fits(room: PlannedRows, rows: int, num_seqs: int, pages: int) -> bool:
    sequences, width = room.page_table.shape
    return rows <= len(room.row_seq) and num_seqs <= sequences and pages == width


def _next_power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _check_pooled_table(contract: PlanContract, table: torch.Tensor, num_seqs: int) -> None:
    """Raises InvalidArgument unless the table has room for every block of every sequence."""
    assert contract.max_seq_len is not None
    blocks = -(-contract.max_seq_len // contract.block_tokens)
    rows, columns = tuple(table.shape)
    found = f"pooled_table has {rows} sequences and room for {columns * PAGE_TOKENS} blocks"
    fits = rows == num_seqs and columns * PAGE_TOKENS >= blocks
    require(fits, f"{found}, needs {num_seqs} and {blocks}")
