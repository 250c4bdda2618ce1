"""Both tiers and what works on them, as one value."""

from dataclasses import dataclass

from hisparse_kernels.backends import Ops
from hisparse_sidecar._core import Manager
from hisparse_sidecar.backends import choose_ops, find_device
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.device_tier import DeviceTier, device_capacity
from hisparse_sidecar.host_memory import HostMemory
from hisparse_sidecar.loaded_windows import LoadedWindows
from hisparse_sidecar.side_stream import SideStream


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


def build_tiers(config: SidecarConfig) -> Tiers:
    """Both tiers of a configuration; where one is not to be had, neither is held.

    Raises:
        InvalidArgument: torch lacks the device, or the backend does not run on it.
        RegionError: the host pool is not to be had, or CUDA does not register it.
    """
    device, ops, capacity = find_device(config.device), choose_ops(config), device_capacity(config)
    host = HostMemory(config, device)
    try:
        tier = DeviceTier(config, capacity, device)
        manager = Manager(host.region, host.layout, capacity, block_tokens=config.block_tokens)
    except BaseException:
        host.close()
        raise
    return Tiers(config, manager, host, tier, ops, SideStream(device), LoadedWindows())
