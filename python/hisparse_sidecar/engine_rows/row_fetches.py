"""Selected rows of a decode step on their way to the hot buffers, beside the engine's own work."""

from collections.abc import Sequence

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.spill import HotPlaces
from hisparse_sidecar.engine_rows.counters import StepCounters
from hisparse_sidecar.engine_rows.hot_states import HotStates
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.engine_rows.step_tables import FixedTables
from hisparse_sidecar.side_stream import SideStream, StreamMark
from hisparse_sidecar.tiers.host_memory import HostMemory


class RowFetches:
    """The rows that a group's selection names, looked up once and copied for each of its layers.

    They are fetched before the step's own rows are known: of a row that the step itself appends the
    host has no bytes yet, so whatever was fetched for it is written over when the engine has it.

    Attributes:
        counters: what the steps found in the hot buffers.
    """

    def __init__(
        self,
        config: EngineRowsConfig,
        rows: Sequence[torch.Tensor],
        host: HostMemory,
        hot: HotStates,
        tables: FixedTables,
        ops: Ops,
        *,
        writes_host: bool = True,
    ) -> None:
        """Fetches of no step yet.

        Args:
            config: sizes.
            rows: for each layer the engine's memory.
            host: the host pool.
            hot: what the hot slots hold.
            tables: of the running step.
            ops: of the device.
            writes_host: False = another rank writes new rows to the host.
        """
        self._writes_host = writes_host
        self._config, self._ops, self._hot, self._tables = config, ops, hot, tables
        self._rows, self._host, device = list(rows), host, rows[0].device
        self._side = SideStream(device, goes_first=True)
        self._marks = [StreamMark(None)] * len(config.groups)
        self._begun: dict[int, tuple[int, ...]] = {}
        shape = config.max_sequences, config.topk
        made = torch.zeros(3, *shape, dtype=torch.int32, device=device)
        self._items, self._dst, self._slots = made[0], made[1], made[2]
        self.counters = StepCounters(config.num_groups, config.max_sequences, device)

    @property
    def ahead(self) -> tuple[int, ...]:
        """Groups whose rows are on their way, and which no layer has waited for."""
        return tuple(self._begun)

    def forget(self) -> None:
        """No group of the next step has begun.

        What a pass that ended early has begun is done before anything is launched for that step.
        """
        if self._begun:
            self._side.join()
            self._begun.clear()

    def begin(self, layer: int, topk_indices: torch.Tensor, num_real_rows: torch.Tensor) -> None:
        """Looks up what a layer selects, and launches the copies of all layers of its group.

        Args:
            layer: the first of its group.
            topk_indices: as `EngineRowTier.swap_in`'s; held by the caller until then.
            num_real_rows: as there.
        """
        group, rows = self._config.groups[layer], topk_indices.shape[0]
        with self._side.beside():
            if layer == 0:
                self._tables.begin(num_real_rows)
                self.counters.begin()
            plan = self._resolve(group, topk_indices)
            pages = self._tables.page_table[:rows]
            for each in self._config.layers_of(group):
                self._ops.swap_in(self._host.kv_rows[each], pages, plan, self._rows[each])
                self._marks[each] = self._side.mark()
        self._begun[group] = _place_of(topk_indices)

    def end(
        self, layer: int, topk_indices: torch.Tensor, num_real_rows: torch.Tensor
    ) -> torch.Tensor:
        """Waits for a layer's rows, on the current stream, and adds the step's own: their slots.

        Rows that `begin` was not called for, or with another list, are fetched here. Arguments are
        those of `EngineRowTier.swap_in`.
        """
        config, rows = self._config, topk_indices.shape[0]
        group = config.groups[layer]
        selects = config.anchors[group] == layer
        if selects and self._begun.pop(group, None) != _place_of(topk_indices):
            self._side.join()
            self.begin(layer, topk_indices, num_real_rows)
            self._begun.pop(group)
        self._marks[layer].wait()
        self._place_own(layer, rows, self.counters.num_fresh(group, rows) if selects else None)
        if layer == len(config.groups) - 1:
            self.counters.add()
            self._tables.end()
        return self._slots[:rows]

    def _resolve(self, group: int, topk_indices: torch.Tensor) -> MissPlan:
        rows, tables = topk_indices.shape[0], self._tables
        counts = self.counters.of_plan(group, rows)
        plan = MissPlan(self._items[:rows], self._dst[:rows], *counts)
        state, ranges = self._hot.of_group[group], tables.ranges_of(rows)
        where = tables.row_seq[:rows], state, ranges, tables.stamps
        self._ops.resolve(topk_indices, *where, plan, self._slots[:rows])
        return plan

    def _place_own(self, layer: int, rows: int, num_placed: torch.Tensor | None) -> None:
        config, tables, memory = self._config, self._tables, self._rows[layer]
        ranges = tables.ranges_of(rows)
        table = self._hot.of_group[config.groups[layer]].slot_table
        where = tables.first_pos[:rows], table, ranges.table_base, ranges.slot_base
        own = memory[config.first_row : config.first_row + rows]
        hot = HotPlaces(memory, *where, num_placed)
        host = self._host.kv_rows[layer] if self._writes_host else None
        self._ops.spill(own, tables.host_row_ids[:rows], host, hot)


def _place_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """By which a list is known again as long as it is held."""
    return tensor.data_ptr(), *tensor.shape
