"""Counters of what moved and what was found on the device, and the bytes that each tier holds."""

from dataclasses import dataclass, field

from hisparse_sidecar._core import SequenceRanges, Stats
from hisparse_sidecar.config import SidecarConfig


@dataclass
class Traffic:
    """Accesses to one kind of device slots, summed over decode steps or over prefill chunks.

    Attributes:
        requests: distinct items asked for.
        misses: of these, not on the device.
        bytes_in: bytes copied from the host for the misses (all layers of the group).
    """

    requests: int = 0
    misses: int = 0
    bytes_in: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the requests found on the device; 1.0 where nothing was asked."""
        return 1.0 - self.misses / self.requests if self.requests else 1.0


@dataclass
class GroupTraffic:
    """Traffic of one anchor group.

    Attributes:
        rows: KV rows through the hot buffer, decode steps only.
        blocks: index-key blocks through the block window, decode steps only.
        prefill_blocks: index-key blocks streamed through the window by prefill chunks.
        prefill_row_bytes: bytes of KV rows streamed through the stage by prefill chunks.
        spilled_bytes: bytes written from device to host.
    """

    rows: Traffic = field(default_factory=Traffic)
    blocks: Traffic = field(default_factory=Traffic)
    prefill_blocks: Traffic = field(default_factory=Traffic)
    prefill_row_bytes: int = 0
    spilled_bytes: int = 0


@dataclass(frozen=True)
class TierBytes:
    """Bytes that something holds in each tier.

    Attributes:
        hot_buffer: KV rows on the device.
        block_window: index-key blocks on the device.
        pooled_keys: pooled keys and open sums on the device.
        tables: slot tables, items and stamps on the device.
        host: pages in the host pool, all layers.
    """

    hot_buffer: int
    block_window: int
    pooled_keys: int
    tables: int
    host: int

    @property
    def device(self) -> int:
        """All bytes on the device."""
        return self.hot_buffer + self.block_window + self.pooled_keys + self.tables


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
    block_bytes = config.pages_per_block * config.index.page_bytes
    entries = ranges.token_table_count + ranges.block_table_count
    slots = ranges.slot_count + ranges.window_count
    page_bytes = num_layers * 64 * config.kv.row_bytes
    page_bytes += num_groups * (config.index.page_bytes + config.index.row_bytes)
    return TierBytes(
        hot_buffer=ranges.slot_count * config.kv.row_bytes * num_layers,
        block_window=ranges.window_count * block_bytes * num_groups,
        pooled_keys=(ranges.pooled_count * config.index.row_bytes + 512) * num_groups,
        tables=(4 * entries + 8 * slots) * num_groups,
        host=host_pages * page_bytes,
    )


def add_tier_bytes(parts: list[TierBytes]) -> TierBytes:
    """Sum over sequences."""
    names = ("hot_buffer", "block_window", "pooled_keys", "tables", "host")
    return TierBytes(**{name: sum(getattr(part, name) for part in parts) for name in names})
