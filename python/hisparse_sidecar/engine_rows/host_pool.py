"""The host pool of a tier: this process's own, or one that the ranks of a host share."""

from dataclasses import asdict

import torch

from hisparse_sidecar._core import HostRegion
from hisparse_sidecar.engine_rows.layout import EngineRowsConfig
from hisparse_sidecar.ranks.group_shape import GroupShape
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.pool_share import PoolShare, SolePool, join_pool, lead_pool
from hisparse_sidecar.tiers.host_memory import HostMemory


def open_host_pool(
    config: EngineRowsConfig, device: torch.device, place: RankPlace | None
) -> tuple[HostMemory, PoolShare]:
    """The pool, pinned on CUDA, and this process's share of it.

    Args:
        config: sizes, the same on every rank.
        device: this rank's.
        place: which rank of how many this is; None = the pool is this process's alone.

    Raises:
        RegionError: the memory is not to be had.
        DeadlinePassed, InvalidArgument, TierDown, WrongState: the ranks did not come together; see
            `ranks.joining`.
    """
    layout = config.host_layout()
    share, region = _made(config) if place is None else _joined(config, place)
    try:
        return HostMemory(layout, device, region=region), share
    except BaseException:
        share.leave()
        raise


def _made(config: EngineRowsConfig) -> tuple[PoolShare, HostRegion]:
    num_bytes = config.host_layout().num_bytes
    region = HostRegion(num_bytes, huge_pages=config.huge_pages, numa_node=config.numa_node)
    return SolePool(), region


def _joined(config: EngineRowsConfig, place: RankPlace) -> tuple[PoolShare, HostRegion]:
    """Nobody has pinned a page yet: the ranks do it side by side."""
    shape = _shape_of(config, place)
    if not place.leads:
        return join_pool(place, shape)
    _, region = _made(config)
    return lead_pool(place, shape, region), region


def _shape_of(config: EngineRowsConfig, place: RankPlace) -> GroupShape:
    """Every number that decisions depend on."""
    numbers = {"num_ranks": place.num_ranks, "num_layers": len(config.groups)}
    numbers["num_groups"] = config.num_groups
    parts = asdict(config)
    index, _ = parts.pop("index") or {}, parts.pop("numa_node")
    numbers |= {name: value for name, value in parts.items() if type(value) is int}
    return GroupShape(numbers | {f"index_{name}": value for name, value in index.items()})
