"""Both tiers and what works on them, as one value."""

from dataclasses import dataclass

from hisparse_kernels.backends import Ops
from hisparse_sidecar._core import Manager
from hisparse_sidecar.backends import choose_ops, find_device
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.device_tier import DeviceTier, device_capacity
from hisparse_sidecar.host_memory import HostMemory
from hisparse_sidecar.loaded_windows import LoadedWindows
from hisparse_sidecar.lower_tiers import LowerTiers
from hisparse_sidecar.page_secret import page_secret
from hisparse_sidecar.side_stream import SideStream

_MAX_KNOWN_PAGES = 1 << 24


@dataclass(frozen=True)
class Tiers:
    """What every layer works on: the core's metadata, both tiers, the ops."""

    config: SidecarConfig
    manager: Manager
    host: HostMemory
    device: DeviceTier
    ops: Ops
    side: SideStream
    loaded: LoadedWindows
    lower: LowerTiers


def build_tiers(config: SidecarConfig, remote_tier: object | None = None) -> Tiers:
    """Both tiers of a configuration; where one is not to be had, neither is held.

    Args:
        config: what they have room for.
        remote_tier: takes the place of `remote_master`, see `LowerTiers`.

    Raises:
        InvalidArgument: torch lacks the device, or the backend does not run on it.
        RegionError: the host pool is not to be had, or CUDA does not register it.
    """
    device, ops, capacity = find_device(config.device), choose_ops(config), device_capacity(config)
    host = HostMemory(config, device)
    try:
        tier = DeviceTier(config, capacity, device)
        manager = Manager(
            host.region,
            host.layout,
            capacity,
            block_tokens=config.block_tokens,
            model=config.tiers.model_name,
            secret=page_secret(config.tiers),
            max_pages=_most_pages(config, host.layout.page_bytes),
        )
        lower = LowerTiers(config, manager, remote_tier)
    except BaseException:
        host.close()
        raise
    return Tiers(config, manager, host, tier, ops, SideStream(device), LoadedWindows(), lower)


def _most_pages(config: SidecarConfig, page_bytes: int) -> int:
    """Pages that the directory may know: those of the host pool and as many as lie below it."""
    pages = 2 * config.host_pages
    if config.tiers.file_directory is not None:
        pages += config.tiers.file_bytes // page_bytes
    return min(pages, _MAX_KNOWN_PAGES)
