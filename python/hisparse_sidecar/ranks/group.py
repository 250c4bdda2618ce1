"""How a process becomes rank 0 of a group, or one that follows."""

from hisparse_sidecar._core import DeviceCapacity, Hierarchy, HostRegion, Manager
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.ranks.follower import RankFollower
from hisparse_sidecar.ranks.group_shape import GroupShape
from hisparse_sidecar.ranks.joining import gather, join
from hisparse_sidecar.ranks.leader import RankLeader
from hisparse_sidecar.ranks.mirror import Mirror
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.records import packed_stats


def lead(
    place: RankPlace,
    config: SidecarConfig,
    capacity: DeviceCapacity,
    manager: Manager,
    hierarchy: Hierarchy,
    region: HostRegion,
) -> RankLeader:
    """Waits until every follower has joined; the manager, its tiers and its region are then theirs.

    Raises:
        DeadlinePassed, InvalidArgument, WrongState: see `gather`.
    """
    shape = GroupShape.of(config, capacity, place)
    links = gather(place, shape, region, packed_stats(manager.stats()))
    return RankLeader(place, _mirror(config), manager, hierarchy, links)


def follow(
    place: RankPlace, config: SidecarConfig, capacity: DeviceCapacity
) -> tuple[RankFollower, HostRegion]:
    """Waits until every rank has joined; the region is the one that rank 0 owns.

    Raises:
        DeadlinePassed, RegionError, TierDown: see `join`.
    """
    link, region, stats = join(place, GroupShape.of(config, capacity, place))
    return RankFollower(place, _mirror(config), link, stats), region


def _mirror(config: SidecarConfig) -> Mirror:
    return Mirror(len(config.model.anchors), config.block_tokens)
