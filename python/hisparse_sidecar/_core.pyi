"""Host memory, page tables and admission: the Rust core, as integers and host bytes.

Every call raises a child of HisparseError, naming what was found and what was needed, and then
leaves all state as it was. Integers of any size are checked: one that is negative or too large is
InvalidArgument, never OverflowError. Objects may be shared between threads; a call that may wait
or copy releases the interpreter lock.
"""

# ruff: noqa: N818  (an error's name says what is the matter, not that something is)

from collections.abc import Sequence
from types import TracebackType
from typing import Final, SupportsIndex, TypeAlias, final

from typing_extensions import Self

__all__ = [
    "BlockWindowModel",
    "DeadlinePassed",
    "DeviceArenaFull",
    "DeviceCapacity",
    "FaultTier",
    "FileTier",
    "Hierarchy",
    "HisparseError",
    "HostLayout",
    "HostPoolFull",
    "HostRegion",
    "HotBufferModel",
    "InvalidArgument",
    "Manager",
    "MemoryTier",
    "PageLease",
    "PrefixStats",
    "Recovery",
    "RegionError",
    "Resolution",
    "SequenceRanges",
    "StaleHandle",
    "Stats",
    "TierDown",
    "TierFull",
    "TierState",
    "UnknownSequence",
    "WrongState",
    "core_version",
    "time_page_ops",
]

class HisparseError(Exception):
    """Any error of the core; raised as this class itself it is a bug of the core."""

class InvalidArgument(HisparseError, ValueError):
    """The call itself is wrong; repeating it fails again."""

class HostPoolFull(HisparseError):
    """Too few host pages are free now; says how many were needed and how many are free."""

class DeviceArenaFull(HisparseError):
    """No free range of a device arena is long enough now; says which arena, need and free."""

class UnknownSequence(HisparseError):
    """The handle was never given out."""

class StaleHandle(HisparseError):
    """What the handle named has been closed since."""

class WrongState(HisparseError):
    """The call does not fit the state that the object is in."""

class TierFull(HisparseError):
    """A tier, or a tenant's share of it, has no room; says what was needed and what is free."""

class TierDown(HisparseError):
    """A tier does not answer: its device, server or network failed, or is being spared."""

class DeadlinePassed(HisparseError):
    """The call's deadline passed before it was done."""

class RegionError(HisparseError):
    """The operating system refused a region, or a received region is not sealed."""

class HostRegion:
    """Shared memory of a fixed size: a memfd sealed against shrinking, growing and unsealing.

    Mapped readable and writable, left out of core dumps. Supports the buffer protocol:
    `memoryview(region)` and `torch.frombuffer(region, dtype=torch.uint8)` see and change its
    bytes, which are zero at first. Pages come into being when first touched.
    """

    def __new__(
        cls,
        num_bytes: SupportsIndex,
        *,
        huge_pages: bool = False,
        numa_node: SupportsIndex | None = None,
        name: str = "hisparse",
    ) -> Self:
        """Makes a region; what the system does not give is left out and can be read back.

        Args:
            num_bytes: size, 1 or more; huge pages round the file up to 2 MiB, not this number.
            huge_pages: ask for 2 MiB pages; without a reserve, for transparent ones.
            numa_node: ask for memory of this node, 0 to 1023.
            name: shown in /proc/PID/maps; 1 to 249 bytes.

        Raises:
            InvalidArgument: a number is out of range.
            RegionError: the system has no such memory.
        """

    @classmethod
    def attach(cls, fd: SupportsIndex) -> Self:
        """Maps a region that another process made; `fd` stays the caller's.

        Raises:
            RegionError: `fd` is not open, is no memfd, or may still change its size.
        """

    @property
    def fd(self) -> int:
        """The descriptor to hand to another process; owned by the region. WrongState if closed."""

    @property
    def address(self) -> int:
        """Where the region is mapped, until it is closed. WrongState if closed."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the region: as asked for, or as found by attach."""

    @property
    def huge_pages(self) -> bool:
        """Whether the region got 2 MiB pages out of the system's reserve."""

    @property
    def page_kind(self) -> str:
        """What the system gave: "normal", "transparent" (merged where it can) or "huge"."""

    @property
    def numa_node(self) -> int | None:
        """The node that the region is bound to; None = not asked for, or not to be had."""

    def close(self) -> None:
        """Unmaps in steps of at most 1 GiB and closes the descriptor; closing twice is legal.

        Raises:
            WrongState: a memoryview or tensor still uses the bytes.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class HostLayout:
    """Where every array lies in a region; each begins at a multiple of 4096 bytes."""

    def __new__(
        cls,
        num_layers: SupportsIndex,
        num_anchors: SupportsIndex,
        kv_row_bytes: SupportsIndex,
        index_row_bytes: SupportsIndex,
        num_pages: SupportsIndex,
    ) -> Self:
        """Lays out KV rows of every layer, then index pages and pooled keys of every anchor.

        Args:
            num_layers: 1 to 1024.
            num_anchors: 0 to 1024; 0 where selections come from outside.
            kv_row_bytes: bytes of one token's row of one layer, 1 to 65536.
            index_row_bytes: bytes of one token's index row of one anchor, 1 to 65536.
            num_pages: pages of 64 tokens, 1 to 2**24.
        """

    num_layers: Final[int]
    num_anchors: Final[int]
    kv_row_bytes: Final[int]
    index_row_bytes: Final[int]
    num_pages: Final[int]
    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays: the least size of the region."""

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers and anchors."""

    def kv_offset(self, layer: SupportsIndex) -> int:
        """Byte offset of `[num_pages * 64, kv_row_bytes]` uint8, the rows of a layer."""

    def index_offset(self, anchor: SupportsIndex) -> int:
        """Byte offset of `[num_pages, 64 * index_row_bytes]` uint8, an anchor's index pages."""

    def pooled_offset(self, anchor: SupportsIndex) -> int:
        """Byte offset of `[num_pages, index_row_bytes]` uint8; a block's is at its last page."""

@final
class DeviceCapacity:
    """How many ids each device arena has; the tensors are the caller's. Each 0 to 2**31 - 1."""

    def __new__(
        cls,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
        table_tokens: SupportsIndex,
        table_blocks: SupportsIndex,
        pooled_keys: SupportsIndex,
        sequences: SupportsIndex,
    ) -> Self:
        """Names the capacities.

        Args:
            slots: rows of the hot buffers.
            window_slots: blocks of the block windows.
            table_tokens: slot-table entries, one a token of admitted length.
            table_blocks: block-table entries, one a block.
            pooled_keys: pooled keys, handed out in pages of 64; the rest is not used.
            sequences: rows of the per-sequence state.
        """

    slots: Final[int]
    window_slots: Final[int]
    table_tokens: Final[int]
    table_blocks: Final[int]
    pooled_keys: Final[int]
    sequences: Final[int]

StepTables: TypeAlias = tuple[bytearray, list[tuple[str, int, int, int, int | None]]]
"""All tables of a step in one stretch of bytes, and each one's name, first byte (a multiple of 16),
bytes of a number (4 or 8, signed, in the machine's order), rows, and numbers of a row, None for one
dimension. -1 = there is nothing.

Of 4 bytes: row_seq, row_pos of each row; lengths, page_table, pooled_table of each sequence.
Of 8: host_row_ids of each row; closed_rows, closed_pages of each block that the step fills;
slot_base, slot_count, token_table_base, window_base, window_count, block_table_base, pooled_base,
state_row of each sequence.
"""

def plan_step(
    sequences: Sequence[tuple[int, int, list[int], SequenceRanges]],
    padded_rows: SupportsIndex,
    block_tokens: SupportsIndex,
) -> StepTables:
    """As `Manager.plan_step`, of sequences that another process's manager has.

    Args:
        sequences: first new position, new rows, host page of each 64 tokens, and ranges of each.
        padded_rows: see `Manager.plan_step`.
        block_tokens: tokens of a block, a multiple of 64.

    Raises:
        InvalidArgument: there are not as many pages as the tokens need, and see `Manager`.
    """

@final
class SequenceRanges:
    """Where a sequence's state lies in each device arena: `count` ids from `base` on."""

    slot_base: Final[int]
    slot_count: Final[int]
    window_base: Final[int]
    window_count: Final[int]
    token_table_base: Final[int]
    token_table_count: Final[int]
    block_table_base: Final[int]
    block_table_count: Final[int]
    pooled_base: Final[int]
    """A multiple of 64, so that the range is whole pooled pages."""
    pooled_count: Final[int]
    """A multiple of 64: one key a block of the admitted length, rounded up."""
    state_row: Final[int]
    def as_dict(self) -> dict[str, int]:
        """Every number by its name."""

    @staticmethod
    def from_dict(fields: dict[str, int]) -> SequenceRanges:
        """The inverse of `as_dict`, for numbers that came from another process.

        Raises:
            InvalidArgument: a field is missing, unknown, or out of range.
        """

@final
class Stats:
    """What a Manager holds at one moment, and what it has done since it was made."""

    sequences: Final[int]
    host_pages_total: Final[int]
    host_pages_free: Final[int]
    """Pages that are neither in use nor reserved."""
    host_pages_reserved: Final[int]
    """Pages promised to open sequences and not picked yet."""
    host_pages_shared: Final[int]
    """Pages with two holders or more: sequences, and the directory of what prompts may find."""
    host_pages_leased: Final[int]
    slots_total: Final[int]
    slots_used: Final[int]
    window_slots_total: Final[int]
    window_slots_used: Final[int]
    table_tokens_total: Final[int]
    table_tokens_used: Final[int]
    table_blocks_total: Final[int]
    table_blocks_used: Final[int]
    pooled_keys_total: Final[int]
    pooled_keys_used: Final[int]
    state_rows_total: Final[int]
    state_rows_used: Final[int]
    opened: Final[int]
    """Sequences opened; forks are counted apart."""
    closed: Final[int]
    forked: Final[int]
    truncated: Final[int]
    refused: Final[int]
    """Calls that raised HostPoolFull or DeviceArenaFull."""
    appended_tokens: Final[int]
    copied_pages: Final[int]
    """Partial pages copied, by forks and before appends."""
    def as_dict(self) -> dict[str, int]:
        """Every number by its name."""

    @staticmethod
    def from_dict(fields: dict[str, int]) -> Stats:
        """The inverse of `as_dict`, for numbers that came from another process.

        Raises:
            InvalidArgument: a field is missing, unknown, or out of range.
        """

@final
class PageLease:
    """Pages held outside of any sequence; they go back when the lease is released or dropped."""

    @property
    def pages(self) -> list[int]:
        """Numbers of the pages; empty once released."""

    def split_off(self, at: SupportsIndex) -> PageLease:
        """Takes the pages from `at` on out of this lease, into one of their own.

        Raises:
            InvalidArgument: `at` is more than the pages held.
            WrongState: it was released.
        """

    def release(self) -> None:
        """Gives the pages back; releasing twice is legal, and so is outliving the Manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

@final
class Manager:
    """Admits sequences, gives them host pages and device ranges, and takes both back.

    A sequence handle is an int: its entry in the low 32 bits, the entry's generation in the high
    ones; 0 names none. After `close` a handle raises StaleHandle for ever; one that was never given
    out raises UnknownSequence.
    """

    def __new__(
        cls,
        region: HostRegion,
        layout: HostLayout,
        capacity: DeviceCapacity,
        *,
        block_tokens: SupportsIndex = 128,
        model: str = "",
        secret: bytes | None = None,
        max_pages: SupportsIndex = 0,
    ) -> Self:
        """Takes charge of the region's pages, and keeps the region alive.

        Args:
            region: at least `layout.num_bytes` large, and open.
            layout: where the arrays lie.
            capacity: ids of the device arenas.
            block_tokens: tokens of one block, a multiple of 64, 64 to 65536.
            model: names the weights; equal tokens share pages under equal names only.
            secret: 32 bytes that make the names of pages; whoever is to find the same pages in a
                file or remote tier needs the same. None = this manager alone finds its pages.
            max_pages: pages that it may know in all tiers together; 0 = twice the host pool's.
        """

    def open_sequence(
        self,
        prompt_tokens: SupportsIndex,
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
    ) -> int:
        """Opens an empty sequence of up to `prompt_tokens + max_new_tokens` tokens.

        Host pages and every device range are reserved at once, all or none, so that no later
        append finds anything full.

        Args:
            prompt_tokens: 0 or more.
            max_new_tokens: 0 or more; the sum is 1 to 2**31 - 1.
            slots: slots of the hot buffer, 1 or more.
            window_slots: slots of the block window; 0 where selections come from outside.

        Raises:
            HostPoolFull: too few pages are free.
            DeviceArenaFull: one of the arenas has no range that is long enough.
        """

    def append(self, seq: SupportsIndex, num_tokens: SupportsIndex) -> int:
        """Makes room for the next tokens; returns the position of the first.

        If the last page is partial and a fork shares it, it is copied first (all layers' rows,
        index rows, pooled key), and `host_pages` changes in that one entry. No copy into the
        page's rows may be in flight then.

        Raises:
            InvalidArgument: `num_tokens` is 0, or the admitted length would be passed.
            WrongState: a page has to be copied and the region is closed.
        """

    def append_rows(
        self, rows: Sequence[tuple[int, int]], token_ids: Sequence[int] | None = None
    ) -> list[int]:
        """Appends (sequence, rows) to sequences, each named once, or to none.

        Args:
            rows: 1 or more rows each.
            token_ids: of every row, see `note_tokens`; None = not told.

        Returns:
            The position of the first new row of each sequence.

        Raises:
            InvalidArgument, UnknownSequence, StaleHandle, WrongState: no sequence has grown.
        """

    def plan_step(self, rows: Sequence[tuple[int, int]], padded_rows: SupportsIndex) -> StepTables:
        """The tables of a step whose rows are the last ones of these sequences.

        Args:
            rows: (sequence, rows), 1 or more rows each, at most `padded_rows` together.
            padded_rows: rows of the tables of rows; the surplus is padding, -1.
        """

    def advance_pooled(
        self, seq: SupportsIndex, anchor: SupportsIndex, num_tokens: SupportsIndex
    ) -> tuple[int, int, int]:
        """Notes that an anchor has folded its next tokens into pooled keys.

        Returns:
            (first block closed, number of blocks closed, tokens in the open block now); the first
            is the open block if none was closed.

        Raises:
            InvalidArgument: `num_tokens` is 0, or the sequence's length would be passed.
        """

    def truncate(self, seq: SupportsIndex, length: SupportsIndex) -> None:
        """Forgets tokens from `length` on; the admitted length stays.

        Pages after the end go back to the sequence's reservation. The pooled keys of every anchor
        follow; a closed block may reopen, and the caller then sums its rows again.

        Raises:
            InvalidArgument: the sequence has fewer tokens.
            HostPoolFull: the cut reaches pages that a fork keeps, and too few pages are free to
                promise others in their place. A cut that stays behind the last fork never fails.
            TierFull: so, and the tenant's quota has no room for others.
        """

    def fork(
        self,
        seq: SupportsIndex,
        length: SupportsIndex,
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
    ) -> int:
        """Opens a sequence that begins with the first `length` tokens of another.

        Full pages are shared until one of the two writes them; the bytes of a partial page are
        copied. Device ranges are its own and empty; pooled metadata is the parent's, cut to
        `length`. No copy into the partial page's rows may be in flight.

        Raises:
            InvalidArgument: the parent has fewer tokens, or a number is out of range.
            HostPoolFull: too few pages are free for what is not shared.
            DeviceArenaFull: one of the arenas has no range that is long enough.
            WrongState: a page has to be copied and the region is closed.
        """

    def close(self, seq: SupportsIndex) -> None:
        """Ends a sequence and gives back all that it held."""

    def length(self, seq: SupportsIndex) -> int:
        """Tokens appended and not truncated."""

    def admitted_tokens(self, seq: SupportsIndex) -> int:
        """Tokens that the sequence may grow to."""

    def host_pages(self, seq: SupportsIndex) -> list[int]:
        """Physical page of each 64 tokens, in order: `ceil(length / 64)` of them."""

    def pooled_state(self, seq: SupportsIndex, anchor: SupportsIndex) -> tuple[int, int]:
        """(closed blocks, tokens in the open block) of an anchor."""

    def ranges(self, seq: SupportsIndex) -> SequenceRanges:
        """Where the sequence's device state lies; fixed while it is open."""

    def lease_pages(self, num_pages: SupportsIndex) -> PageLease:
        """Takes pages out of the pool, all or none. Raises HostPoolFull."""

    def share_pages(
        self, seq: SupportsIndex, first_page: SupportsIndex, num_pages: SupportsIndex
    ) -> PageLease:
        """Holds full pages of a sequence beside it; they stay when it is closed.

        Raises:
            InvalidArgument: these are not full pages of the sequence.
        """

    def open_shared(
        self,
        leases: Sequence[PageLease],
        prompt_tokens: SupportsIndex,
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
    ) -> int:
        """As `open_sequence`, on the pages of these leases, in order: its length is theirs.

        The leases stay the caller's, and nobody writes their pages. One that was released has none.

        Args:
            leases: of this manager; at most the full pages of the prompt.
            prompt_tokens: of the whole prompt.
            max_new_tokens: see `open_sequence`.
            slots: see `open_sequence`.
            window_slots: see `open_sequence`.

        Raises:
            InvalidArgument: more pages than the prompt has.
            WrongState: a lease is another manager's.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """

    def add_tenant(self, name: str, quota_pages: SupportsIndex | None = None) -> None:
        """Adds a tenant, whose sequences may have so many host pages; None = no limit.

        The tenant "" is there from the start. Raises WrongState for a name that is known.
        """

    def set_quota(self, name: str, quota_pages: SupportsIndex | None = None) -> None:
        """Changes a quota; what a tenant has beyond it stays until it goes by itself."""

    def tenant_usage(self, name: str) -> tuple[int, int | None]:
        """(host pages that count for the tenant, its quota).

        Raises:
            InvalidArgument: no such tenant.
        """

    def note_tokens(self, seq: SupportsIndex, start: SupportsIndex, tokens: Sequence[int]) -> None:
        """Tells the token ids of positions `start` on, which the sequence has; see `publish`.

        Ids are 0 to 2**32 - 1. A gap before `start` ends what the sequence can share.
        """

    def publish(self, seq: SupportsIndex) -> int:
        """Lets sequences of its tenant share the full pages whose tokens were told.

        Only for sequences of `Hierarchy.open_prompt`. All rows of a page have to be written, and
        all anchors to have folded it. Where another was first and the bytes are the same, its page
        takes the place of this one, so `host_pages` may change.

        Returns:
            Pages dealt with.
        """

    def preempt(self, seq: SupportsIndex) -> None:
        """Lets a sequence rest: its device ranges and what it was promised are free.

        Its pages are kept: they may leave the host pool for lower tiers, and are not forgotten.
        Until `Hierarchy.resume`, steps, forks and truncations raise WrongState.

        Raises:
            TierFull: the directory has no entry left for its pages; it is active as before.
        """

    def rests(self, seq: SupportsIndex) -> bool:
        """Whether the sequence was preempted and not resumed."""

    def evict(self, num_pages: SupportsIndex) -> int:
        """Gives up to so many idle host pages up at once, and pages without a copy for good."""

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model and the layout of the pages."""

    def prefix_stats(self) -> PrefixStats:
        """What the directory of shared pages holds; looks at every page."""

    def stats(self) -> Stats: ...
    def check_integrity(self) -> None:
        """Checks every invariant of every level.

        Raises:
            HisparseError: naming the first that does not hold, with both numbers.
        """

@final
class PrefixStats:
    """What a directory of shared pages holds at one moment, and what it has done."""

    pages: Final[int]
    """Pages known, in all tiers."""
    resident: Final[int]
    """Of these: in the host pool."""
    demoting: Final[int]
    lower: Final[int]
    """In lower tiers only."""
    promoting: Final[int]
    leases: Final[int]
    pins: Final[int]
    holds: Final[int]
    """Pages kept for resting sequences; one counts once for each."""
    epoch: Final[int]
    hits: Final[int]
    """Pages of prompts that were found."""
    misses: Final[int]
    def as_dict(self) -> dict[str, int]:
        """Every number by its name."""

    @staticmethod
    def from_dict(fields: dict[str, int]) -> PrefixStats:
        """See `SequenceRanges.from_dict`."""

@final
class Recovery:
    """What opening a directory of files found."""

    pages: Final[int]
    segments: Final[int]
    scanned: Final[int]
    """Segments without a sound end, whose records were read one by one."""
    skipped: Final[int]
    """Damaged pages that were passed over."""
    torn: Final[int]
    """Segments with writes that had not ended."""
    micros: Final[int]
    def as_dict(self) -> dict[str, int]:
        """Every number by its name."""

    @staticmethod
    def from_dict(fields: dict[str, int]) -> Recovery:
        """See `SequenceRanges.from_dict`."""

@final
class TierState:
    """A tier below the host pool at one moment; counts are pages unless they say otherwise."""

    name: Final[str]
    """"file" or "remote"."""
    condition: Final[str]
    """"serving", "full" (gives pages out) or "degraded" (failed, and is tried now and then)."""
    pages: Final[int]
    used_bytes: Final[int]
    capacity_bytes: Final[int]
    """0 = the tier does not say."""
    corrupt: Final[int]
    """Pages whose bytes were not those that had been put: each was a miss."""
    demoted: Final[int]
    promoted: Final[int]
    missed: Final[int]
    """Pages that were thought to be there."""
    failed: Final[int]
    refused: Final[int]
    """Pages not taken, because it was full."""
    left: Final[int]
    """Pages taken out to make room."""
    bytes_down: Final[int]
    bytes_up: Final[int]

@final
class FileTier:
    """Pages in files of one directory, durable once flushed, checked whenever they are read."""

    def __new__(
        cls,
        directory: str,
        *,
        capacity_bytes: SupportsIndex,
        digest: bytes,
        segment_bytes: SupportsIndex = 134217728,
        recovery_mode: str = "quiet",
        io_threads: SupportsIndex = 4,
    ) -> Self:
        """Opens a directory, or makes it.

        Args:
            directory: one process at a time has it.
            capacity_bytes: of all segments' files, beside which a list of them, and room for the
                next one, take some KiB; at least three segments.
            digest: `Manager.digest`; the directory holds pages of one model and layout.
            segment_bytes: 65536 to 2**32, a multiple of 4096.
            recovery_mode: "quiet" counts damage and goes on, "strict" refuses it.
            io_threads: 1 to 64.

        Raises:
            WrongState: another process has the directory; its pages are of another model, layout
                or version; strict, and there is damage.
            TierFull: the disk has no room for the list of a new directory.
            TierDown: the system refuses.
        """

    @property
    def recovery(self) -> Recovery:
        """What opening found."""

    def arm(
        self,
        point: str,
        *,
        error_number: SupportsIndex | None = None,
        sleep_seconds: float | None = None,
        one_in: SupportsIndex,
        seed: SupportsIndex,
    ) -> None:
        """Makes one call in so many fail with an errno, or sleep, at a failpoint: for tests."""

    def num_injected(self, error_number: SupportsIndex | None) -> int:
        """Calls that failpoints have made to fail with this errno so far; None: to sleep."""

    def holds(self, name: bytes) -> bool:
        """Whether it thinks that it has the page of this name, 32 bytes; no file is read."""

    def disarm(self) -> None:
        """Ends every failpoint."""

@final
class MemoryTier:
    """Pages in this process's memory: the plainest tier."""

    def __new__(cls, capacity_bytes: SupportsIndex) -> Self: ...

@final
class FaultTier:
    """A tier that fails on purpose, by rate and seed, and a frame round each page that tells."""

    def __new__(
        cls,
        tier: object,
        *,
        seed: SupportsIndex,
        by_identity: bool = False,
        delay_seconds: float = 0.0,
        **rates: int,
    ) -> Self:
        """Wraps a tier.

        Args:
            tier: any that `Hierarchy` takes; all its pages have to come through this one.
            seed: of every draw.
            by_identity: a page that fails does so each time; else each call draws anew.
            delay_seconds: how much longer a slow call takes.
            rates: calls out of a million, by kind: corrupt_read, corrupt_stored, error, hollow
                (found, and nothing written), short, slow, vanished.
        """

    @property
    def injected(self) -> dict[str, int]:
        """Faults so far, by kind."""

@final
class Hierarchy:
    """Sequences and pages over the host pool and the tiers below it.

    Calls take `deadline_seconds`, counted from the call. Where the host pool is full, pages that
    nobody uses, and those of resting sequences, go to lower tiers first; then HostPoolFull says
    what was needed and what was free.
    """

    def __new__(
        cls,
        manager: Manager,
        *,
        file: object | None = None,
        remote: object | None = None,
        low_watermark_pages: SupportsIndex = 0,
        num_threads: SupportsIndex = 4,
        staging_bytes: SupportsIndex = 268435456,
        call_seconds: float = 1.0,
    ) -> Self:
        """Makes the hierarchy of a manager; it has one at a time.

        Args:
            manager: whose pages move.
            file: a FileTier, MemoryTier or FaultTier; None = there is none.
            remote: the same, or an object like `hisparse_sidecar.remote.MooncakeTier`: with put,
                get, holds and remove that keep their deadlines, and perhaps `is_up`.
            low_watermark_pages: host pages that the thread of `start` keeps free.
            num_threads: threads that move pages, 0 to 64.
            staging_bytes: of pages on their way at a time; at least 8 pages.
            call_seconds: most that one call of a tier may take.
        """

    def start(self, *, measure_seconds: float = 0.0) -> None:
        """Starts the threads that work by themselves.

        One moves idle pages down while too few host pages are free. One asks degraded tiers each
        second whether they work again, and measures those that have no speeds in force.

        Args:
            measure_seconds: as `tier_seconds` of `measure`; 0 = nothing is measured.
        """

    def wake(self) -> None:
        """Tells that thread that pages may have become idle; cheap, and never waits."""

    def open_prompt(
        self,
        tenant: str,
        tokens: Sequence[int],
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
        deadline_seconds: float,
        recompute_tokens_per_second: float | None = None,
    ) -> tuple[int, int]:
        """Opens a sequence on the pages that any tier has of the beginning of its prompt.

        Args:
            tenant: whose pages may be found, and whose share the new ones are in.
            tokens: the prompt's ids, 0 to 2**32 - 1, one or more.
            max_new_tokens: as for `Manager.open_sequence`.
            slots: as for `Manager.open_sequence`.
            window_slots: as for `Manager.open_sequence`.
            deadline_seconds: pages that have not come by then are computed instead.
            recompute_tokens_per_second: what the engine can compute; pages of a tier that would
                take longer are left where they are. None = loading always pays.

        Returns:
            (handle, tokens that the sequence has: whole pages, fewer than the prompt)

        Raises:
            InvalidArgument: no such tenant.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
            TierFull: the tenant's share has no room.
        """

    def open_sequence(
        self,
        prompt_tokens: SupportsIndex,
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
        deadline_seconds: float,
    ) -> int:
        """`Manager.open_sequence`, for which pages may leave the host pool."""

    def fork(
        self,
        seq: SupportsIndex,
        length: SupportsIndex,
        max_new_tokens: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
        deadline_seconds: float,
    ) -> int:
        """`Manager.fork`, for which pages may leave the host pool."""

    def resume(
        self,
        seq: SupportsIndex,
        *,
        slots: SupportsIndex,
        window_slots: SupportsIndex,
        deadline_seconds: float,
    ) -> int:
        """Makes a preempted sequence active again.

        Returns:
            Its length: what it was, or where tiers have lost pages, the tokens before these.

        Raises:
            HostPoolFull, DeviceArenaFull, TierFull: it rests as before.
            TierDown, DeadlinePassed: a tier that has its pages did not give them out yet.
        """

    def make_room_to_fork(
        self, length: SupportsIndex, max_new_tokens: SupportsIndex, *, deadline_seconds: float
    ) -> None:
        """Moves idle pages down for what `fork` will want, as far as the time allows.

        The fork may then have no time at all: it waits for nothing.
        """

    def bring_back(self, seq: SupportsIndex, *, deadline_seconds: float) -> Returning:
        """The first half of `resume`: the pages come to the host pool, and room for the others.

        It changes nothing of the sequence, and may run beside any other call.

        Raises:
            HostPoolFull, TierFull: it rests as before.
            TierDown, DeadlinePassed: a tier that has its pages did not give them out yet.
        """

    def finish_resume(
        self, returning: Returning, *, slots: SupportsIndex, window_slots: SupportsIndex
    ) -> int:
        """The second half of `resume`, which waits for nothing; the length, as there.

        Raises:
            HostPoolFull, DeviceArenaFull, TierFull: it rests as before; `returning` is still good.
            WrongState: it does not rest, or rests anew since it was brought back, or `returning`
                is another manager's.
        """

    def recover(self, deadline_seconds: float) -> tuple[int, int]:
        """Finds the pages of an earlier process in the tiers: (pages found, removed as useless)."""

    def make_room(self, num_pages: SupportsIndex, deadline_seconds: float) -> int:
        """Moves pages down until so many host pages are free; how many are.

        Raises:
            HostPoolFull: no page may move any more.
            DeadlinePassed: the time is over.
        """

    def flush(self, deadline_seconds: float) -> None:
        """Returns once every page that went down before is as durable as its tier makes it."""

    def drain(self, deadline_seconds: float) -> tuple[int, int]:
        """Moves every page down that may move, then flushes: (host pages freed, left in it)."""

    def measure(self, tier_seconds: float) -> list[tuple[str, int, int]]:
        """Speeds of the tiers that answer: name, latency in us, bytes a second.

        Args:
            tier_seconds: for each tier; removing what was written may take as long again.
        """

    def load_table(self) -> tuple[list[tuple[str, int, int]], int]:
        """The speeds in force, and their epoch; epoch 0 is that of an empty table.

        Each tier that is measured later, as `start` says, is another epoch.
        """

    def adopt_load_table(self, table: list[tuple[str, int, int]], epoch: SupportsIndex) -> None:
        """Puts speeds in force that all ranks agree on; WrongState unless the epoch is later."""

    def state(self) -> list[TierState]:
        """Every tier, the nearest first."""

    @property
    def num_kept(self) -> int:
        """Pages that were to leave the host pool and have stayed, because no tier took them."""

    def close(self) -> None:
        """Ends its threads and lets go of the tiers; later calls raise WrongState."""

@final
class Returning:
    """The pages of a resting sequence: in the host pool, until it is released or dropped."""

    @property
    def sequence(self) -> int:
        """The sequence that rests."""

    def release(self) -> None:
        """Lets the pages go where no sequence has them; releasing twice is legal."""

@final
class Resolution:
    """What one `resolve` did; misses, victims and evicted go together, in order."""

    slots: Final[list[int]]
    """Slot of every item of the call, in the call's order; -1 for -1."""
    hits: Final[list[int]]
    """Distinct items that had a slot, ascending."""
    misses: Final[list[int]]
    """Distinct items that had none, ascending."""
    victims: Final[list[int]]
    """The slot that each miss took, by `(stamp, slot)` ascending."""
    evicted: Final[list[int]]
    """The item that each victim held; -1 = the slot was free."""

class _SlotModel:
    def __new__(cls, num_slots: SupportsIndex) -> Self: ...
    num_slots: Final[int]
    def resolve(
        self, items: Sequence[int], stamp: SupportsIndex, protect_since: SupportsIndex
    ) -> Resolution:
        """Gives every item a slot.

        Hits keep their slot, whose stamp becomes the larger of its own and `stamp`. The i-th miss
        in ascending order takes the i-th victim: slots that hold no item of the call and whose
        stamp is below `protect_since`, by `(stamp, slot)`, free slots (stamp -1) first.

        Args:
            items: 0 to 2**31 - 1 each, in any order, repeats allowed; -1 = none.
            stamp: 0 to 2**31 - 1.
            protect_since: 0 to 2**31 - 1.

        Raises:
            InvalidArgument: a number is out of range, or the misses are more than the victims.
        """

    def release_from(self, first_item: SupportsIndex) -> None:
        """Frees every slot that holds `first_item` or a later item."""

    def slot_of(self, item: SupportsIndex) -> int:
        """Slot of an item; -1 = none."""

    def item_in(self, slot: SupportsIndex) -> int:
        """Item in a slot; -1 = free."""

    def stamp_of(self, slot: SupportsIndex) -> int:
        """Stamp of a slot; -1 = free."""

    def check_integrity(self) -> None:
        """Raises HisparseError if slots and table do not name each other."""

@final
class HotBufferModel(_SlotModel):
    """The exact LRU of one sequence's hot buffer; items are token positions."""

@final
class BlockWindowModel(_SlotModel):
    """The exact LRU of one sequence's block window; items are block ids."""

def core_version() -> str:
    """Version of the core."""

def time_page_ops(num_pages: SupportsIndex, num_operations: SupportsIndex) -> tuple[int, float]:
    """Times page operations (take, share, release) of the core in one thread.

    Returns:
        (operations done, at least `num_operations`; seconds)
    """
