"""Plans of decode steps, by a manager alone and by ranks in processes of their own, in lockstep.

No layer runs between two steps, so nothing hides how long ranks wait for each other.
"""

import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from hisparse_sidecar._core import Hierarchy, HostLayout, HostRegion, Manager
from hisparse_sidecar.config import ModelShape, SidecarConfig
from hisparse_sidecar.ranks import HostManager, RankPlace, SoleRank, StepRanks
from hisparse_sidecar.ranks.group import follow, lead
from hisparse_sidecar.ranks.share import RankShare
from hisparse_sidecar.tiers.device_tier import device_capacity

_REPORT_SECONDS = 300.0
_SLOTS = {"slots": 16, "window_slots": 5}


def time_alone(num_sequences: int, context: int, num_steps: int) -> list[float]:
    """Seconds of each step with the core's manager in this process."""
    manager, _ = _manager(_config(num_sequences, context + num_steps))
    return _time_steps(manager, SoleRank(manager), num_sequences, context, num_steps)


def time_ranks(
    num_ranks: int, num_sequences: int, context: int, num_steps: int
) -> list[list[float]]:
    """Seconds of each step, by rank."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, readers, processes = Path(folder) / "ranks.sock", [], []
        for rank in range(num_ranks):
            reader, writer = spawn.Pipe(duplex=False)
            arguments = RankPlace(rank, num_ranks, path), num_sequences, context, num_steps, writer
            processes.append(spawn.Process(target=_report, args=arguments, daemon=True))
            processes[-1].start()
            writer.close()
            readers.append(reader)
        try:
            return [_received(reader, rank) for rank, reader in enumerate(readers)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _received(reader: Connection, rank: int) -> list[float]:
    if not reader.poll(_REPORT_SECONDS):
        raise TimeoutError(f"rank {rank} has not reported in {_REPORT_SECONDS:g} s")
    seconds: list[float] = reader.recv()
    return seconds


def _report(
    place: RankPlace, num_sequences: int, context: int, num_steps: int, writer: Connection
) -> None:
    config = _config(num_sequences, context + num_steps)
    if place.leads:
        manager, region = _manager(config)
        share = lead(place, config, device_capacity(config), manager, Hierarchy(manager), region)
        writer.send(_time_steps(share, share, num_sequences, context, num_steps))
        return
    follower, _ = follow(place, config, device_capacity(config))
    writer.send(_time_steps(follower, follower, num_sequences, context, num_steps))


def _time_steps(
    manager: Manager | RankShare, ranks: StepRanks, num_sequences: int, context: int, num_steps: int
) -> list[float]:
    opened = [manager.open_sequence(context, num_steps, **_SLOTS) for _ in range(num_sequences)]
    ranks.append_rows([(sequence, context) for sequence in opened])
    ranks.end_step(committed=True)
    return [_time_step(manager, ranks, opened) for _ in range(num_steps)]


def _time_step(manager: HostManager, ranks: StepRanks, opened: list[int]) -> float:
    """One new row each, and what a sidecar asks of the manager to plan the step."""
    rows = [(sequence, 1) for sequence in opened]
    start = time.perf_counter()
    ranks.append_rows(rows)
    ranks.plan_step(rows, len(rows))
    for sequence in opened:
        manager.ranges(sequence)
    seconds = time.perf_counter() - start
    ranks.end_step(committed=True)
    return seconds


def _config(num_sequences: int, tokens: int) -> SidecarConfig:
    pages = num_sequences * (tokens // 64 + 1)
    model = ModelShape(1, (0,), 1, 16, 1.0)
    return SidecarConfig(model, pages, num_sequences, hot_slots=16, window_blocks=4, stage_rows=64)


def _manager(config: SidecarConfig) -> tuple[Manager, HostRegion]:
    row_bytes = config.kv.row_bytes, config.index.row_bytes
    layout = HostLayout(1, 1, *row_bytes, config.host_pages)
    region, capacity = HostRegion(layout.num_bytes), device_capacity(config)
    return Manager(region, layout, capacity, block_tokens=config.block_tokens), region
