"""The KV side of one layer in a step: append, resolve, swap-in or staging."""

from collections.abc import Iterator

import torch

from hisparse_kernels.append_rows import IndexSide, StepRows
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.swap_in import FreshRows
from hisparse_sidecar.pipeline.row_groups import RowGroup, fresh_of, plan_of, row_groups
from hisparse_sidecar.side_stream import StreamMark
from hisparse_sidecar.stats import GroupTraffic
from hisparse_sidecar.step.step import GroupStep, Step
from hisparse_sidecar.tiers.tiers import Tiers
from hisparse_sidecar.uploads import upload

# of a copy beside attention: so few leave it multiprocessors, and 8 KB of each keep the link busy
_BESIDE_PROGRAMS = 32


class LayerKvRows:
    """KV rows of one layer during one step; rows to attend to come back as (rows, row ids)."""

    def __init__(self, tiers: Tiers, step: Step, layer: int, traffic: GroupTraffic) -> None:
        self._tiers, self._step, self._traffic = tiers, step, traffic
        self._ops = tiers.ops
        self._group = tiers.config.model.group(layer)
        self._hot_rows = tiers.device.hot_rows[layer]
        self._host_rows = tiers.host.kv_rows[layer]

    @property
    def shared(self) -> GroupStep:
        """What the group's anchor resolved in this step."""
        return self._step.groups[self._group]

    def append(self, values: torch.Tensor, index: IndexSide | None) -> torch.Tensor:
        """Packs a decode step's rows, and writes those that are this rank's to the host pool.

        No row needs a slot yet: `swap_in` gives it one where it is selected.

        Args:
            values: [rows, query_dim] float.
            index: the index side of an anchor layer, which is appended in the same launch.

        Returns:
            [rows, kv_row_bytes] uint8, the packed rows.
        """
        step, layout = self._step, self._tiers.config.kv
        packed = self._host_rows.new_empty(step.num_rows, layout.row_bytes)
        rows = StepRows(step.row_seq, step.row_pos, step.spill_row_ids)
        self._ops.append_rows(values, layout, rows, self._host_rows, packed, index)
        self.count_appended()
        return packed

    def count_appended(self) -> None:
        """Counts a decode step's rows, which `append_rows` writes to the host, in the traffic."""
        row_bytes = self._tiers.config.kv.row_bytes
        self._traffic.spilled_bytes += self._step.num_spilled_rows * row_bytes

    def append_chunk(self, values: torch.Tensor) -> None:
        """Writes the rows [rows, query_dim] of a prefill chunk to the host pool."""
        packed = self._ops.pack_kv_rows(values, self._tiers.config.kv)
        self._ops.spill(packed, self._step.spill_row_ids, self._host_rows)
        self._traffic.spilled_bytes += self._step.num_spilled_rows * packed.shape[1]

    def swap_in(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[RowGroup]]:
        """Brings in what was selected, by groups of rows where the configuration says so.

        Args:
            packed: [rows, kv_row_bytes] uint8, the step's own rows: what was selected of them comes
                from here, whoever has written it to the host. Held until the last group is ready.

        Returns:
            The hot rows, the slots [rows, topk] of the selection, and the groups, in the order in
            which they become ready.
        """
        step, shared, num_fresh = self._step, self.shared, None
        if shared.slots is None:
            num_fresh = torch.empty_like(step.first_pos)
            self._resolve(num_fresh)
        assert shared.slots is not None
        assert shared.plan is not None
        fresh = FreshRows(packed, step.first_pos, step.first_row, num_fresh)
        return self._hot_rows, shared.slots, self._bring_in(shared.plan, fresh)

    def _bring_in(self, plan: MissPlan, fresh: FreshRows) -> list[RowGroup]:
        step, group_rows = self._step, self._tiers.config.overlap_rows
        if not 0 < group_rows < step.num_rows:
            self._ops.swap_in(self._host_rows, step.page_table, plan, self._hot_rows, fresh)
            return [RowGroup(slice(0, step.num_rows), StreamMark(None))]
        groups, copies = [], self._tiers.copies
        with copies.beside():
            for rows, some in row_groups(step.num_rows, step.num_sequences, group_rows):
                source, own = (self._host_rows, step.page_table[some]), plan_of(plan, some)
                target = self._hot_rows, fresh_of(fresh, some)
                self._ops.swap_in(*source, own, *target, max_programs=_BESIDE_PROGRAMS)
                groups.append(RowGroup(rows, copies.mark()))
        return groups

    def _resolve(self, num_fresh: torch.Tensor) -> None:
        """Leaves slots and plan of the selection; `swap_in` then writes `num_fresh`."""
        step, shared, plan = self._step, self.shared, self._step.hot_plan()
        assert shared.topk_indices is not None
        slots, state = torch.empty_like(shared.topk_indices), self._tiers.device.hot[self._group]
        where = step.row_seq, state, step.hot_ranges, step.select_stamps
        self._ops.resolve(shared.topk_indices, *where, plan, slots)
        num_layers = self._tiers.config.model.groups.count(self._group)
        row_bytes = num_layers * self._hot_rows.shape[1]
        step.watch.see_resolve("rows", plan, self._traffic.rows, row_bytes, num_fresh)
        shared.plan, shared.slots = plan, slots

    # -- prefill ------------------------------------------------------------------------------

    def staged(self, number: int) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Row groups of the step's sequence `number`: (rows, stage, row ids [rows, topk] in it).

        The whole prefix is staged if it fits; else each group stages the rows that it selected.
        The stage is used again by the next group: attend before taking it.
        """
        sequence, rows = self._step.sequences[number], self._step.row_range(number)
        assert self.shared.topk_indices is not None
        selected, stage = self.shared.topk_indices[rows], self._tiers.device.stage
        if sequence.length <= stage.shape[0]:
            prefix = torch.arange(sequence.length, dtype=torch.int32, device=stage.device)
            self._stage(number, prefix)
            yield rows, stage, selected
            return
        for group in selected.split(stage.shape[0] // selected.shape[1]):
            wanted = torch.unique(group[group >= 0])
            self._stage(number, wanted)
            row_ids = torch.searchsorted(wanted, group, out_int32=True)
            end = rows.start + group.shape[0]
            yield slice(rows.start, end), stage, torch.where(group >= 0, row_ids, -1)
            rows = slice(end, rows.stop)

    def warm_up(self) -> None:
        """Leaves what the chunk's last `warm_rows` rows selected in the hot buffers.

        Of what does not fit, the newest row's stays; nothing of it is kept from later steps.
        """
        shared = self.shared
        if shared.warm_plans is None:
            shared.warm_plans = tuple(map(self._warm_plan, range(self._tiers.config.warm_rows)))
        for plan in shared.warm_plans:
            self._ops.swap_in(self._host_rows, self._step.page_table, plan, self._hot_rows)

    def _warm_plan(self, number: int) -> MissPlan:
        """Gives slots to what one of each sequence's last rows selected; the newest comes last."""
        step, shared, before_end = self._step, self.shared, self._tiers.config.warm_rows - number
        ranges = map(step.row_range, range(len(step.sequences)))
        rows = [max(one.start, one.stop - before_end) for one in ranges]
        device = self._hot_rows.device
        numbers = torch.arange(len(rows), dtype=torch.int32)
        uploaded = upload({"rows": torch.tensor(rows), "numbers": numbers}, device)
        assert shared.topk_indices is not None
        items = shared.topk_indices.index_select(0, uploaded["rows"])
        plan, state = step.hot_plan(), self._tiers.device.hot[self._group]
        where = uploaded["numbers"], state, step.hot_ranges, step.stream_stamps
        self._ops.resolve(items, *where, plan, torch.empty_like(items))
        row_bytes = self._tiers.config.model.groups.count(self._group) * self._hot_rows.shape[1]
        step.watch.see_resolve("rows", plan, None, row_bytes)
        read = plan.miss_count * row_bytes
        step.watch.see_amounts(self._traffic, "prefill_row_bytes", read)
        return plan

    def _stage(self, number: int, positions: torch.Tensor) -> None:
        """Copies the rows at ascending `positions` to the first rows of the stage."""
        stage = self._tiers.device.stage
        count = torch.full((1,), positions.numel(), dtype=torch.int32, device=stage.device)
        targets = torch.arange(positions.numel(), dtype=torch.int32, device=stage.device)
        plan = MissPlan(positions[None], targets[None], count, count)
        page_table = self._step.page_table[number : number + 1]
        self._ops.swap_in(self._host_rows, page_table, plan, stage)
        self._traffic.prefill_row_bytes += positions.numel() * stage.shape[1]
