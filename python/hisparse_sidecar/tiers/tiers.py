"""Both tiers and what works on them, as one value."""

from contextlib import ExitStack
from dataclasses import dataclass

from hisparse_kernels.backends import Ops
from hisparse_sidecar._core import DeviceCapacity, Manager
from hisparse_sidecar.backends import choose_ops, find_device
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.ranks import HostManager, RankPlace, SoleRank, StepRanks
from hisparse_sidecar.ranks.group import follow, lead
from hisparse_sidecar.side_stream import SideStream
from hisparse_sidecar.tiers.device_tier import DeviceTier, device_capacity
from hisparse_sidecar.tiers.host_memory import HostMemory, host_layout
from hisparse_sidecar.tiers.loaded_windows import LoadedWindows
from hisparse_sidecar.tiers.lower_tiers import LowerTiers
from hisparse_sidecar.tiers.open_tiers import open_tiers
from hisparse_sidecar.tiers.page_secret import page_secret

_MAX_KNOWN_PAGES = 1 << 24
_Held = tuple[HostManager, StepRanks, LowerTiers]


@dataclass(frozen=True)
class Tiers:
    """What every layer works on: the core's metadata, both tiers, the ops.

    Attributes:
        side: work that no layer waits for.
        copies: rows that are swapped in beside attention to others.
    """

    config: SidecarConfig
    manager: HostManager
    ranks: StepRanks
    host: HostMemory
    device: DeviceTier
    ops: Ops
    side: SideStream
    copies: SideStream
    loaded: LoadedWindows
    lower: LowerTiers


def build_tiers(
    config: SidecarConfig, place: RankPlace | None = None, remote_tier: object | None = None
) -> Tiers:
    """All tiers of a configuration; where one is not to be had, none is held.

    Args:
        config: the same on every rank but for the device.
        place: which rank of those that share the host pool; None = it is shared with none.
        remote_tier: takes the place of `remote_master`, see `Hierarchy`; rank 0's counts.

    Raises:
        InvalidArgument: torch lacks the device, the backend does not run on it, or another rank has
            another configuration.
        RegionError: the host pool is not to be had, or CUDA does not register it.
        DeadlinePassed, TierDown, WrongState: not all ranks have come, or a lower tier is not to be
            had.
    """
    device, ops, capacity = find_device(config.device), choose_ops(config), device_capacity(config)
    with ExitStack() as undo:
        follower, region = None, None
        if place is not None and not place.leads:
            follower, region = follow(place, config, capacity)
            undo.callback(follower.leave)
        host = HostMemory(
            host_layout(config),
            device,
            region=region,
            huge_pages=config.huge_pages,
            numa_node=config.numa_node,
        )
        undo.callback(host.close)
        tier = DeviceTier(config, capacity, device)
        if follower:
            held: _Held = follower, follower, LowerTiers(config, follower, None)
        else:
            held = _deciding(config, capacity, host, place, remote_tier)
        undo.pop_all()
    manager, ranks, lower = held
    side, copies = SideStream(device), SideStream(device, goes_first=True)
    return Tiers(config, manager, ranks, host, tier, ops, side, copies, LoadedWindows(), lower)


def _deciding(
    config: SidecarConfig,
    capacity: DeviceCapacity,
    host: HostMemory,
    place: RankPlace | None,
    remote_tier: object | None,
) -> _Held:
    """The core's manager and the lower tiers, for this process alone or for all ranks."""
    manager = Manager(
        host.region,
        host.layout,
        capacity,
        block_tokens=config.block_tokens,
        model=config.tiers.model_name,
        secret=page_secret(config.tiers),
        max_pages=_most_pages(config, host.layout.page_bytes),
    )
    with ExitStack() as undo:
        opened = open_tiers(config, manager, remote_tier)
        undo.callback(opened.close)
        if place is None:
            held: _Held = manager, SoleRank(manager), LowerTiers(config, opened.hierarchy, opened)
        else:
            leader = lead(place, config, capacity, manager, opened.hierarchy, host.region)
            held = leader, leader, LowerTiers(config, leader, opened)
        undo.pop_all()
    return held


def _most_pages(config: SidecarConfig, page_bytes: int) -> int:
    """Pages that the directory may know: those of the host pool and as many as lie below it."""
    pages = 2 * config.host_pages
    if config.tiers.file_directory is not None:
        pages += config.tiers.file_bytes // page_bytes
    return min(pages, _MAX_KNOWN_PAGES)
