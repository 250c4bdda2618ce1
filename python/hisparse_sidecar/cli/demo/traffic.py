"""What moved between the tiers during one run: the difference of two snapshots of the counters."""

from collections.abc import Iterable
from dataclasses import dataclass

from hisparse_sidecar.stats import SidecarStats, Traffic


@dataclass(frozen=True)
class RunTraffic:
    """Sums over the layers.

    Attributes:
        hot_hit_rate: share of the selected rows that were in the hot buffer, decode steps.
        block_hit_rate: share of the wanted blocks that were in the block window, decode steps.
        rows_moved_bytes: KV rows brought into hot buffers.
        rows_moved: how many.
        blocks_missed: wanted blocks that were not in the block window, decode steps.
        blocks_read_bytes: index keys read from the host, copied to block windows or read where
            they lie, decode steps.
        prefill_blocks_moved: index-key blocks that streamed through the windows in prefill.
        prefill_rows_moved_bytes: KV rows that streamed through the stage in prefill.
        spilled_bytes: written to the host.
    """

    hot_hit_rate: float
    block_hit_rate: float
    rows_moved: int
    rows_moved_bytes: int
    blocks_missed: int
    blocks_read_bytes: int
    prefill_blocks_moved: int
    prefill_rows_moved_bytes: int
    spilled_bytes: int


def traffic_between(before: SidecarStats, after: SidecarStats, kv_row_bytes: int) -> RunTraffic:
    """Traffic of what ran between two snapshots of one server."""
    rows = _difference((g.rows for g in before.groups), (g.rows for g in after.groups))
    blocks = _difference((g.blocks for g in before.groups), (g.blocks for g in after.groups))
    prefill = _difference(
        (g.prefill_blocks for g in before.groups), (g.prefill_blocks for g in after.groups)
    )
    return RunTraffic(
        hot_hit_rate=rows.hit_rate,
        block_hit_rate=blocks.hit_rate,
        rows_moved=rows.bytes_in // kv_row_bytes,
        rows_moved_bytes=rows.bytes_in,
        blocks_missed=blocks.misses,
        blocks_read_bytes=blocks.bytes_in + blocks.bytes_read_in_place,
        prefill_blocks_moved=prefill.misses,
        prefill_rows_moved_bytes=_grown(before, after, "prefill_row_bytes"),
        spilled_bytes=_grown(before, after, "spilled_bytes"),
    )


def _difference(before: Iterable[Traffic], after: Iterable[Traffic]) -> Traffic:
    change = Traffic()
    for earlier, later in zip(before, after, strict=True):
        change.requests += later.requests - earlier.requests
        change.misses += later.misses - earlier.misses
        change.bytes_in += later.bytes_in - earlier.bytes_in
        change.bytes_read_in_place += later.bytes_read_in_place - earlier.bytes_read_in_place
    return change


def _grown(before: SidecarStats, after: SidecarStats, counter: str) -> int:
    pairs = zip(before.groups, after.groups, strict=True)
    return sum(getattr(later, counter) - getattr(earlier, counter) for earlier, later in pairs)
