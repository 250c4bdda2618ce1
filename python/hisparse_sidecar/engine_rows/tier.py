"""The tier: sequences whose rows are on the host, hot ones in the engine's memory."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import Manager, PageLease, Stats
from hisparse_sidecar.backends import runs_on_its_device
from hisparse_sidecar.engine_rows.cached_rows import CachedRows
from hisparse_sidecar.engine_rows.host_pool import open_host_pool
from hisparse_sidecar.engine_rows.hot_states import HotStates
from hisparse_sidecar.engine_rows.index_integrity import check_index
from hisparse_sidecar.engine_rows.index_tier import EngineIndexTier
from hisparse_sidecar.engine_rows.integrity import check_rows
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig, check_memory
from hisparse_sidecar.engine_rows.prompt_rows import HostPlan, copy_prompt
from hisparse_sidecar.engine_rows.row_fetches import RowFetches
from hisparse_sidecar.engine_rows.step_tables import FixedTables
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.pool_share import Numbers, SolePool
from hisparse_sidecar.requirements import require
from hisparse_sidecar.step.step import MAX_STEPS, stream_stamp

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables


class EngineRowTier:
    """Owns the hot buffers and the host pool, or a share of it; the engine selects and attends.

    Ranks that share a host pool make the same calls, `append`, `load` of `cached` and all that
    opens and closes in the same order. Rank 0 writes the host's rows, the others read them: so
    between a step and the next one, and before a page is given up that a step has read, the engine
    has all ranks wait for each other, as it does wherever it sums what their heads give.

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
        place: RankPlace | None = None,
    ) -> None:
        """Makes the host pool, pinned on CUDA until `close`, or takes its share of one.

        Args:
            config: sizes.
            rows: for each layer the engine's memory [all rows, row_bytes] uint8.
            ops: of the device that `rows` are on.
            index_pages: see `EngineIndexTier`, where the configuration has an index part.
            place: which of the ranks of a host that share the pool this is; None = it is alone.

        Raises:
            InvalidArgument: `rows` are not as the configuration says.
            RegionError: the host pool is not to be had.
            DeadlinePassed, TierDown, WrongState: the ranks did not come together.
        """
        check_memory(config, rows)
        self.config, self.device = config, rows[0].device
        self._rows, self._ops = list(rows), ops
        layout, capacity = config.host_layout(), config.capacity()
        self._host, self._ranks = open_host_pool(config, self.device, place)
        self._manager = Manager(self._host.region, layout, capacity, block_tokens=PAGE_TOKENS)
        kept = self._manager, self._ranks, ops, self._rows
        self.cached = CachedRows(*kept, self._host.kv_rows)
        slots = config.first_row + config.num_rows
        self._hot = HotStates(
            config.num_groups, slots, capacity.table_tokens, config.hot_slots, self.device
        )
        writes_host = self._ranks.writes
        self._tables = FixedTables(config, self.device, writes_host=writes_host)
        moved = self._rows, self._host, self._hot, self._tables, ops
        self.fetches = RowFetches(config, *moved, writes_host=writes_host)
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
            DeadlinePassed, TierDown, WrongState: of ranks; see `PoolShare.compare`.
        """
        count, ranges = rows.numel(), self._manager.ranges(sequence)
        own = rows[self._manager.length(sequence) :]
        self._manager.append_rows([(sequence, own.numel())])
        planned = HostPlan(self._manager.plan_step([(sequence, own.numel())], own.numel()))
        self._compare("prompt", [sequence, count], planned.pages)
        row_ids = planned.uploaded(rows.device)
        if self._ranks.writes:
            copy_prompt(self._ops, row_ids, own, self._rows, self._host.kv_rows)
        else:
            row_ids = torch.full_like(row_ids, -1)  # nothing is written here, only folded
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
            DeadlinePassed, TierDown, WrongState: of ranks; see `PoolShare.compare`.
        """
        found, most = len(sequences), self.config.max_sequences
        require(0 < found <= most, f"{found} sequences in a step, needs 1 to {most}")
        if self._steps >= MAX_STEPS:
            raise WrongState(f"{self._steps} steps have begun, LRU stamps last for {MAX_STEPS}")
        rows = [(sequence, 1) for sequence in sequences]
        starts = self._manager.append_rows(rows)
        self._planned = plan = self._manager.plan_step(rows, most)
        host_rows = HostPlan(plan).host_rows
        self._compare("step", [*sequences, *starts], lambda: host_rows()[:found])
        self._steps += 1
        return starts

    @runs_on_its_device
    def load_step(self) -> None:
        """Brings a planned step's tables to the device; once for each plan."""
        if self._planned is not None:
            self.fetches.forget()
            windows = None if self.index is None else self.index.windows
            self._tables.load(self._planned, self._steps, windows)
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

    # -- ranks --------------------------------------------------------------------------------

    @property
    def writes_host(self) -> bool:
        """Whether rows of the host pool are written here, and not by another rank."""
        return self._ranks.writes

    @property
    def num_compared(self) -> int:
        """Decisions that were compared with other ranks: at the same call the same on each."""
        return self._ranks.number

    def end_reads(self) -> None:
        """Where ranks share the pool, waits until all have read what they were asked to read.

        Raises:
            DeadlinePassed, TierDown: a rank is late, or has gone.
        """
        if not isinstance(self._ranks, SolePool):
            self._host.on_cpu()
            self._ranks.end_reads()

    def _compare(self, what: str, known: Sequence[int], rest: Numbers) -> None:
        """The free pages beside it: who has lost or kept one differs at once."""
        stats = self._manager.stats
        self._ranks.compare(what, lambda: [stats().host_pages_free, *known, *rest()])

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
        """Raises HisparseError that names the first broken invariant; no rank is in a step."""
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
        self._ranks.leave()
        self._host.close()
