"""How the tiers below the host pool are opened: files, a remote store, and what moves pages."""

import logging
from contextlib import ExitStack
from pathlib import Path

from hisparse_sidecar._core import FileTier, Hierarchy, Manager
from hisparse_sidecar.config import SidecarConfig, TiersConfig
from hisparse_sidecar.remote import MooncakeOptions, connect
from hisparse_sidecar.tiers.descriptor_limit import raise_descriptor_limit

_LOG = logging.getLogger(__name__)
_MIN_SEGMENT_BYTES = 1 << 16


class OpenTiers:
    """What is open.

    Attributes:
        hierarchy: the core's mover.
        files: the file tier; None without one, and once closed.
    """

    def __init__(self, hierarchy: Hierarchy, files: FileTier | None, ends: ExitStack) -> None:
        """Takes charge of `ends`."""
        self.hierarchy, self.files, self._ends = hierarchy, files, ends

    def close(self) -> None:
        """Ends the threads and leaves the remote store; files keep what was flushed."""
        self.files = None  # or it would keep the directory's lock
        self._ends.close()


def open_tiers(
    config: SidecarConfig, manager: Manager, remote_tier: object | None = None
) -> OpenTiers:
    """Opens every tier, finds the pages of an earlier process, and measures the tiers.

    Args:
        config: which tiers there are.
        manager: whose pages move.
        remote_tier: takes the place of `remote_master`, see `Hierarchy`.

    Raises:
        InvalidArgument: the process may not open as many files as the file tier may have.
        WrongState: another process has the file tier, or its pages are of another model.
        TierFull: the disk has no room for a new directory's first file.
        TierDown: the system refuses the files. A remote master that does not answer is waited for
            behind the caller's back.
    """
    tiers = config.tiers
    has_tiers = tiers.has_lower_tiers or remote_tier is not None
    with ExitStack() as ends:
        files = _open_files(tiers, manager)
        hierarchy = Hierarchy(
            manager,
            file=files,
            remote=_open_remote(tiers, ends) if remote_tier is None else remote_tier,
            low_watermark_pages=int(config.host_pages * tiers.free_share) if has_tiers else 0,
            num_threads=tiers.io_threads,
            staging_bytes=tiers.staging_bytes,
            call_seconds=tiers.call_seconds,
        )
        ends.callback(hierarchy.close)
        if has_tiers:
            _begin(tiers, hierarchy)
        return OpenTiers(hierarchy, files, ends.pop_all())


def _open_files(tiers: TiersConfig, manager: Manager) -> FileTier | None:
    if tiers.file_directory is None:
        return None
    raise_descriptor_limit(_num_files(tiers, Path(tiers.file_directory)))
    files = FileTier(
        tiers.file_directory,
        capacity_bytes=tiers.file_bytes,
        digest=manager.digest,
        segment_bytes=tiers.segment_bytes,
        recovery_mode="strict" if tiers.strict_recovery else "quiet",
        io_threads=tiers.io_threads,
    )
    _LOG.info("file tier: %s", files.recovery)
    return files


def _num_files(tiers: TiersConfig, directory: Path) -> int:
    """How many there may be: as many as there are already, if those were smaller."""
    # smaller ones are for the tier to refuse
    num_new = tiers.file_bytes // max(tiers.segment_bytes, _MIN_SEGMENT_BYTES)
    return max(num_new, sum(1 for _ in directory.glob("segment-*")))


def _open_remote(tiers: TiersConfig, ends: ExitStack) -> object | None:
    if tiers.remote_master is None:
        return None
    options = MooncakeOptions(tiers.remote_master, segment_bytes=tiers.remote_segment_bytes)
    return ends.enter_context(connect(options))


def _begin(tiers: TiersConfig, hierarchy: Hierarchy) -> None:
    found, removed = hierarchy.recover(60.0)
    _LOG.info("lower tiers: %d pages found, %d removed", found, removed)
    if tiers.probe_seconds > 0:
        table = hierarchy.measure(tiers.probe_seconds)
        hierarchy.adopt_load_table(table, 1)
        for name, latency_us, bytes_per_second in table:
            _LOG.info("%s tier: %.2f GB/s after %d us", name, bytes_per_second / 1e9, latency_us)
        for name in {state.name for state in hierarchy.state()} - {name for name, *_ in table}:
            _LOG.warning("%s tier: not measured; nothing is loaded from it until it is", name)
    hierarchy.start(measure_seconds=tiers.probe_seconds)
