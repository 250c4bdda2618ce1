"""Ours on short contexts: all tokens are scored, by our logits op or DeepGEMM's, or all taken."""

from collections.abc import Callable

import torch

from benchmarks.ops.inputs import INDEX, sample_rows
from benchmarks.ops.ours import triton_op
from benchmarks.select.check_chosen import check_ascending, check_chosen
from benchmarks.select.rows import Rows

Score = Callable[[], torch.Tensor]  # [rows, keys] fp32


class FlatSelection:
    """Logits of all tokens, then our top-k; of no more tokens than that, every position.

    Attributes:
        positions: [rows, topk] int32, what the last run chose: ascending, -1 pads.
    """

    def __init__(self, rows: Rows, topk: int, score: Score | None = None) -> None:
        self._rows, self._topk = rows, topk
        self._score = _our_scores(rows) if score is None else score
        self._choose, self._take_all = triton_op("topk"), triton_op("prefix_positions")
        self._takes_all = score is None and rows.keys <= topk
        self.positions = torch.full(
            (rows.num_rows, topk), -1, dtype=torch.int32, device=rows.query.device
        )

    def run(self) -> None:
        """One selection."""
        if self._takes_all:
            self._take_all(self._rows.row_pos, self._topk, out=self.positions)
            return
        self._choose(self._score(), self._topk, out=self.positions)

    def check(self) -> None:
        """Positions against the reference's scores of all tokens."""
        self.positions.fill_(-1)
        self.run()
        some = sample_rows(self._rows.num_rows)
        logits = self._rows.token_logits_ref(some)
        check_chosen("positions", logits, self.positions[some], self._topk)
        check_ascending("positions", self.positions[some])


def _our_scores(rows: Rows) -> Score:
    score = triton_op("paged_index_logits")
    logits = torch.empty(rows.num_rows, rows.keys, device=rows.query.device)
    keys = rows.index_pages, rows.page_table, rows.row_seq, rows.row_pos + 1

    def scores() -> torch.Tensor:
        score(rows.query, rows.weights, *keys, INDEX, out=logits)
        return logits

    return scores
