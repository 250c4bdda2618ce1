"""The coordinator that is kept beside an allocator of SGLang's, for all that SGLang makes later."""

from typing import Any

_COORDINATOR = "_hisparse_coordinator"


def coordinator_of(allocator: object) -> Any | None:  # noqa: ANN401
    """Ours; None = SGLang's own, or none."""
    return getattr(allocator, _COORDINATOR, None)


def keep_coordinator(allocator: object, coordinator: object) -> None:
    """From now on the allocator's coordinator is this one."""
    setattr(allocator, _COORDINATOR, coordinator)
