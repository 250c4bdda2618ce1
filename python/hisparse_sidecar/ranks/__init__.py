"""One host pool for the ranks of a host: rank 0 owns it and decides, the others follow.

Every rank is a process with a device tier of its own that makes the same calls in the same order.
"""

from hisparse_sidecar.ranks.contract import HostManager, SequenceMoves, SoleRank, StepRanks
from hisparse_sidecar.ranks.place import RankPlace
from hisparse_sidecar.ranks.share import RankShare

__all__ = ["HostManager", "RankPlace", "RankShare", "SequenceMoves", "SoleRank", "StepRanks"]
