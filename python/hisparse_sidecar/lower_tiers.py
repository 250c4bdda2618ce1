"""The tiers below the host pool, and the sequences that are opened and brought back over them."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from hisparse_sidecar._core import FileTier, Hierarchy, Manager, Recovery, TierState
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.prefill_rate import PrefillRate
from hisparse_sidecar.remote import MooncakeOptions, connect
from hisparse_sidecar.sequence_options import DeviceSlots

_LOG = logging.getLogger(__name__)


class LowerTiers:
    """Moves the pages of a manager between the host pool and what lies below it.

    Attributes:
        hierarchy: the core's mover.
        files: the file tier; None without one, and once closed.
        recovery: what opening the files found; None without a file tier.
        rate: what the engine prefills, which decides what is worth loading.
    """

    def __init__(
        self, config: SidecarConfig, manager: Manager, remote_tier: object | None = None
    ) -> None:
        """Opens every tier, finds the pages of an earlier process, and measures the tiers.

        Args:
            config: says which tiers there are.
            manager: whose pages move.
            remote_tier: takes the place of `remote_master`, see `Hierarchy`.

        Raises:
            WrongState: another process has the file tier, or its pages are of another model.
            TierDown: the system refuses the files, or the remote master does not answer.
        """
        tiers = config.tiers
        self._config = tiers
        self.rate = PrefillRate(tiers.recompute_tokens_per_second)
        self.files: FileTier | None = None
        self.recovery: Recovery | None = None
        has_tiers = tiers.has_lower_tiers or remote_tier is not None
        with ExitStack() as ends:
            self.hierarchy = Hierarchy(
                manager,
                file=self._open_files(manager),
                remote=self._open_remote(ends) if remote_tier is None else remote_tier,
                low_watermark_pages=int(config.host_pages * tiers.free_share) if has_tiers else 0,
                num_threads=tiers.io_threads,
                staging_bytes=tiers.staging_bytes,
                call_seconds=tiers.call_seconds,
            )
            ends.callback(self.hierarchy.close)
            if has_tiers:
                self._begin()
            self._ends = ends.pop_all()

    def _open_files(self, manager: Manager) -> FileTier | None:
        tiers = self._config
        if tiers.file_directory is None:
            return None
        files = FileTier(
            tiers.file_directory,
            capacity_bytes=tiers.file_bytes,
            digest=manager.digest,
            segment_bytes=tiers.segment_bytes,
            recovery_mode="strict" if tiers.strict_recovery else "quiet",
            io_threads=tiers.io_threads,
        )
        self.files, self.recovery = files, files.recovery
        return files

    def _open_remote(self, ends: ExitStack) -> object | None:
        tiers = self._config
        if tiers.remote_master is None:
            return None
        options = MooncakeOptions(tiers.remote_master, segment_bytes=tiers.remote_segment_bytes)
        return ends.enter_context(connect(options))

    def _begin(self) -> None:
        found, removed = self.hierarchy.recover(60.0)
        _LOG.info("lower tiers: %d pages found, %d removed, %s", found, removed, self.recovery)
        if self._config.probe_seconds > 0:
            table = self.hierarchy.measure(self._config.probe_seconds)
            self.hierarchy.adopt_load_table(table, 1)
            for name, latency_us, bytes_per_second in table:
                speed = bytes_per_second / 1e9
                _LOG.info("%s tier: %.2f GB/s after %d us", name, speed, latency_us)
        self.hierarchy.start()

    def open_prompt(
        self,
        tenant: str,
        token_ids: Sequence[int],
        max_new_tokens: int,
        device_slots: DeviceSlots,
    ) -> tuple[int, int]:
        """See `Hierarchy.open_prompt`."""
        return self.hierarchy.open_prompt(
            tenant,
            token_ids,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
            recompute_tokens_per_second=self.rate.tokens_per_second,
        )

    def open_sequence(
        self, prompt_tokens: int, max_new_tokens: int, device_slots: DeviceSlots
    ) -> int:
        """See `Hierarchy.open_sequence`."""
        return self.hierarchy.open_sequence(
            prompt_tokens,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    def fork(
        self, sequence: int, length: int, max_new_tokens: int, device_slots: DeviceSlots
    ) -> int:
        """See `Hierarchy.fork`."""
        return self.hierarchy.fork(
            sequence,
            length,
            max_new_tokens,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    def resume(self, sequence: int, device_slots: DeviceSlots) -> int:
        """See `Hierarchy.resume`."""
        return self.hierarchy.resume(
            sequence,
            **device_slots,
            deadline_seconds=self._config.load_seconds,
        )

    @property
    def states(self) -> list[TierState]:
        """Every lower tier, the nearest first."""
        return self.hierarchy.state()

    def close(self) -> None:
        """Ends the threads and leaves the remote store; files keep what was flushed."""
        self.files = None  # or it would keep the directory's lock
        self._ends.close()
