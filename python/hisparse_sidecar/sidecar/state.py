"""What every call of a sidecar works on, and which calls are legal now."""

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.sequence import SequenceOptions
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.pipeline.pipeline import LayerPipeline
from hisparse_sidecar.ranks import RankPlace
from hisparse_sidecar.selection.policy import policy_for
from hisparse_sidecar.stats import GroupTraffic
from hisparse_sidecar.step.step import Step
from hisparse_sidecar.tiers.tiers import build_tiers


class SidecarState:
    """The tiers, the open sequences and the open step of one sidecar."""

    def __init__(
        self,
        config: SidecarConfig,
        place: RankPlace | None = None,
        remote_tier: object | None = None,
    ) -> None:
        """See `Sidecar`."""
        self.config = config
        # first: what it refuses must not leave a host pool behind
        self._policy = policy = policy_for(config)
        self._tiers = build_tiers(config, place, remote_tier)
        self._manager, self.device = self._tiers.manager, self._tiers.device.device
        self._traffic = [GroupTraffic() for _ in config.model.anchors]
        self._pipeline = LayerPipeline(self._tiers, self._traffic, policy)
        self._options: dict[int, SequenceOptions] = {}
        self._step: Step | None = None
        self._closed = False
        self._steps_begun = self._steps_committed = self._steps_aborted = 0

    def _require_open(self) -> None:
        if self._closed:
            raise WrongState("the sidecar is closed, its host pool is 0 bytes")

    def _require_no_step(self, what: str) -> None:
        if self._step:
            raise WrongState(f"cannot {what} while step {self._step.number} is open, end it first")

    def _open_step(self, what: str) -> Step:
        self._require_open()
        if self._step is None:
            raise WrongState(f"cannot {what}: no step is open, {self._steps_begun} have ended")
        return self._step
