"""What ranks send each other, byte by byte: arrivals and farewells to rank 0, decisions from it.

All ranks run on one host: integers are in native order.
"""

import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from hisparse_sidecar import errors
from hisparse_sidecar._core import SequenceRanges, Stats
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.ranks.calls import Call, CallKind, integers

_ARRIVAL, _FAREWELL = 1, 2
_SAID = struct.Struct("=BBQQ")  # arrival or farewell, kind of call, number, steps
# made or refused, kind of call, number, steps, bytes of the arguments and of the replaced pages
_DECIDED = struct.Struct("=BBQQII")
_MADE, _REFUSED = 1, 2


def _number_names(record: type[Stats] | type[SequenceRanges]) -> tuple[str, ...]:
    names = [name for name in dir(record) if not name.startswith("_")]
    return tuple(sorted(name for name in names if not callable(getattr(record, name))))


_STATS, _RANGES = _number_names(Stats), _number_names(SequenceRanges)
_stats_numbers, _range_numbers = attrgetter(*_STATS), attrgetter(*_RANGES)
_STATS_BYTES = 8 * len(_STATS)
NUM_RANGES = len(_RANGES)


def range_numbers(ranges: SequenceRanges) -> list[int]:
    """The numbers of a sequence's ranges, in the order of their names."""
    return list(_range_numbers(ranges))


def ranges_of(numbers: Sequence[int]) -> SequenceRanges:
    """The inverse of `range_numbers`."""
    return SequenceRanges.from_dict(dict(zip(_RANGES, numbers, strict=True)))


def stats_of(packed: bytes) -> Stats:
    """The stats that a decision brought."""
    return Stats.from_dict(dict(zip(_STATS, integers(packed), strict=True)))


@dataclass(frozen=True)
class Arrival:
    """A rank has come to a call and waits for its decision.

    Attributes:
        number: of the decision that it waits for.
        steps: steps that have ended on this rank.
        call: what it calls.
    """

    number: int
    steps: int
    call: Call

    def encoded(self) -> bytes:
        """The bytes of the arrival."""
        head = _SAID.pack(_ARRIVAL, self.call.kind, self.number, self.steps)
        return head + self.call.packed


@dataclass(frozen=True)
class Farewell:
    """A rank leaves, and why; `diverged` if it made other calls than rank 0."""

    diverged: bool
    reason: str

    def encoded(self) -> bytes:
        """The bytes of the farewell."""
        return _SAID.pack(_FAREWELL, int(self.diverged), 0, 0) + self.reason.encode()


def said(body: bytes) -> Arrival | Farewell:
    """What a follower sent."""
    what, kind, number, steps = _SAID.unpack_from(body)
    rest = body[_SAID.size :]
    if what == _FAREWELL:
        return Farewell(bool(kind), rest.decode())
    return Arrival(number, steps, Call(CallKind(kind), rest))


@dataclass(frozen=True)
class Decision:
    """What rank 0 decided.

    Attributes:
        number: counts decisions from 1.
        steps: steps that had ended on rank 0.
        call: what it called.
        outcome: the integers that the call came to, or what it raised on every rank.
        stats: the manager's, afterwards, packed.
        replaced: pages that gave way to others of the same bytes before the call, by publishing:
            sequence, index, page, and so on.
    """

    number: int
    steps: int
    call: Call
    outcome: Sequence[int] | HisparseError
    stats: bytes
    replaced: Sequence[int] = ()

    def encoded(self) -> bytes:
        """The bytes of the decision."""
        how = _REFUSED if isinstance(self.outcome, HisparseError) else _MADE
        replaced = array("q", self.replaced).tobytes()
        numbers = self.number, self.steps, len(self.call.packed), len(replaced)
        head = _DECIDED.pack(how, self.call.kind, *numbers)
        parts = head, self.call.packed, replaced, self.stats, _packed_outcome(self.outcome)
        return b"".join(parts)


def decided(body: bytes) -> Decision:
    """The inverse of `Decision.encoded`."""
    how, kind, number, steps, call_bytes, replaced_bytes = _DECIDED.unpack_from(body)
    replaced_at = _DECIDED.size + call_bytes
    stats_at = replaced_at + replaced_bytes
    end = stats_at + _STATS_BYTES
    call = Call(CallKind(kind), body[_DECIDED.size : replaced_at])
    outcome = _error(body[end:]) if how == _REFUSED else integers(body[end:])
    replaced = integers(body[replaced_at:stats_at])
    return Decision(number, steps, call, outcome, body[stats_at:end], replaced)


def packed_stats(stats: Stats) -> bytes:
    """The numbers of `stats`, in the order of their names."""
    return array("q", _stats_numbers(stats)).tobytes()


def _packed_outcome(outcome: Sequence[int] | HisparseError) -> bytes:
    if not isinstance(outcome, HisparseError):
        return array("q", outcome).tobytes()
    name = type(outcome).__name__
    if name not in errors.__all__:
        name = HisparseError.__name__
    return f"{name} {outcome}".encode()


def _error(packed: bytes) -> HisparseError:
    name, _, message = packed.decode().partition(" ")
    found: HisparseError = getattr(errors, name)(message)
    return found
