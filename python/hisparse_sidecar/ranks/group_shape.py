"""What must be the same on every rank before they share a host pool."""

from array import array
from dataclasses import dataclass

from hisparse_sidecar._core import DeviceCapacity
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.ranks.calls import integers
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.requirements import require

_PROTOCOL = 1  # of `records`: another number is another layout
_ARENAS = ("slots", "window_slots", "table_tokens", "table_blocks", "pooled_keys", "sequences")


@dataclass(frozen=True)
class GroupShape:
    """Numbers of the host pool and of the device arenas, which rank 0 gives out; by name."""

    numbers: dict[str, int]

    @classmethod
    def of(cls, config: SidecarConfig, capacity: DeviceCapacity, place: RankPlace) -> "GroupShape":
        """The shape that `config` gives a rank."""
        numbers = {
            "protocol": _PROTOCOL,
            "num_ranks": place.num_ranks,
            "num_layers": config.model.num_layers,
            "num_anchors": len(config.model.anchors),
            "kv_row_bytes": config.kv.row_bytes,
            "index_row_bytes": config.index.row_bytes,
            "host_pages": config.host_pages,
            "block_tokens": config.block_tokens,
            "max_step_rows": config.max_step_rows,
        }
        return cls(numbers | {name: getattr(capacity, name) for name in _ARENAS})

    def packed(self) -> bytes:
        """The numbers, int64 each."""
        return array("q", self.numbers.values()).tobytes()

    def check(self, rank: int, packed: bytes) -> None:
        """Raises InvalidArgument that names the first number in which `rank` differs."""
        theirs = integers(packed)
        found, needed = len(theirs), len(self.numbers)
        require(found == needed, f"rank {rank} has {found} numbers of its shape, rank 0 {needed}")
        for (name, ours), number in zip(self.numbers.items(), theirs, strict=True):
            require(number == ours, f"{name} is {number} on rank {rank}, {ours} on rank 0")
