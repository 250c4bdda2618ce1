"""What every rank knows of the open sequences: the sum of the decisions so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.errors import HisparseError, StaleHandle, UnknownSequence, WrongState
from hisparse_sidecar.ranks.calls import Call, CallKind
from hisparse_sidecar.ranks.records import NUM_RANGES, ranges_of
from hisparse_sidecar.requirements import require

_ENTRY_BITS = 32
_SHOW_A_SEQUENCE = {CallKind.OPEN, CallKind.FORK, CallKind.PROMPT, CallKind.RESUME}


@dataclass
class MirroredSequence:
    """One open sequence.

    Attributes:
        length: tokens appended and not truncated.
        admitted: tokens that it may grow to.
        pages: host page of each 64 tokens; replaced, never changed.
        ranges: where its device state lies.
        folded: for each anchor, tokens in its pooled keys.
        rests: whether it was preempted: its ranges are another's.
        offered: full pages that were offered to later prompts.
    """

    length: int
    admitted: int
    pages: list[int]
    ranges: SequenceRanges
    folded: list[int]
    rests: bool = False
    offered: int = 0

    def cut(self, length: int) -> None:
        """Forgets tokens from `length` on."""
        self.length = length
        self.pages = self.pages[: -(-length // PAGE_TOKENS)]
        self.folded = [min(folded, length) for folded in self.folded]
        self.offered = min(self.offered, length // PAGE_TOKENS)


class Mirror:
    """The open sequences by handle.

    Attributes:
        num_anchors: anchors of the model.
        block_tokens: tokens of one block.
    """

    def __init__(self, num_anchors: int, block_tokens: int) -> None:
        self.num_anchors, self.block_tokens = num_anchors, block_tokens
        self._open: dict[int, MirroredSequence] = {}
        self._generations: dict[int, int] = {}  # of each entry, the last one given out

    def __getitem__(self, handle: int) -> MirroredSequence:
        """The sequence; raises UnknownSequence or StaleHandle as the core does."""
        found = self._open.get(handle)
        if found is not None:
            return found
        entry, generation = _halves(handle)
        last = self._generations.get(entry, -1)
        if generation > last:
            known = f"{len(self._generations)} entries exist"
            raise UnknownSequence(f"unknown sequence {handle:#x}: entry {entry}, {known}")
        raise StaleHandle(
            f"stale sequence handle {entry}: found generation {generation}, last was {last}"
        )

    def apply(self, call: Call, outcome: Sequence[int]) -> None:
        """Follows a call that was made, if no append; `CallKind` says what the integers are."""
        kind, arguments = call.kind, call.arguments
        if kind in _SHOW_A_SEQUENCE:
            self._show(outcome)
        elif kind == CallKind.TRUNCATE:
            self[arguments[0]].cut(arguments[1])
        elif kind == CallKind.CLOSE:
            del self._open[arguments[0]]
        elif kind == CallKind.PREEMPT:
            self._open[arguments[0]].rests = True

    def replace(self, changes: Sequence[int]) -> None:
        """Follows pages that gave way to others: sequence, index, page, and so on."""
        numbers = iter(changes)
        for handle, index, page in zip(numbers, numbers, numbers, strict=True):
            pages = self._open[handle].pages
            self._open[handle].pages = [*pages[:index], page, *pages[index + 1 :]]

    def append(self, call: Call, outcome: Sequence[int]) -> list[int]:
        """Follows an append; returns where the new rows begin, one for each sequence."""
        numbers, starts = iter(outcome), []
        for handle, count in call.rows:
            start, num_changed = next(numbers), next(numbers)
            starts.append(start)
            sequence = self._open[handle]
            sequence.length = start + count
            if num_changed:
                kept = -(-sequence.length // PAGE_TOKENS) - num_changed
                sequence.pages = [*sequence.pages[:kept], *islice(numbers, num_changed)]
        return starts

    def active(self, handle: int) -> MirroredSequence:
        """The sequence; raises WrongState where it rests, as the core does."""
        sequence = self[handle]
        if sequence.rests:
            raise WrongState("preemptions of the sequence: found 1, needed 0")
        return sequence

    def has_room(self, handle: int, num_tokens: int) -> bool:
        """Whether the sequence is open and may grow by so many tokens."""
        sequence = self._open.get(handle)
        if sequence is None or sequence.rests:
            return False
        return 1 <= num_tokens <= sequence.admitted - sequence.length

    def advance_pooled(self, handle: int, anchor: int, num_tokens: int) -> tuple[int, int, int]:
        """See `Manager.advance_pooled`."""
        sequence = self[handle]
        before, length = self._folded(sequence, anchor), sequence.length
        message = f"tokens folded by an anchor: found {before} + {num_tokens}, needed 1 to {length}"
        require(1 <= num_tokens <= length - before, message)
        sequence.folded[anchor] = before + num_tokens
        first, after = before // self.block_tokens, before + num_tokens
        return first, after // self.block_tokens - first, after % self.block_tokens

    def pooled_state(self, handle: int, anchor: int) -> tuple[int, int]:
        """See `Manager.pooled_state`."""
        return divmod(self._folded(self[handle], anchor), self.block_tokens)

    def check_integrity(self) -> None:
        """Raises HisparseError that names the first invariant found broken."""
        for handle, sequence in self._open.items():
            found, needed = len(sequence.pages), -(-sequence.length // PAGE_TOKENS)
            if found != needed:
                raise HisparseError(f"sequence {handle}: {found} pages found, needed {needed}")
            if len(set(sequence.pages)) != found:
                distinct = len(set(sequence.pages))
                raise HisparseError(f"sequence {handle}: {found} pages, {distinct} distinct")
            if max(sequence.folded, default=0) > sequence.length:
                most = max(sequence.folded)
                raise HisparseError(f"sequence {handle}: {most} of {sequence.length} tokens folded")

    def _show(self, outcome: Sequence[int]) -> None:
        handle, length, admitted, *rest = outcome
        entry, generation = _halves(handle)
        self._generations[entry] = generation
        ranges, rest = ranges_of(rest[:NUM_RANGES]), rest[NUM_RANGES:]
        folded, pages = rest[: self.num_anchors], rest[self.num_anchors :]
        self._open[handle] = MirroredSequence(length, admitted, pages, ranges, folded)

    def _folded(self, sequence: MirroredSequence, anchor: int) -> int:
        last = self.num_anchors - 1
        require(0 <= anchor <= last, f"anchor: found {anchor}, needed 0 to {last}")
        return sequence.folded[anchor]


def _halves(handle: int) -> tuple[int, int]:
    """Entry and generation of a handle."""
    return handle & (1 << _ENTRY_BITS) - 1, handle >> _ENTRY_BITS
