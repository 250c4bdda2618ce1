"""The tier: sequences whose rows are on the host, hot ones in the engine's memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import Manager, PageLease, Stats
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.config import require
from hisparse_sidecar.engine_rows.cached_rows import CachedRows
from hisparse_sidecar.engine_rows.hot_states import HotStates
from hisparse_sidecar.engine_rows.index_integrity import check_index
from hisparse_sidecar.engine_rows.index_tier import EngineIndexTier
from hisparse_sidecar.engine_rows.integrity import check_rows
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.engine_rows.prompt_rows import copy_prompt, host_rows_of
from hisparse_sidecar.engine_rows.row_fetches import RowFetches
from hisparse_sidecar.engine_rows.step_tables import FixedTables
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.host_memory import HostMemory
from hisparse_sidecar.step import MAX_STEPS, stream_stamp

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables


class EngineRowTier:
    """Owns the host pool and the hot buffers; the engine selects and attends.

    A decode step: `append`, `load_step`, then in each layer `fetch` as soon as its selection is
    known, where it has one, and when the engine has written the new rows to `new_rows`, `swap_in`.
    What they launch is ordered by the stream that is current; in a layer nothing is allocated or
    waited for, so a graph can hold it.

    Attributes:
        counters: what the steps found in the hot buffers.
        fetches: of the rows that the running step selects.
        index: the index side; None where index keys are the engine's affair.
        cached: pages that outlive their sequence.
    """

    def __init__(
        self,
        config: EngineRowsConfig,
        rows: Sequence[torch.Tensor],
        ops: Ops,
        index_pages: Sequence[torch.Tensor] = (),
    ) -> None:
        """Makes the host pool, pinned on CUDA until `close`.

        Args:
            config: sizes.
            rows: for each layer the engine's memory [all rows, row_bytes] uint8.
            ops: of the device that `rows` are on.
            index_pages: see `EngineIndexTier`, where the configuration has an index part.

        Raises:
            InvalidArgument: `rows` are not as the configuration says.
            RegionError: the host pool is not to be had.
        """
        found, needed = len(rows), len(config.groups)
        require(found == needed, f"rows of {found} layers, the configuration has {needed}")
        end = config.first_row + config.num_rows
        for tensor in rows:
            shape = f"rows are {tuple(tensor.shape)} {tensor.dtype}"
            fits = tensor.dim() == 2 and tensor.shape[1] == config.row_bytes
            fits = fits and tensor.shape[0] >= end and tensor.dtype == torch.uint8
            require(fits, f"{shape}, needs ({end} or more, {config.row_bytes}) torch.uint8")
        self.config, self.device = config, rows[0].device
        self._rows, self._ops = list(rows), ops
        layout, capacity = config.host_layout(), config.capacity()
        self._host = HostMemory(
            layout, self.device, huge_pages=config.huge_pages, numa_node=config.numa_node
        )
        self._manager = Manager(self._host.region, layout, capacity, block_tokens=PAGE_TOKENS)
        self.cached = CachedRows(self._manager, ops, self._rows, self._host.kv_rows)
        slots = config.first_row + config.num_rows
        self._hot = HotStates(
            config.num_groups, slots, capacity.table_tokens, config.hot_slots, self.device
        )
        self._tables = FixedTables(config, self.device)
        self.fetches = RowFetches(config, self._rows, self._host, self._hot, self._tables, ops)
        self.counters = self.fetches.counters
        self.index: EngineIndexTier | None = None
        if config.index is not None:
            self.index = EngineIndexTier(config, index_pages, self._host, self._tables, ops)
        self._open: set[int] = set()
        self._planned: StepTables | None = None
        self._steps = 0

    @property
    def new_rows(self) -> torch.Tensor:
        """[max_sequences] int32: the engine writes row i of a step to row `new_rows[i]`."""
        return self._tables.first_row

    # -- sequences ----------------------------------------------------------------------------

    def open(
        self, prompt_tokens: int, max_new_tokens: int, prefix: Sequence[PageLease] = ()
    ) -> int:
        """Admits a sequence: host pages and a hot buffer for prompt + max_new_tokens.

        Args:
            prompt_tokens: of the whole prompt.
            max_new_tokens: that decoding may append.
            prefix: pages of `cached` that it begins with, shared and never written.

        Raises:
            InvalidArgument: more than `max_tokens`; more pages than the prompt has; there is a
                prefix, and index keys are on the host.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        tokens, most = prompt_tokens + max_new_tokens, self.config.max_tokens
        require(tokens <= most, f"{tokens} tokens wanted, max_tokens is {most}")
        slots, index = min(self.config.hot_slots, max(tokens, 1)), self.config.index
        message = f"a prefix of {len(prefix)} leases, with index keys on the host needs 0"
        require(index is None or not prefix, message)
        sequence = self._manager.open_shared(
            prefix,
            prompt_tokens,
            max_new_tokens,
            slots=slots,
            window_slots=0 if index is None else index.slots_for(tokens),
        )
        self._open.add(sequence)
        return sequence

    @runs_on_its_device
    def take_prompt(self, sequence: int, rows: torch.Tensor) -> list[torch.Tensor]:
        """Copies a prompt's rows to the host, and the newest of them to the hot buffer.

        Rows of its prefix are on the host already and stay as they are.

        Args:
            sequence: one that has its prefix alone.
            rows: [prompt_tokens] int64, where the engine's memory has them, on the device.

        Returns:
            Tensors to hold until the current stream has done what this launches.

        Raises:
            InvalidArgument: more tokens than it was admitted for, or none behind the prefix.
        """
        count, ranges = rows.numel(), self._manager.ranges(sequence)
        own = rows[self._manager.length(sequence) :]
        self._manager.append_rows([(sequence, own.numel())])
        plan = self._manager.plan_step([(sequence, own.numel())], own.numel())
        row_ids = host_rows_of(plan, rows.device)
        copy_prompt(self._ops, row_ids, own, self._rows, self._host.kv_rows)
        held = [rows, row_ids]
        if self.index is not None:
            held += self.index.take_prompt(ranges, row_ids, rows)
        base = self.config.hot_row + ranges.slot_base
        self._hot.start(ranges, base, count, stream_stamp(self._steps + 1))
        newest = rows[-ranges.slot_count :]
        for layer in self._rows:
            layer[base : base + newest.numel()] = layer.index_select(0, newest)
        return [newest, *held]

    def close_sequence(self, sequence: int) -> None:
        """Gives back all that it holds; no step that has it may be running.

        Raises:
            UnknownSequence, StaleHandle: no such sequence.
        """
        self._manager.close(sequence)
        self._open.discard(sequence)

    def length(self, sequence: int) -> int:
        """Tokens of the sequence."""
        return self._manager.length(sequence)

    # -- decode steps -------------------------------------------------------------------------

    def append(self, sequences: Sequence[int]) -> list[int]:
        """Appends one token to each sequence and plans the step; nothing is launched.

        Returns:
            The position of each new token.

        Raises:
            InvalidArgument: too many sequences, or one is beyond what it was admitted for.
            UnknownSequence, StaleHandle: no such sequence; none has grown.
            WrongState: there were too many steps.
        """
        found, most = len(sequences), self.config.max_sequences
        require(0 < found <= most, f"{found} sequences in a step, needs 1 to {most}")
        if self._steps >= MAX_STEPS:
            raise WrongState(f"{self._steps} steps have begun, LRU stamps last for {MAX_STEPS}")
        rows = [(sequence, 1) for sequence in sequences]
        starts = self._manager.append_rows(rows)
        self._planned = self._manager.plan_step(rows, most)
        self._steps += 1
        return starts

    @runs_on_its_device
    def load_step(self) -> None:
        """Brings a planned step's tables to the device; once for each plan."""
        if self._planned is not None:
            windows = None if self.index is None else self.index.windows
            self._tables.load(self._planned, self._steps, windows)
            self.fetches.forget()
            self._planned = None

    @runs_on_its_device
    def begin_step(self, num_real_rows: torch.Tensor) -> None:
        """Makes rows from `num_real_rows` [1] int32 on padding, before the index side is used."""
        self._tables.begin(num_real_rows)

    @runs_on_its_device
    def fetch(self, layer: int, topk_indices: torch.Tensor, num_real_rows: torch.Tensor) -> None:
        """Begins to copy selected rows in, beside the current stream; `swap_in` waits for them.

        The engine may call it as soon as it knows the selection, before it writes its new rows.

        Args:
            layer: number of a layer that selects.
            topk_indices: as `swap_in`'s, and the same tensor, held until then.
            num_real_rows: as `swap_in`'s.
        """
        self.fetches.begin(layer, topk_indices, num_real_rows)

    @runs_on_its_device
    def swap_in(
        self, layer: int, topk_indices: torch.Tensor, num_real_rows: torch.Tensor
    ) -> torch.Tensor:
        """Copies new rows to the host and selected rows in; layers in ascending order.

        The last layer ends the step: until the next one is loaded all rows are padding, as in a
        pass of the engine's that no step was planned for.

        Args:
            layer: number of the layer.
            topk_indices: [rows, topk] int32, token positions in any order, -1 = none; of a layer
                that shares its group's selection it is not looked at.
            num_real_rows: [1] int32, rows that are no padding.

        Returns:
            [rows, topk] int32, rows of the engine's memory, -1 where there is no position; valid
            until the next layer that selects.
        """
        return self.fetches.end(layer, topk_indices, num_real_rows)

    # -- what is held -------------------------------------------------------------------------

    @property
    def num_steps(self) -> int:
        """Steps begun."""
        return self._steps

    def stats(self) -> Stats:
        """What the core holds now, and has done."""
        return self._manager.stats()

    def table_bytes(self, stats: Stats) -> int:
        """Bytes on the device of the tables of the sequences that `stats` counts."""
        return self._hot.bytes_of(stats.slots_used, stats.table_tokens_used)

    def check_integrity(self) -> None:
        """Raises HisparseError that names the first invariant found broken."""
        self._manager.check_integrity()
        host = self._host.on_cpu()
        for sequence in sorted(self._open):
            check_rows(self.config, self._manager, sequence, self._hot.of_group, self._rows, host)
            if self.index is not None:
                check_index(self.index, self._manager, sequence, host)

    def close(self) -> None:
        """Closes every sequence and gives the host pool back; a second call does nothing.

        Raises:
            WrongState: a tensor of the host pool is still held; let go of it and close again.
        """
        for sequence in list(self._open):
            self.close_sequence(sequence)
        self._host.close()
