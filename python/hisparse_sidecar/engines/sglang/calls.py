"""Which calls our selection took and which went SGLang's own way, and why."""

import logging
from collections import Counter
from collections.abc import Mapping

_LOG = logging.getLogger("hisparse_sidecar.sglang")
SELECTED = "selected"


class CallCounts:
    """Counts of calls by what became of them; the first of each kind is logged.

    Python makes these calls in eager passes and while a CUDA graph is captured: a replay is none.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, outcome: str) -> None:
        """Counts one call.

        Args:
            kind: "paged" (decode, verify) or "ragged" (extend).
            outcome: `SELECTED`, or why SGLang's own path ran.
        """
        name = f"{kind}: {outcome}"
        self._counts[name] += 1
        if self._counts[name] == 1 and outcome != SELECTED:
            _LOG.info("hisparse: SGLang's own selection runs, %s", name)

    def as_dict(self) -> Mapping[str, int]:
        """Counts by "kind: outcome"."""
        return dict(self._counts)
