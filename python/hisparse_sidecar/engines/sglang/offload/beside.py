"""Our coordinator beside SGLang's allocator, for hooks that see the allocator alone."""

from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator

_BESIDE = "_hisparse_coordinator"


def keep_coordinator(allocator: object, coordinator: HiSparseCoordinator) -> None:
    """From now on `coordinator_of` the allocator is this one."""
    setattr(allocator, _BESIDE, coordinator)


def coordinator_of(allocator: object) -> HiSparseCoordinator | None:
    """The coordinator of an allocator; None = it is not ours, or there is none."""
    found = getattr(allocator, _BESIDE, None)
    assert found is None or isinstance(found, HiSparseCoordinator)
    return found
