"""What one run of `hisparse stress` is made of."""

import errno
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hisparse_sidecar.requirements import require

FAULTS = ("alloc", "io", "kill", "corrupt", "enospc", "slow", "remote")
TIERS = ("file", "remote")
# what failpoints of the file tier answer with; None = they sleep
ERROR_NUMBERS = {"io": errno.EIO, "enospc": errno.ENOSPC, "slow": None}
# what must fail a run, and the operation that does it
SELF_CHECKS = {"byte": "flip", "page": "lose", "lease": "leak"}
_TIER_OF_FAULT = {
    "io": "file",
    "corrupt": "file",
    "enospc": "file",
    "slow": "file",
    "remote": "remote",
}
_MAX_SESSIONS = 64


@dataclass(frozen=True)
class StressSettings:
    """One run; the same settings draw the same operations as long as the server answers alike.

    Attributes:
        seconds: how long operations are drawn.
        seed: of every draw.
        sessions: clients at a time, 1 to 64.
        faults: kinds of faults to inject, of `FAULTS`.
        tiers: what lies below the host pool, of `TIERS`.
        operations: at most so many are drawn; None = as many as the time allows.
        self_check: spoil a byte, lose a page or leak a lease, of `SELF_CHECKS`: the run must fail.
    """

    seconds: float
    seed: int
    sessions: int
    faults: tuple[str, ...]
    tiers: tuple[str, ...]
    operations: int | None = None
    self_check: str | None = None

    def __post_init__(self) -> None:
        require(0 < self.seconds <= 1e6, f"seconds is {self.seconds:g}, must be > 0 and <= 1e6")
        require(0 <= self.seed < 1 << 63, f"seed is {self.seed}, must be 0 to 2**63 - 1")
        found = self.sessions
        require(1 <= found <= _MAX_SESSIONS, f"sessions is {found}, must be 1 to {_MAX_SESSIONS}")
        most = self.operations
        require(most is None or most >= 1, f"operations is {most}, must be >= 1")
        _check_names("self-check", (self.self_check,) if self.self_check else (), SELF_CHECKS)
        _check_names("faults", self.faults, FAULTS)
        _check_names("tiers", self.tiers, TIERS)
        message = f"a lost page needs tier file, tiers are {','.join(self.tiers) or 'none'}"
        require(self.self_check != "page" or "file" in self.tiers, message)
        for fault in self.faults:
            tier = _TIER_OF_FAULT.get(fault)
            message = f"fault {fault} needs tier {tier}, tiers are {','.join(self.tiers) or 'none'}"
            require(tier is None or tier in self.tiers, message)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "StressSettings":
        """The settings of `values`, as `to_json` gives them."""
        lists = {name: tuple(values[name]) for name in ("faults", "tiers")}
        return cls(**{**values, **lists})

    def to_json(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


def _check_names(what: str, found: tuple[str, ...], known: Iterable[str]) -> None:
    unknown = [name for name in found if name not in known]
    message = f"{what} has {', '.join(unknown)}, known are {', '.join(known)}"
    require(not unknown, message)
    require(len(set(found)) == len(found), f"{what} names one twice: {', '.join(found)}")
