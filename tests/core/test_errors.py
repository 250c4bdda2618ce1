import inspect
from collections.abc import Callable

import pytest

from hisparse_sidecar import _core
from hisparse_sidecar._core import (
    DeviceCapacity,
    HisparseError,
    HostRegion,
    HotBufferModel,
    InvalidArgument,
)

TOO_LARGE = [2**64, 2**200, 10**6000]
NEGATIVE = [-1, -(2**63), -(2**63) - 1, -(10**6000)]


def test_every_error_is_a_hisparse_error() -> None:
    classes = [value for value in vars(_core).values() if inspect.isclass(value)]
    errors = {value.__name__ for value in classes if issubclass(value, Exception)}
    known = HisparseError.__subclasses__()  # the client adds some of its own
    children = {value.__name__ for value in known if value.__module__ == HisparseError.__module__}
    assert errors == children | {"HisparseError"}
    assert children >= {"InvalidArgument", "HostPoolFull", "DeviceArenaFull", "UnknownSequence"}
    assert children >= {"StaleHandle", "WrongState", "RegionError"}
    assert issubclass(InvalidArgument, ValueError)
    assert all(getattr(_core, name).__module__ == "hisparse_sidecar._core" for name in errors)


def integer_calls(host, seq: int) -> dict[str, Callable[[int], object]]:
    """Every integer argument of the manager, as a call of one number."""
    manager = host.manager
    return {
        "prompt_tokens": lambda n: manager.open_sequence(n, 1, slots=1, window_slots=1),
        "max_new_tokens": lambda n: manager.open_sequence(1, n, slots=1, window_slots=1),
        "slots": lambda n: manager.open_sequence(1, 1, slots=n, window_slots=1),
        "window_slots": lambda n: manager.open_sequence(1, 1, slots=1, window_slots=n),
        "seq": manager.length,
        "num_tokens": lambda n: manager.append(seq, n),
        "anchor": lambda n: manager.pooled_state(seq, n),
        "length": lambda n: manager.truncate(seq, n),
        "num_pages": manager.lease_pages,
        "block_tokens": lambda n: _core.Manager(
            host.region, host.layout, DeviceCapacity(1, 1, 1, 1, 1, 1), block_tokens=n
        ),
        "num_bytes": HostRegion,
        "numa_node": lambda n: HostRegion(1, numa_node=n),
        "fd": HostRegion.attach,
        "layer": host.layout.kv_offset,
        "num_slots": HotBufferModel,
        "sequences": lambda n: DeviceCapacity(1, 1, 1, 1, 1, n),
        "num_operations": lambda n: _core.time_page_ops(10, n),
    }


@pytest.mark.parametrize("number", NEGATIVE + TOO_LARGE, ids=lambda n: f"{n.bit_length()}_bits")
def test_integers_of_any_size_are_refused_by_name(host, number: int) -> None:
    seq = host.open(100, append=10)
    before = host.manager.stats().as_dict()
    for what, call in integer_calls(host, seq).items():
        with pytest.raises(InvalidArgument, match=rf"^{what}: found .*, needed -?\d+ to \d+$"):
            call(number)
    assert host.manager.stats().as_dict() == before
    assert host.manager.append(seq, 90) == 10


@pytest.mark.parametrize("number", [1.0, "1", None, b"1"])
def test_what_is_no_integer_is_a_type_error(host, number: object) -> None:
    seq = host.open(100)
    with pytest.raises(TypeError):
        host.manager.append(seq, number)
    with pytest.raises(TypeError):
        HotBufferModel(4).resolve([number], 1, 1)
    assert host.manager.append(seq, 100) == 0


def test_integers_of_other_libraries_are_integers(host) -> None:
    import numpy as np

    seq = host.open(np.int64(100), np.uint8(3))
    assert host.manager.append(np.uint64(seq), np.int32(2)) == 0
    assert HotBufferModel(4).resolve(np.array([3, 1]), 1, 1).slots == [1, 0]


def test_a_region_name_without_bytes_or_with_a_nul_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="bytes of the name: found 0, needed 1 to 249"):
        HostRegion(1, name="")
    with pytest.raises(InvalidArgument, match="bytes of the name: found 250, needed 1 to 249"):
        HostRegion(1, name="x" * 250)
    with pytest.raises(InvalidArgument, match="name: found byte 0 at 2, needed bytes 1 to 255"):
        HostRegion(1, name="ab\0")
    assert HostRegion(1, name="x" * 249).num_bytes == 1


def test_memory_that_the_system_does_not_have_is_a_region_error() -> None:
    with pytest.raises(_core.RegionError, match=r"region of \d+ bytes: .* failed: .*os error \d+"):
        HostRegion(1 << 61)
    assert HostRegion(1 << 10).num_bytes == 1024
