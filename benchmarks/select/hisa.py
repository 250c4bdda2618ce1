"""Ours: HISA's selection in two ops, from pooled scores to final positions."""

import torch

from benchmarks.ops.inputs import INDEX, sample_rows
from benchmarks.ops.ours import triton_op
from benchmarks.select.check_chosen import check_ascending, check_chosen
from benchmarks.select.residency import Residency
from benchmarks.select.rows import BLOCK_TOKENS, Rows
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.select_blocks import BlockScratch

KEPT, TOPK = 64, 2048


class HisaSelection:
    """The two ops of one selection over one set of rows, with all that they write.

    Attributes:
        block_ids: [rows, kept] int32, what the last run kept: ascending, -1 pads.
        positions: [rows, topk] int32, what it chose: ascending, -1 pads.
    """

    def __init__(self, rows: Rows, residency: Residency, topk: int, kept: int) -> None:
        self._rows, self._residency, self._topk, self._kept = rows, residency, topk, kept
        self._newest, self._pooled_table = rows.newest_block, rows.pooled_table
        self._select_blocks = triton_op("select_blocks")
        self._select_tokens = triton_op("select_tokens")
        pooled_columns = self._pooled_table.shape[1] * PAGE_TOKENS
        device = rows.query.device
        pooled_logits = torch.empty(rows.num_rows, pooled_columns, device=device)
        self._scratch = BlockScratch(pooled_logits, torch.zeros_like(rows.row_pos))
        self._logits = torch.empty(rows.num_rows, kept * BLOCK_TOKENS, device=device)
        self.block_ids, self.positions = _ids(rows, kept), _ids(rows, topk)

    def run(self) -> None:
        """One selection."""
        self.keep_blocks()
        self.choose_tokens()

    def keep_blocks(self) -> None:
        """The first half: `block_ids`."""
        rows = self._rows
        pooled = rows.pooled_pages, self._pooled_table, rows.row_seq, self._newest
        how = self._kept, INDEX, self._scratch
        written = {"out": self.block_ids, "slots": self._residency.window_slots}
        self._select_blocks(rows.query, rows.weights, *pooled, *how, **written)

    def choose_tokens(self) -> None:
        """The second half: `positions` in `block_ids`."""
        rows, residency = self._rows, self._residency
        slots = residency.slots(self.block_ids)
        lists = residency.window_pages, slots, self.block_ids, rows.row_pos
        how = BLOCK_TOKENS, self._topk, INDEX, self._logits
        written = {"out": self.positions, "host": residency.host}
        self._select_tokens(rows.query, rows.weights, *lists, *how, **written)

    def reset(self) -> None:
        """Back to before the first run."""
        self._residency.reset()

    def check(self) -> None:
        """Kept blocks against pooled scores, positions against the scores of the kept blocks."""
        self.reset()
        self.positions.fill_(-1)
        self.run()
        some = sample_rows(self._rows.num_rows)
        ids, found = self.block_ids[some], self.positions[some]
        check_chosen("blocks", self._rows.block_logits_ref(some), ids, self._kept)
        check_ascending("blocks", ids)
        check_chosen("positions", self._kept_logits_ref(some, ids), found, self._topk)
        check_ascending("positions", found)
        self.reset()
        self._residency.check_before(self.block_ids)

    def _kept_logits_ref(self, some: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """[some, keys] fp32, -inf in the tokens of blocks that were not kept."""
        is_kept = torch.zeros(len(some), self._rows.blocks + 1, dtype=torch.bool, device=ids.device)
        is_kept.scatter_(1, torch.where(ids >= 0, ids, self._rows.blocks).long(), True)
        tokens = is_kept[:, :-1].repeat_interleave(BLOCK_TOKENS, 1)
        return self._rows.token_logits_ref(some).masked_fill_(~tokens, -torch.inf)


def _ids(rows: Rows, count: int) -> torch.Tensor:
    return torch.full((rows.num_rows, count), -1, dtype=torch.int32, device=rows.query.device)
