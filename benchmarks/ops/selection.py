"""HISA's selection as one call: pooled scores, best blocks, their slots, token scores, top-k."""

import torch

from benchmarks.ops.compare import WrongResultError, check_equal, check_logits
from benchmarks.ops.hot_buffers import stamps
from benchmarks.ops.inputs import INDEX, index_pages, index_queries, page_tables, sample_rows
from benchmarks.ops.ours import triton_op
from hisparse_kernels.block_topm import block_topm_ref
from hisparse_kernels.index_logits import paged_index_logits_ref
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.refine_logits import refine_logits_ref
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState
from hisparse_kernels.topk import candidate_positions_ref, topk_ref

HEADS, TOPK, KEPT, BLOCK_TOKENS = 64, 2048, 64, 128


class Selection:
    """Rows of one or more sequences of one length, every block of them in a slot of its own.

    Slots come from a resolve, which misses nothing; rows of a single sequence, as a prefill has
    them, go without: its slots are in the order of its blocks.

    Attributes:
        query, weights: [rows, heads, 128] e4m3, [rows, heads] fp32.
        index_pages: [sequences * pages, page_bytes] uint8.
        block_tables: [sequences, pages] int32, of all tokens, for who scores them all.
    """

    def __init__(self, keys: int, row_seq: torch.Tensor, row_pos: torch.Tensor) -> None:
        rows, sequences = len(row_seq), int(row_seq.max()) + 1
        self._row_seq, self._row_pos = row_seq, row_pos
        self.query, self.weights = index_queries(rows, HEADS)
        self.index_pages = index_pages(sequences * keys // PAGE_TOKENS)
        page = torch.arange(len(self.index_pages), dtype=torch.int32, device="cuda")
        self.block_tables = page.view(sequences, -1)
        self._newest = row_pos // BLOCK_TOKENS
        self._resolves = rows == sequences
        self._place_blocks(sequences, keys // BLOCK_TOKENS)
        self._pooled_logits = torch.empty(rows, keys // BLOCK_TOKENS, device="cuda")
        self._refined = torch.empty(rows, KEPT * BLOCK_TOKENS, device="cuda")
        self._block_ids, self._slots = (_empty(rows, KEPT) for _ in range(2))
        self._columns, self._found = (_empty(rows, TOPK) for _ in range(2))
        self._bind()

    def _place_blocks(self, sequences: int, blocks: int) -> None:
        """Pooled keys, and slot state with every block resident."""
        pooled_pages = blocks // PAGE_TOKENS
        self._pooled_pages = index_pages(sequences * pooled_pages)
        self._pooled_table = page_tables(1, sequences, pooled_pages)[0]
        block = torch.arange(blocks, dtype=torch.int32, device="cuda").repeat(sequences)
        self._state = SlotState(block, torch.zeros_like(block), block.clone())
        base = torch.arange(sequences, device="cuda") * blocks
        self._ranges = SlotRanges(base, torch.full_like(base, blocks), base.clone())
        self._stamps = stamps(1)
        self._plan = MissPlan(
            _empty(sequences, KEPT), _empty(sequences, KEPT), _empty(sequences), _empty(sequences)
        )

    def _bind(self) -> None:
        self._score_pooled, self._keep = triton_op("paged_index_logits"), triton_op("block_topm")
        self._resolve, self._refine = triton_op("resolve"), triton_op("refine_logits")
        self._choose, self._to_positions = triton_op("topk"), triton_op("candidate_positions")

    def run(self) -> None:
        """One selection; allocates nothing."""
        queries = self.query, self.weights
        keys = self._pooled_pages, self._pooled_table, self._row_seq, self._newest
        self._score_pooled(*queries, *keys, INDEX, out=self._pooled_logits)
        self._keep(self._pooled_logits, self._newest, KEPT, out=self._block_ids)
        slots = self._block_ids
        if self._resolves:
            held = self._state, self._ranges, self._stamps, self._plan, self._slots
            slots = self._resolve(self._block_ids, self._row_seq, *held)
        lists = self.index_pages, slots, self._block_ids, self._row_pos
        self._refine(*queries, *lists, BLOCK_TOKENS, INDEX, out=self._refined)
        self._choose(self._refined, TOPK, out=self._columns)
        self._to_positions(self._columns, self._block_ids, BLOCK_TOKENS, out=self._found)

    def check(self) -> None:
        """Each part against its reference, on what the part before it gave."""
        self.run()
        some = sample_rows(len(self._row_seq))
        queries, ids = (self.query[some], self.weights[some]), self._block_ids[some]
        keys = self._pooled_pages, self._pooled_table, self._row_seq[some], self._newest[some]
        pooled = self._pooled_logits[some]
        check_logits("pooled logits", pooled, paged_index_logits_ref(*queries, *keys, INDEX))
        check_equal("blocks", ids, block_topm_ref(pooled, self._newest[some], KEPT))
        slots = self._check_slots(some, ids)
        refined = torch.empty(len(some), KEPT * BLOCK_TOKENS, device="cuda")
        lists = self.index_pages, slots, ids, self._row_pos[some]
        refine_logits_ref(*queries, *lists, BLOCK_TOKENS, INDEX, out=refined)
        check_logits("token logits", self._refined[some], refined)
        columns = topk_ref(self._refined[some], TOPK)
        expected = candidate_positions_ref(columns, ids, BLOCK_TOKENS)
        check_equal("positions", self._found[some], expected)

    def _check_slots(self, some: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The slots of some rows: every block was resident, in the slot of its number."""
        if not self._resolves:
            return ids
        missed = int(self._plan.miss_count.abs().max())
        if missed:
            raise WrongResultError(f"{missed} blocks were not resident")
        slots = self._slots[some]
        check_equal("slots", slots, ids + self._ranges.slot_base[some, None].int())
        return slots


def _empty(*shape: int) -> torch.Tensor:
    return torch.full(shape, -1, dtype=torch.int32, device="cuda")
