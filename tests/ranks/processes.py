"""Ranks as processes of their own: each runs the same script of calls and reports what it saw."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from hisparse_sidecar import SidecarConfig
from hisparse_sidecar._core import Hierarchy, HostLayout, HostRegion, Manager
from hisparse_sidecar.ranks import RankPlace, RankShare
from hisparse_sidecar.ranks.group import follow, lead
from hisparse_sidecar.tiers.device_tier import device_capacity

JOIN_SECONDS = 60.0
END_SECONDS = 60.0

Script = Callable[..., Any]

# processes of their own, but for what importing torch costs each
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.ranks.life"])


@dataclass
class Rank:
    """A running rank and the pipe that its report comes through."""

    process: BaseProcess
    reports: Connection

    def report(self, seconds: float = END_SECONDS) -> Any:
        """What the script returned; raises AssertionError with its traceback if it raised."""
        assert self.reports.poll(seconds), f"no report from {self.process.name}"
        ended_well, value = self.reports.recv()
        assert ended_well, value
        return value


class Group:
    """`num_ranks` processes that run `script(place, *arguments)` each; a context manager."""

    def __init__(
        self,
        script: Script,
        num_ranks: int,
        *arguments: Any,
        deadline_seconds: float = 20.0,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path, seconds = Path(self._folder.name) / "ranks.sock", (deadline_seconds, join_seconds)
        places = [RankPlace(rank, num_ranks, path, *seconds) for rank in range(num_ranks)]
        self.ranks = [_start(script, place, arguments) for place in places]

    def reports(self, seconds: float = END_SECONDS) -> list[Any]:
        """What each rank returned, by rank."""
        return [rank.report(seconds) for rank in self.ranks]

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join(END_SECONDS)
            rank.reports.close()
            rank.process.close()
        self._folder.cleanup()


def layout_of(config: SidecarConfig) -> HostLayout:
    """Where the arrays lie in the region of a configuration."""
    row_bytes = config.kv.row_bytes, config.index.row_bytes
    layers, anchors = config.model.num_layers, len(config.model.anchors)
    return HostLayout(layers, anchors, *row_bytes, config.host_pages)


def share_of(
    place: RankPlace, config: SidecarConfig, *, lower: object = None
) -> tuple[RankShare, HostRegion]:
    """This rank's share of one manager, with no tensors over it, and the region.

    `lower` is a tier that rank 0 has below the host pool.
    """
    capacity = device_capacity(config)
    if not place.leads:
        return follow(place, config, capacity)
    layout = layout_of(config)
    region = HostRegion(layout.num_bytes)
    manager = Manager(region, layout, capacity, block_tokens=config.block_tokens)
    hierarchy = Hierarchy(manager, file=lower)
    return lead(place, config, capacity, manager, hierarchy, region), region


def _start(script: Script, place: RankPlace, arguments: tuple[Any, ...]) -> Rank:
    reports, said = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(
        target=_run, args=(script, place, arguments, said), name=f"rank {place.rank}", daemon=True
    )
    process.start()
    said.close()
    return Rank(process, reports)


def _run(script: Script, place: RankPlace, arguments: tuple[Any, ...], said: Connection) -> None:
    torch.set_num_threads(1)
    try:
        said.send((True, script(place, *arguments)))
    except BaseException:
        said.send((False, f"rank {place.rank}, process {os.getpid()}:\n{traceback.format_exc()}"))
        raise
