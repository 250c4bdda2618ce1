"""The block window of one anchor group in a step: which index-key blocks lie where."""

from collections.abc import Iterable

import torch

from hisparse_kernels.index_logits import SlotPages
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.window_slots import WindowSlots
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.stats import GroupTraffic, Traffic
from hisparse_sidecar.step.step import Step, StepSequence
from hisparse_sidecar.tiers.tiers import Tiers
from hisparse_sidecar.uploads import upload


class BlockWindow:
    """Slots for index-key blocks, and what is copied into them.

    Attributes:
        pages: [slots * pages_per_block, page_bytes] uint8, what the slots hold.
        slot_table: [entries] int16 or int32, slot of each block, relative to its sequence's first.
    """

    def __init__(self, tiers: Tiers, step: Step, group: int, traffic: GroupTraffic) -> None:
        self._tiers, self._step, self._group, self._traffic = tiers, step, group, traffic
        self._block_tokens = tiers.config.block_tokens
        self._host_pages = tiers.host.index_pages[group]
        self._state = tiers.device.window[group]
        self.pages = tiers.device.window_pages[group]
        self.slot_table = self._state.slot_table
        self._num_blocks = -(-step.most_tokens // self._block_tokens)

    # -- whole sequences ----------------------------------------------------------------------

    @property
    def has_room_for_all(self) -> bool:
        """Whether every sequence's window holds all of its blocks."""
        if self._step.frame is not None:
            return self._step.frame.is_resident
        return all(self.has_room(sequence) for sequence in self._step.sequences)

    def holds(self, sequence: StepSequence) -> bool:
        """Whether every block of the sequence has a slot now."""
        return self._tiers.loaded.has(sequence.handle, self._group)

    def has_room(self, sequence: StepSequence) -> bool:
        """Whether its window holds all of its blocks beside those that the step touches."""
        return (
            self._blocks_of(sequence) + self._tiers.config.touched_blocks
            <= sequence.ranges.window_count
        )

    def load(self) -> bool:
        """Gives every block of the sequences with room a slot; False where all had one before.

        Nothing asks for these blocks: their bytes count, not they.
        """
        loaded, sequences = self._tiers.loaded, self._step.sequences
        if self._step.frame is not None and not self._step.frame.is_resident:
            self.forget_loaded(sequences)
            return False
        rooms = [(sequence, self.has_room(sequence)) for sequence in sequences]
        missing = [has_room and not self.holds(one) for one, has_room in rooms]
        self.forget_loaded(one for one, has_room in rooms if not has_room)
        if not any(missing):
            return False
        device = self.pages.device
        items = torch.arange(self._num_blocks, dtype=torch.int32, device=device)
        held = items * self._block_tokens < self._step.lengths[:, None]
        count = self._step.num_sequences
        missing += [False] * (count - len(missing))  # what is none's in a frame
        wanted = upload({"wanted": torch.tensor(missing)}, device)["wanted"]
        numbers = torch.arange(count, dtype=torch.int32, device=device)
        items = torch.where(held & wanted[:, None], items, -1)
        plan, _ = self._resolve(items, numbers, self._step.select_stamps, None)
        read = plan.miss_count * self._block_bytes
        self._step.watch.see_amounts(self._traffic.blocks, "bytes_in", read)
        for sequence, has_room in rooms:
            if has_room:
                loaded.add(sequence.handle, self._group)
        return True

    def forget_loaded(self, sequences: Iterable[StepSequence]) -> None:
        """Their blocks may lose their slots from now on, or have rows on the host alone."""
        for sequence in sequences:
            self._tiers.loaded.forget(sequence.handle)

    def fits(self, num_scored: int) -> bool:
        """Whether every sequence's window holds what its rows may score and its new rows touch."""
        if self._step.frame is not None:
            return self._step.frame.fits(num_scored)
        touched = self._tiers.config.touched_blocks
        return all(
            min(sequence.num_rows * num_scored, self._blocks_of(sequence)) + touched
            <= sequence.ranges.window_count
            for sequence in self._step.sequences
        )

    def _blocks_of(self, sequence: StepSequence) -> int:
        return -(-sequence.length // self._block_tokens)

    def hold_touched(self) -> None:
        """Gives the blocks that the step's rows lie in slots; what is missing of them is copied in.

        Where every block has its slot already, only one that begins has none: other steps launch
        nothing.
        """
        step = self._step
        if not step.begins_blocks and all(self.holds(sequence) for sequence in step.sequences):
            return
        self.make_resident(step.row_block[:, None], step.row_seq, step.select_stamps, None)

    # -- slots --------------------------------------------------------------------------------

    def slots_to_find(self, rows: int, kept: int) -> WindowSlots:
        """Where `select_blocks` looks slots up, with a place for them."""
        ranges = self._step.window_ranges
        out = torch.empty(rows, kept, dtype=torch.int32, device=self.pages.device)
        return WindowSlots(self._state.slot_table, ranges.table_base, ranges.slot_base, out)

    def look_up(self, row_seq: torch.Tensor, block_ids: torch.Tensor) -> torch.Tensor:
        """[rows, m] int32, slot of each block as it is now; -1 = not in the window."""
        slots = self.slots_to_find(*block_ids.shape)
        return self._tiers.ops.look_up_blocks(block_ids.contiguous(), row_seq, slots)

    def slot_pages(self) -> SlotPages:
        """Where the pages of sequences lie whose every block has a slot."""
        ranges, per_block = self._step.window_ranges, self._tiers.config.pages_per_block
        bases = ranges.table_base, ranges.slot_base
        return SlotPages(self._state.slot_table, *bases, self._num_blocks, per_block)

    # -- streams ------------------------------------------------------------------------------

    def tiles(self) -> list[range]:
        """Runs of block ids that fit every window beside the blocks that the step protects.

        Every other step goes backwards, so that it finds what the last one left.
        """
        windows = [sequence.ranges.window_count for sequence in self._step.sequences]
        if self._step.frame is not None:
            windows = [self._step.frame.window_slots]
        room = max(1, min(windows, default=1) - self._tiers.config.touched_blocks)
        starts = range(0, self._num_blocks, room)
        tiles = [range(start, min(start + room, self._num_blocks)) for start in starts]
        return tiles[::-1] if self._step.number % 2 else tiles

    def stream(self, query: SelectionQuery, block_ids: torch.Tensor, tile: range) -> torch.Tensor:
        """Brings a tile of blocks in; slots [rows, m] int32 of `block_ids`, -1 outside the tile."""
        step, device = self._step, block_ids.device
        numbers = torch.arange(step.num_sequences, dtype=torch.int32, device=device)
        items = torch.arange(tile.start, tile.stop, dtype=torch.int32, device=device)
        held = items * self._block_tokens < step.lengths[:, None]
        asked = torch.zeros(step.num_sequences + 1, dtype=torch.bool, device=device)
        # -1 of a padding row asks for the last entry, of no sequence; index_put would wait
        asked.index_fill_(0, (query.row_seq % asked.numel()).long(), True)
        items = torch.where(held & asked[:-1, None], items, -1)
        traffic = self._traffic
        counted = traffic.blocks if step.kind == "decode" else traffic.prefill_blocks
        slots = self.make_resident(items, numbers, step.stream_stamps, counted)
        inside = (block_ids >= tile.start) & (block_ids < tile.stop) & (query.row_seq >= 0)[:, None]
        columns = torch.where(inside, block_ids - tile.start, 0).long()
        found = slots[query.row_seq.clamp(min=0).long()].gather(1, columns)
        return torch.where(inside, found, -1)

    def make_resident(
        self,
        items: torch.Tensor,
        row_seq: torch.Tensor,
        stamps: torch.Tensor,
        traffic: Traffic | None,
    ) -> torch.Tensor:
        """Slots of `items` [rows, k] int32, -1 = none; the missing blocks are copied in."""
        return self._resolve(items, row_seq, stamps, traffic)[1]

    def _resolve(
        self,
        items: torch.Tensor,
        row_seq: torch.Tensor,
        stamps: torch.Tensor,
        traffic: Traffic | None,
    ) -> tuple[MissPlan, torch.Tensor]:
        step = self._step
        plan = step.window_plan()
        slots = torch.empty_like(items)
        self._tiers.ops.resolve(
            items, row_seq, self._state, step.window_ranges, stamps, plan, slots
        )
        self._tiers.ops.swap_in_blocks(
            self._host_pages, step.page_table, plan, self.pages, self._block_tokens
        )
        step.watch.see_resolve("blocks", plan, traffic, self._block_bytes)
        return plan, slots

    @property
    def _block_bytes(self) -> int:
        return self._tiers.config.pages_per_block * self._tiers.config.index.page_bytes
