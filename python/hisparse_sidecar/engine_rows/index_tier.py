"""The index side of the tier: index keys on the host, windows of them in the engine's pages."""

from collections.abc import Sequence

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan
from hisparse_kernels.select_blocks import COUNTED_ROWS
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT
from hisparse_sidecar.engine_rows.index_windows import IndexWindows
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.engine_rows.step_tables import FixedTables
from hisparse_sidecar.engine_rows.window_keys import WindowKeys
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.contract import SelectionQuery, Selector
from hisparse_sidecar.selection.row_groups import select_in_groups
from hisparse_sidecar.tiers.host_memory import HostMemory

_ROWS_AT_A_TIME = 32768  # whole pages: each part begins with an empty sum
_MAX_LOGITS_BYTES = 1 << 28


class EngineIndexTier:
    """Windows, pooled keys and open sums of the anchor layers.

    In a decode step, in each anchor layer: the engine writes the new index rows to `new_rows`, then
    `append`, then `select`. What is launched neither waits nor depends on the step's numbers, so a
    graph can hold it. `append` folds rows into sums: once a step and layer.

    Attributes:
        windows: what the windows hold.
        pages: for each group [num_pages, page_bytes] uint8, the engine's index pages.
        pooled_pages: for each group [pooled_keys / 64, page_bytes] uint8.
        open_sums: for each group [sequences, 128] fp32, sum of each open page.
    """

    def __init__(
        self,
        config: EngineRowsConfig,
        pages: Sequence[torch.Tensor],
        host: HostMemory,
        tables: FixedTables,
        ops: Ops,
    ) -> None:
        """Windows that hold nothing.

        Args:
            config: sizes, with an index part.
            pages: for each layer the engine's index pages [num_pages, page_bytes] uint8; those of a
                layer that selects nothing are not looked at.
            host: the host pool.
            tables: of the tier.
            ops: of the device that `pages` are on.

        Raises:
            InvalidArgument: `pages` are not as the configuration says.
        """
        assert config.index is not None
        self._config, self._part, self._ops = config, config.index, ops
        self._host, self._tables = host, tables
        self.pages = [pages[layer] for layer in config.anchors]
        for found in self.pages:
            fits = found.dtype == torch.uint8 and found.dim() == 2 and found.is_contiguous()
            fits = fits and found.shape[1] == INDEX_LAYOUT.page_bytes
            fits = fits and found.shape[0] >= self._part.end_page
            shape = f"({self._part.end_page} or more, {INDEX_LAYOUT.page_bytes}) torch.uint8"
            require(fits, f"index pages are {tuple(found.shape)} {found.dtype}, needs {shape}")
        device, capacity = self.pages[0].device, config.capacity()
        groups = config.num_groups
        self.windows = IndexWindows(self._part, groups, capacity.table_blocks, device)
        pooled = capacity.pooled_keys // PAGE_TOKENS, INDEX_LAYOUT.page_bytes
        self.pooled_pages = [
            torch.zeros(pooled, dtype=torch.uint8, device=device) for _ in range(groups)
        ]
        self.open_sums = [
            torch.zeros(capacity.sequences, INDEX_DIM, device=device) for _ in range(groups)
        ]
        self._plan = self._empty_plan(device)
        self._arrivals = torch.zeros(COUNTED_ROWS, dtype=torch.int32, device=device)

    def _empty_plan(self, device: torch.device) -> MissPlan:
        rows, most = self._config.max_sequences, self._part.window_pages

        def empty(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        return MissPlan(empty(rows, most), empty(rows, most), empty(rows), empty(rows))

    @property
    def num_bytes(self) -> int:
        """Device memory that it has besides the engine's pages."""
        states = (tensor for state in self.windows.of_group for tensor in vars(state).values())
        return sum(one.nbytes for one in (*states, *self.pooled_pages, *self.open_sums))

    # -- prompts ------------------------------------------------------------------------------

    def take_prompt(
        self, ranges: SequenceRanges, host_row_ids: torch.Tensor, rows: torch.Tensor
    ) -> list[torch.Tensor]:
        """Copies a prompt's index rows to the host, pools them, and opens its windows.

        Args:
            ranges: of the sequence, which is new.
            host_row_ids: [prompt_tokens] int64, on the device.
            rows: [prompt_tokens] int64, where the engine's memory has its KV rows, on the device.

        Returns:
            Tensors to hold until the current stream has done what this launches.
        """
        device, count = rows.device, rows.numel()
        index_rows = rows - self._part.row_shift
        pos = torch.arange(count, dtype=torch.int32, device=device)
        seq = torch.zeros_like(pos)
        state = torch.full((1,), ranges.state_row, dtype=torch.int64, device=device)
        pooled = torch.full((1,), ranges.pooled_base, dtype=torch.int64, device=device)
        parts = [slice(at, at + _ROWS_AT_A_TIME) for at in range(0, count, _ROWS_AT_A_TIME)]
        for group in range(len(self.pages)):
            for part in parts:
                which = index_rows[part], host_row_ids[part], seq[part], pos[part]
                self._append(group, *which, state, pooled)
        self.windows.start(ranges, count)
        if count % PAGE_TOKENS:
            self._copy_open_page(self.windows.open_page(ranges), index_rows)
        return [index_rows, host_row_ids, seq, pos, state, pooled]

    def _copy_open_page(self, target: int, index_rows: torch.Tensor) -> None:
        source = torch.div(index_rows[-1:], PAGE_TOKENS, rounding_mode="floor")
        for pages in self.pages:
            pages[target : target + 1] = pages.index_select(0, source)

    # -- decode steps -------------------------------------------------------------------------

    def new_rows(self, rows: int) -> torch.Tensor:
        """[rows] int64: the engine writes row i of a step to row `new_rows[i]` of its pages."""
        return self._tables.index.index_rows[:rows]

    def append(self, group: int, rows: int) -> None:
        """Copies the new index rows of a group to the host and folds them into the pooled keys.

        Args:
            group: the group whose anchor has written them.
            rows: rows of the pass, padding included.
        """
        index, seq = self._tables.index, self._tables.row_seq[:rows]
        which = (
            index.index_rows[:rows],
            self._tables.written_row_ids[:rows],
            seq,
            index.row_pos[:rows],
        )
        self._append(group, *which, index.state_rows[:rows], index.pooled_base[:rows])

    def _append(
        self,
        group: int,
        index_rows: torch.Tensor,
        host_row_ids: torch.Tensor,
        seq: torch.Tensor,
        pos: torch.Tensor,
        state_rows: torch.Tensor,
        pooled_base: torch.Tensor,
    ) -> None:
        stored = self._ops.read_index_rows(self.pages[group], index_rows, INDEX_LAYOUT)
        to_host = stored, host_row_ids, self._host.index_pages[group]
        sums = self.open_sums[group], state_rows, self.pooled_pages[group], pooled_base
        self._ops.append_index_rows(*to_host, seq, pos, *sums, PAGE_TOKENS, INDEX_LAYOUT)

    def select(
        self,
        group: int,
        selector: Selector,
        index_q: torch.Tensor,
        index_weights: torch.Tensor,
        topk: int,
        num_pages: int,
    ) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail.

        Args:
            group: the group whose anchor selects.
            selector: who chooses; goes by pages.
            index_q: [rows, index_heads, 128] e4m3.
            index_weights: [rows, index_heads] fp32, all scales but the key's folded in.
            topk: tokens of a row.
            num_pages: most pages of a sequence in this pass.
        """
        rows, tables = len(index_q), self._tables
        seq, pos = tables.row_seq[:rows], tables.index.row_pos[:rows]
        query = SelectionQuery(
            index_q, index_weights, seq, pos, topk, row_block=tables.index.row_block[:rows]
        )
        keys = self._keys(group, rows, max(2, min(num_pages, self._config.max_pages)))
        if keys.num_tokens <= topk:
            return keys.all_positions(query)
        return select_in_groups(selector, query, keys, _MAX_LOGITS_BYTES)

    def _keys(self, group: int, rows: int, num_blocks: int) -> WindowKeys:
        tables, plan = self._tables, self._plan
        state, ranges = self.windows.of_group[group], tables.index.windows_of(rows)
        of_rows = MissPlan(*(one[:rows] for one in vars(plan).values()))
        return WindowKeys(
            self._ops,
            self.pages[group],
            self._host.index_pages[group],
            tables.page_table[:rows],
            (self.pooled_pages[group], tables.index.pooled_table[:rows]),
            (state, ranges, tables.stamps, of_rows),
            self._arrivals,
            num_blocks,
        )
