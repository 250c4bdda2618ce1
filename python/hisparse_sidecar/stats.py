"""Counters of what moved and what was found on the device, and the bytes that each tier holds."""

from dataclasses import dataclass, field, fields

from hisparse_sidecar._core import SequenceRanges, Stats
from hisparse_sidecar.clopper_pearson import lower_bound
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.tiers.device_tier import device_capacity, table_dtype


@dataclass
class Traffic:
    """Accesses to one kind of device slots, summed over decode steps or over prefill chunks.

    Attributes:
        requests: items asked for: distinct ones of a sequence, or of each row where kernels read
            what is missing in place. Blocks of a window that holds all of its sequence's are not
            asked for.
        misses: of these, not on the device.
        bytes_in: bytes copied from the host for the misses (all layers of the group).
        bytes_read_in_place: bytes that kernels read from the host where they lie, each time.
    """

    requests: int = 0
    misses: int = 0
    bytes_in: int = 0
    bytes_read_in_place: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the requests found on the device; 1.0 where nothing was asked."""
        return 1.0 - self.misses / self.requests if self.requests else 1.0


@dataclass
class SelectionCounts:
    """What choosing came to in one anchor layer, over decode steps and prefill chunks.

    Attributes:
        doubled_rows: rows whose kept blocks were doubled once or more ("adaptive").
        doublings: doublings, summed over these rows.
        capped_rows: rows that would have been doubled once more, but for `max_blocks`.
        flat_calls: selections that the gate sent down the flat path.
        audited_rows: rows that were also scored flat and found a token there.
        skipped_audits: rows that were due, but of a sequence whose index keys were not all on the
            device. Where flat was taken, or a whole prefix, no row is due.
        audited_tokens: tokens that flat selected for the audited rows.
        found_tokens: of these, selected in truth.
    """

    doubled_rows: int = 0
    doublings: int = 0
    capped_rows: int = 0
    flat_calls: int = 0
    audited_rows: int = 0
    skipped_audits: int = 0
    audited_tokens: int = 0
    found_tokens: int = 0

    @property
    def recall(self) -> float:
        """Share of the audited tokens that were found; 1.0 where none was audited."""
        return self.found_tokens / self.audited_tokens if self.audited_tokens else 1.0

    def recall_lower_bound(self, confidence: float = 0.95) -> float:
        """Clopper-Pearson lower bound on the recall; 0.0 where no row was audited.

        A row counts as one trial, for its tokens are found or lost together.
        """
        if not self.audited_tokens:
            return 0.0
        found_rows = self.audited_rows * self.found_tokens // self.audited_tokens
        return lower_bound(found_rows, self.audited_rows, confidence)


@dataclass
class GroupTraffic:
    """Traffic of one anchor group.

    Attributes:
        rows: KV rows through the hot buffer, decode steps only.
        blocks: index-key blocks through the block window, decode steps only.
        prefill_blocks: index-key blocks streamed through the window by prefill chunks.
        prefill_row_bytes: bytes of KV rows that prefill chunks streamed through the stage or left
            in hot buffers.
        spilled_bytes: bytes written from device to host.
        selection: what choosing came to.
    """

    rows: Traffic = field(default_factory=Traffic)
    blocks: Traffic = field(default_factory=Traffic)
    prefill_blocks: Traffic = field(default_factory=Traffic)
    prefill_row_bytes: int = 0
    spilled_bytes: int = 0
    selection: SelectionCounts = field(default_factory=SelectionCounts)


@dataclass(frozen=True)
class TierBytes:
    """Bytes that something holds in each tier.

    Attributes:
        hot_buffer: KV rows on the device.
        block_window: index-key blocks on the device.
        pooled_keys: pooled keys and open sums on the device.
        hot_tables: slot tables, items and stamps of the hot buffers.
        window_tables: the same of the block windows.
        host: pages in the host pool, all layers.
    """

    hot_buffer: int
    block_window: int
    pooled_keys: int
    hot_tables: int
    window_tables: int
    host: int

    @property
    def device(self) -> int:
        """All bytes on the device."""
        return self.hot_buffer + self.hot_tables + self.index_side

    @property
    def index_side(self) -> int:
        """Bytes on the device that index keys take: what the indexer reads, and its tables."""
        return self.block_window + self.pooled_keys + self.window_tables


@dataclass(frozen=True)
class SidecarStats:
    """A snapshot.

    Attributes:
        core: the core's counts of sequences, pages and arenas.
        groups: traffic of each anchor group, in layer order.
        steps: committed steps.
        aborted_steps: steps that were rolled back.
        held: bytes of all open sequences.
    """

    core: Stats
    groups: tuple[GroupTraffic, ...]
    steps: int
    aborted_steps: int
    held: TierBytes


def tier_bytes(config: SidecarConfig, ranges: SequenceRanges, host_pages: int) -> TierBytes:
    """What one sequence holds: its device ranges and its pages."""
    num_layers, num_groups = config.model.num_layers, len(config.model.anchors)
    arenas = device_capacity(config)
    hot_entry, entry = (table_dtype(one).itemsize for one in (arenas.slots, arenas.window_slots))
    block_bytes = config.pages_per_block * config.index.page_bytes
    page_bytes = num_layers * 64 * config.kv.row_bytes
    page_bytes += num_groups * (config.index.page_bytes + config.index.row_bytes)
    return TierBytes(
        hot_buffer=ranges.slot_count * config.kv.row_bytes * num_layers,
        block_window=ranges.window_count * block_bytes * num_groups,
        pooled_keys=(ranges.pooled_count * config.index.row_bytes + 512) * num_groups,
        hot_tables=(hot_entry * ranges.token_table_count + 8 * ranges.slot_count) * num_groups,
        window_tables=(entry * ranges.block_table_count + 8 * ranges.window_count) * num_groups,
        host=host_pages * page_bytes,
    )


def add_tier_bytes(parts: list[TierBytes]) -> TierBytes:
    """Sum over sequences."""
    names = [each.name for each in fields(TierBytes)]
    return TierBytes(**{name: sum(getattr(part, name) for part in parts) for name in names})
