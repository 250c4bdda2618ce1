"""What lies below the host pool: files, a remote store, and how pages move."""

from dataclasses import dataclass

from hisparse_sidecar.errors import InvalidArgument

_SECONDS = ("load_seconds", "call_seconds", "probe_seconds")


@dataclass(frozen=True)
class TiersConfig:
    """Where pages go that the host pool has no room for, and what is worth bringing back.

    Attributes:
        file_directory: directory of the file tier, made where it is missing; None = no file tier.
        file_bytes: most bytes of its files; lists of them take some KiB more.
        segment_bytes: bytes of one file, 65536 to 2**32; `file_bytes` has room for three or more.
            All stay open: the process's soft limit of descriptors is raised where it is too low.
        strict_recovery: refuse to start on damaged files, instead of passing over what is damaged;
            what a crash leaves, and what no sync is known to have reached, is no damage.
        remote_master: host:port of a Mooncake master; None = no remote tier. One that does not
            answer yet is used as soon as it does.
        remote_segment_bytes: memory that this process lends to the remote store.
        secret_file: 32 bytes that page names are made with; whoever is to find the same pages
            needs the same. Made, readable by its owner alone, where it is missing. Default: beside
            the file directory, and without one a secret of this process.
        model_name: names the weights; pages of equal tokens are shared under equal names only.
        free_share: share of the host pool that is kept free by moving idle pages down, 0 to 0.9.
        io_threads: threads that move pages.
        staging_bytes: most bytes of pages on their way at a time.
        load_seconds: how long opening or resuming a sequence may wait for lower tiers.
        call_seconds: most that one call of a tier may take.
        probe_seconds: how long measuring a tier may take, at the start, and again later where that
            has failed; 0 = do not measure, and load whatever is there.
        recompute_tokens_per_second: what the engine prefills; pages that would take longer to load
            are computed again. None = measured over the prefill steps.
    """

    file_directory: str | None = None
    file_bytes: int = 64 << 30
    segment_bytes: int = 128 << 20
    strict_recovery: bool = False
    remote_master: str | None = None
    remote_segment_bytes: int = 0
    secret_file: str | None = None
    model_name: str = ""
    free_share: float = 0.05
    io_threads: int = 4
    staging_bytes: int = 256 << 20
    load_seconds: float = 5.0
    call_seconds: float = 1.0
    probe_seconds: float = 2.0
    recompute_tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.free_share <= 0.9:
            raise InvalidArgument(f"free_share is {self.free_share}, must be 0 to 0.9")
        for name in _SECONDS:
            found = getattr(self, name)
            if not 0 <= found <= 3600:
                raise InvalidArgument(f"{name} is {found}, must be 0 to 3600")
        rate = self.recompute_tokens_per_second
        if rate is not None and not rate > 0:
            raise InvalidArgument(f"recompute_tokens_per_second is {rate}, must be > 0")
        if self.remote_master and not self.names_are_shared:
            found = "secret_file is not given and file_directory is not given"
            raise InvalidArgument(f"remote_master needs one of them: {found}")

    @property
    def names_are_shared(self) -> bool:
        """Whether another process may find the same pages."""
        return self.secret_file is not None or self.file_directory is not None

    @property
    def has_lower_tiers(self) -> bool:
        """Whether there is anything below the host pool."""
        return self.file_directory is not None or self.remote_master is not None
