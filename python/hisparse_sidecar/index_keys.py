"""The index side of one anchor layer in a step: append, pooled keys, block window, spill."""

import torch

from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.stats import GroupTraffic, Traffic
from hisparse_sidecar.step import Step
from hisparse_sidecar.tiers import Tiers


class LayerIndexKeys:
    """Index keys of one anchor group during one step; implements `selection.IndexKeys`."""

    def __init__(self, tiers: Tiers, step: Step, group: int, traffic: GroupTraffic) -> None:
        self._tiers, self._step, self._group, self._traffic = tiers, step, group, traffic
        self._ops, self._layout = tiers.ops, tiers.config.index
        self._window_pages = tiers.device.window_pages[group]
        self._pooled_pages = tiers.device.pooled_pages[group]
        self._host_pages = tiers.host.index_pages[group]
        self.block_tokens = tiers.config.block_tokens
        longest = max((sequence.length for sequence in step.sequences), default=0)
        self.num_blocks = -(-longest // self.block_tokens)

    # -- append and spill ---------------------------------------------------------------------

    def append(self, index_rows: torch.Tensor) -> None:
        """Writes the step's packed index rows [rows, index_row_bytes] and folds them into the pool.

        A decode step writes them to the window, whose touched blocks become resident first; a
        prefill chunk writes them to the host, from where its tiles stream.
        """
        self._check_complete()
        if self._step.kind == "decode":
            self._append_to(self._window_pages, self._window_row_ids(), index_rows)
        else:
            self._forget_touched_blocks()
            self._append_to(self._host_pages, self._step.host_row_ids, index_rows)
            self._traffic.spilled_bytes += index_rows.numel()
        self._advance_pooled()

    def _check_complete(self) -> None:
        """Raises WrongState unless every token before the step's rows has its index row."""
        for sequence in self._step.sequences:
            closed, open_tokens = self._tiers.manager.pooled_state(sequence.handle, self._group)
            found = closed * self.block_tokens + open_tokens
            if found != sequence.start:
                held = f"sequence {sequence.handle} has index keys of {found} tokens"
                raise WrongState(f"{held}, its new rows start at {sequence.start}")

    def _window_row_ids(self) -> torch.Tensor:
        """Row of the window for each new row, whose block becomes resident; -1 = padding row."""
        step, block_tokens = self._step, self.block_tokens
        blocks = torch.div(step.row_pos, block_tokens, rounding_mode="floor")[:, None]
        slots = self._make_resident(blocks, step.row_seq, step.select_stamps, None)[:, 0].long()
        return torch.where(slots >= 0, slots * block_tokens + step.row_pos % block_tokens, -1)

    def _forget_touched_blocks(self) -> None:
        state, ranges = self._tiers.device.window[self._group], self._step.window_ranges
        for number, sequence in enumerate(self._step.sequences):
            first = sequence.start // self.block_tokens
            self._ops.release_items(state, ranges, number, first)

    def _append_to(
        self, index_pages: torch.Tensor, row_ids: torch.Tensor, index_rows: torch.Tensor
    ) -> None:
        step = self._step
        self._ops.append_index_rows(
            index_rows,
            row_ids,
            index_pages,
            step.row_seq,
            step.row_pos,
            self._tiers.device.open_sums[self._group],
            step.state_rows,
            self._pooled_pages,
            step.pooled_base,
            self.block_tokens,
            self._layout,
        )

    def _advance_pooled(self) -> None:
        """Counts the rows in the core and spills the pooled keys of the blocks that they fill."""
        step = self._step
        for sequence in step.sequences:
            self._tiers.manager.advance_pooled(sequence.handle, self._group, sequence.num_rows)
        if not step.closed_rows.numel():
            return
        rows = self._ops.read_index_rows(self._pooled_pages, step.closed_rows, self._layout)
        self._ops.spill(rows, step.closed_pages, self._tiers.host.pooled_rows[self._group])
        self._traffic.spilled_bytes += rows.numel()

    def spill(self, index_rows: torch.Tensor) -> None:
        """Writes the step's packed index rows to the host pool."""
        row_ids = self._step.host_row_ids
        self._ops.write_index_rows(self._host_pages, row_ids, index_rows, self._layout)
        self._traffic.spilled_bytes += index_rows.numel()

    # -- what selectors ask for ---------------------------------------------------------------

    def pooled_logits(self, query: SelectionQuery) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        complete = torch.div(query.row_pos, self.block_tokens, rounding_mode="floor").clamp(min=0)
        return self._ops.paged_index_logits(
            query.index_q,
            query.index_weights,
            self._pooled_pages,
            self._step.pooled_table,
            query.row_seq,
            complete,
            self._layout,
        )

    def routed_heads(self, query: SelectionQuery, num_routed: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        complete = torch.div(query.row_pos + 1, self.block_tokens, rounding_mode="floor")
        return self._ops.route_heads(
            query.index_q,
            query.index_weights,
            self._pooled_pages,
            self._step.pooled_table,
            query.row_seq,
            complete,
            num_routed,
            layout=self._layout,
        )

    def top_blocks(self, logits: torch.Tensor, query: SelectionQuery, kept: int) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        newest = torch.div(query.row_pos, self.block_tokens, rounding_mode="floor")
        return self._ops.block_topm(logits, newest, kept)

    def top_positions(
        self, logits: torch.Tensor, block_ids: torch.Tensor, topk: int
    ) -> torch.Tensor:
        """See `selection.IndexKeys`."""
        columns = self._ops.topk(logits, topk)
        return self._ops.candidate_positions(columns, block_ids, self.block_tokens)

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """See `selection.IndexKeys`. Blocks that fit are kept in the window; others stream."""
        shape = (query.num_rows, block_ids.shape[1] * self.block_tokens)
        logits = torch.full(shape, float("-inf"), device=query.row_pos.device)
        if self._step.kind == "decode" and self._fits(block_ids.shape[1]):
            traffic = self._traffic.blocks
            slots = self._make_resident(block_ids, query.row_seq, self._step.select_stamps, traffic)
            self._refine(query, slots, block_ids, logits)
        else:
            for tile in self._tiles():
                self._refine(query, self._stream(query, block_ids, tile), block_ids, logits)
        return logits

    def _fits(self, num_scored: int) -> bool:
        """Whether every sequence's window holds what its rows may score and its new rows touch."""
        return all(
            min(sequence.num_rows * num_scored, self.num_blocks) + self._tiers.config.touched_blocks
            <= sequence.ranges.window_count
            for sequence in self._step.sequences
        )

    def _refine(
        self,
        query: SelectionQuery,
        slots: torch.Tensor,
        block_ids: torch.Tensor,
        logits: torch.Tensor,
    ) -> None:
        self._ops.refine_logits(
            query.index_q,
            query.index_weights,
            self._window_pages,
            slots,
            block_ids,
            query.row_pos,
            self.block_tokens,
            self._layout,
            logits,
        )

    # -- the block window ---------------------------------------------------------------------

    def _tiles(self) -> list[range]:
        """Runs of block ids that fit every window beside the blocks that the step protects.

        Every other step goes backwards, so that it finds what the last one left.
        """
        windows = [sequence.ranges.window_count for sequence in self._step.sequences]
        room = max(1, min(windows, default=1) - self._tiers.config.touched_blocks)
        starts = range(0, self.num_blocks, room)
        tiles = [range(start, min(start + room, self.num_blocks)) for start in starts]
        return tiles[::-1] if self._step.number % 2 else tiles

    def _stream(self, query: SelectionQuery, block_ids: torch.Tensor, tile: range) -> torch.Tensor:
        """Brings a tile of blocks in; slots [rows, m] int32 of `block_ids`, -1 outside the tile."""
        step, device = self._step, block_ids.device
        numbers = torch.arange(len(step.sequences), dtype=torch.int32, device=device)
        items = torch.arange(tile.start, tile.stop, dtype=torch.int32, device=device)
        held = items * self.block_tokens < step.lengths[:, None]
        asked = torch.zeros(len(step.sequences) + 1, dtype=torch.bool, device=device)
        # -1 of a padding row asks for the last entry, of no sequence; index_put would wait
        asked.index_fill_(0, (query.row_seq % asked.numel()).long(), True)
        items = torch.where(held & asked[:-1, None], items, -1)
        traffic = self._traffic
        counted = traffic.blocks if step.kind == "decode" else traffic.prefill_blocks
        slots = self._make_resident(items, numbers, step.stream_stamps, counted)
        inside = (block_ids >= tile.start) & (block_ids < tile.stop) & (query.row_seq >= 0)[:, None]
        columns = torch.where(inside, block_ids - tile.start, 0).long()
        found = slots[query.row_seq.clamp(min=0).long()].gather(1, columns)
        return torch.where(inside, found, -1)

    def _make_resident(
        self,
        items: torch.Tensor,
        row_seq: torch.Tensor,
        stamps: torch.Tensor,
        traffic: Traffic | None,
    ) -> torch.Tensor:
        """Slots of `items` [rows, k] int32, -1 = none; the missing blocks are copied in."""
        step, state = self._step, self._tiers.device.window[self._group]
        plan = step.window_plan()
        slots = torch.empty_like(items)
        self._ops.resolve(items, row_seq, state, step.window_ranges, stamps, plan, slots)
        self._ops.swap_in_blocks(
            self._host_pages, step.page_table, plan, self._window_pages, self.block_tokens
        )
        block_bytes = self._tiers.config.pages_per_block * self._layout.page_bytes
        step.watch.see_resolve("blocks", plan, traffic, block_bytes)
        return slots
