"""A call on the shared manager, as ranks compare it: what is called, and with which integers."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from hashlib import blake2b
from operator import index
from typing import SupportsIndex

from hisparse_sidecar.errors import InvalidArgument

_SHOWN_ARGUMENTS = 6
_INTEGER_BYTES = 8


class CallKind(IntEnum):
    """What is called; the comment names the arguments, and the integers that come out.

    An active sequence comes out as: handle, length, admitted tokens, ranges, tokens folded by each
    anchor, pages. A deadline is in us; -1 = none.
    """

    OPEN = 1  # prompt tokens, new tokens, slots, window slots, deadline -> sequence
    FORK = 2  # sequence, length, new tokens, slots, window slots, deadline -> sequence
    APPEND = (
        3  # digest of the ids, (sequence, rows) ... -> (start, number of last pages, these) ...
    )
    TRUNCATE = 4  # sequence, length
    CLOSE = 5  # sequence
    CHECK = 6
    PROMPT = 7  # new tokens, slots, window slots, deadline, digest -> sequence
    PREEMPT = 8  # sequence
    RESUME = 9  # sequence, slots, window slots, deadline -> sequence
    ADD_TENANT = 10  # quota (-1 = none), digest of the name
    TENANT_USAGE = 11  # digest of the name -> pages, quota (-1 = none)
    EVICT = 12  # pages -> pages
    SET_QUOTA = 13  # as ADD_TENANT
    FLUSH = 14  # deadline
    DRAIN = 15  # deadline -> pages that are free by it, pages that stay


_GIVES_BACK = {CallKind.TRUNCATE, CallKind.CLOSE}
_MOVES_PAGES = {
    CallKind.FORK,
    CallKind.PROMPT,
    CallKind.PREEMPT,
    CallKind.RESUME,
    CallKind.EVICT,
    CallKind.FLUSH,
    CallKind.DRAIN,
}
_MEETS = {CallKind.APPEND, CallKind.CHECK}
_DEADLINE_AT = {
    CallKind.OPEN: 4,
    CallKind.FORK: 5,
    CallKind.PROMPT: 3,
    CallKind.RESUME: 3,
    CallKind.FLUSH: 0,
    CallKind.DRAIN: 0,
}


@dataclass(frozen=True)
class Given:
    """What a call was given that is no integer; rank 0's counts.

    Attributes:
        tenant: name.
        token_ids: of a prompt or of the rows of a step; None = not told.
        tokens_per_second: what the engine can compute; None = not known.
    """

    tenant: str = ""
    token_ids: Sequence[int] | None = None
    tokens_per_second: float | None = None

    def digest(self) -> list[int]:
        """Two integers that differ where the tenant or the ids do.

        Raises:
            InvalidArgument: an id is not 0 to 2**32 - 1.
        """
        ids = b"" if self.token_ids is None else _packed_ids(self.token_ids)
        return digest(self.tenant.encode(), ids)


_NOTHING = Given()


@dataclass(frozen=True)
class Call:
    """A call and its arguments, int64 each in native order.

    Attributes:
        given: what the arguments have only a digest of.
    """

    kind: CallKind
    packed: bytes = b""
    given: Given = field(default=_NOTHING, compare=False)

    @classmethod
    def of(
        cls, kind: CallKind, arguments: Iterable[SupportsIndex], given: Given = _NOTHING
    ) -> "Call":
        """Raises InvalidArgument where an argument is no int64."""
        return cls(kind, pack(kind.name.lower(), arguments), given)

    @cached_property
    def arguments(self) -> list[int]:
        """The arguments as integers."""
        return integers(self.packed)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Of an append: sequences, and new rows of each."""
        numbers = self.arguments
        return list(zip(numbers[1::2], numbers[2::2], strict=True))

    @property
    def gives_back(self) -> bool:
        """Whether it only gives up what a sequence holds."""
        return self.kind in _GIVES_BACK

    @property
    def moves_pages(self) -> bool:
        """Whether pages may be copied, written or sent down at once."""
        return self.kind in _MOVES_PAGES

    @property
    def meets(self) -> bool:
        """Whether all ranks meet in it, even if none is in a step."""
        return self.kind in _MEETS

    @property
    def deadline_seconds(self) -> float:
        """How long rank 0 may take to make it, once the others have come."""
        at = _DEADLINE_AT.get(self.kind)
        return 0.0 if at is None else seconds(self.arguments[at])

    def __str__(self) -> str:
        shown = [str(one) for one in self.arguments[:_SHOWN_ARGUMENTS]]
        total = len(self.packed) // _INTEGER_BYTES
        if total > _SHOWN_ARGUMENTS:
            shown.append(f"... {total} arguments")
        return f"{self.kind.name.lower()}({', '.join(shown)})"


def pack(what: str, numbers: Iterable[SupportsIndex]) -> bytes:
    """Integers as int64; raises InvalidArgument where one is none."""
    try:
        return array("q", [index(one) for one in numbers]).tobytes()
    except OverflowError:
        raise InvalidArgument(f"an integer of {what} needs over 63 bits") from None


def _packed_ids(token_ids: Sequence[int]) -> bytes:
    try:
        return array("I", token_ids).tobytes()
    except OverflowError:
        wrong = next(one for one in token_ids if not 0 <= one < 1 << 32)
        raise InvalidArgument(f"token id {wrong}, must be 0 to {(1 << 32) - 1}") from None


def micros(deadline_seconds: float | None) -> int:
    """A deadline as an argument."""
    return -1 if deadline_seconds is None else round(deadline_seconds * 1e6)


def seconds(deadline_micros: int) -> float:
    """The inverse of `micros`; a call without a deadline waits for nothing."""
    return max(0, deadline_micros) / 1e6


def digest(*parts: bytes) -> list[int]:
    """Two integers that differ where a part differs."""
    made = blake2b(digest_size=2 * _INTEGER_BYTES)
    for part in parts:
        made.update(len(part).to_bytes(_INTEGER_BYTES, "little") + part)
    return integers(made.digest())


def integers(packed: bytes) -> list[int]:
    """The int64 that some bytes hold, in native order."""
    found = array("q")
    found.frombytes(packed)
    return found.tolist()
