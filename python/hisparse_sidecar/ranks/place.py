"""Which rank a process is, and how long it waits for the others."""

from dataclasses import dataclass
from pathlib import Path

from hisparse_sidecar.requirements import require

MAX_RANKS = 64


@dataclass(frozen=True)
class RankPlace:
    """One rank of those that share a host pool; every rank makes the same calls in the same order.

    Attributes:
        rank: 0 owns the pool and decides; the others follow.
        num_ranks: ranks of the group, 1 to 64.
        socket_path: Unix socket where rank 0 waits for the others while they join.
        deadline_seconds: longest that rank 0 waits for the others; they wait twice as long for it.
        join_seconds: longest that a rank waits until all have joined.
    """

    rank: int
    num_ranks: int
    socket_path: Path
    deadline_seconds: float = 30.0
    join_seconds: float = 120.0

    def __post_init__(self) -> None:
        message = f"num_ranks is {self.num_ranks}, must be 1 to {MAX_RANKS}"
        require(1 <= self.num_ranks <= MAX_RANKS, message)
        message = f"rank is {self.rank}, must be 0 to {self.num_ranks - 1}"
        require(0 <= self.rank < self.num_ranks, message)
        for name in ("deadline_seconds", "join_seconds"):
            seconds = getattr(self, name)
            require(seconds > 0, f"{name} is {seconds}, must be > 0")

    @property
    def leads(self) -> bool:
        """Whether this rank owns the pool."""
        return self.rank == 0

    @property
    def followers(self) -> range:
        """The ranks that follow."""
        return range(1, self.num_ranks)
