"""The rows of one forward pass, laid out for selection in an engine's pages."""

from dataclasses import dataclass

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS, IndexLayout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_kernels.pooled_rows import PooledRows
from hisparse_sidecar.attention.paged_index_keys import PagedIndexKeys, PlannedRows
from hisparse_sidecar.selection.contract import SelectionQuery, Selector
from hisparse_sidecar.selection.row_groups import select_in_groups

_MAX_LOGITS_BYTES = 1 << 28


@dataclass(frozen=True)
class LayerKeys:
    """Index keys of one layer.

    Attributes:
        pages: [num_pages, page_bytes] uint8.
        pooled: [num_pooled_pages, page_bytes] uint8, the pooled key of page p as row p.
    """

    pages: torch.Tensor
    pooled: torch.Tensor


class IndexPlan:
    """Made once a forward pass, in one launch and a few fills; every layer then selects by it.

    Attributes:
        num_rows: query rows; those of a query beyond it are the engine's padding.
    """

    def __init__(
        self,
        ops: Ops,
        layout: IndexLayout,
        batch: PagedBatch,
        num_rows: int,
        slots: PagedBatch | None = None,
    ) -> None:
        """Lays the batch out.

        Args:
            ops: the ops to use.
            layout: how index rows are stored.
            batch: whose rows and pages of index keys these are, in dense pages of 64 tokens.
            num_rows: query rows.
            slots: the same batch with the engine's pages, where these are others.
        """
        self._ops, self._layout, self.num_rows = ops, layout, num_rows
        self._slots = batch if slots is None else slots
        num_seqs, found = batch.kv_pages.shape
        width = max(1, -(-found // PAGE_TOKENS)) * PAGE_TOKENS  # a multiple, see `PooledRows`
        self._num_tokens = found * PAGE_TOKENS
        self._rows = PlannedRows.empty(num_rows, num_seqs, width, batch.kv_lens.device)
        places = self._rows.row_seq, self._rows.row_pos, self._rows.page_table
        ops.lay_out_batch(batch, self._num_tokens, *places)

    def select(
        self,
        selector: Selector,
        index_q: torch.Tensor,
        index_weights: torch.Tensor,
        keys: LayerKeys,
        topk: int,
    ) -> torch.Tensor:
        """[num_rows, topk] int32, token positions, ascending, -1 pads the tail.

        Args:
            selector: who chooses.
            index_q: [num_rows, index_heads, 128] e4m3.
            index_weights: [num_rows, index_heads] fp32, all scales but the key's folded in.
            keys: of the layer.
            topk: tokens of a row.
        """
        rows = self._rows
        query = SelectionQuery(index_q, index_weights, rows.row_seq, rows.row_pos, topk)
        pooled = keys.pooled, PooledRows(rows.page_table)
        where = PAGE_TOKENS, pooled, keys.pages, rows, self._num_tokens
        return select_in_groups(
            selector, query, PagedIndexKeys(self._ops, self._layout, *where), _MAX_LOGITS_BYTES
        )

    def slots(self, positions: torch.Tensor, num_pages: int) -> torch.Tensor:
        """[num_rows, topk] int32, the engine's slot (page * 64 + place) of each position."""
        return self._ops.locate_rows(positions, self._slots, num_pages, PAGE_TOKENS)
