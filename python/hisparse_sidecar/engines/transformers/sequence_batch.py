"""Sequences that get their tokens together: opened, packed, forked, at rest, closed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from typing_extensions import Self, Unpack

from hisparse_sidecar.config.sequence import OpenOptions
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.sidecar import Session


class SequenceBatch:
    """Row i of every forward continues `sequences[i]`.

    Attributes:
        session: where keys and values are.
        sequences: handles, one for each row of the batch.
        lengths: tokens of each sequence.
        cached_tokens: tokens that each sequence began with: they need no prefill.
        tells_tokens: forwards tell the session their token ids, so that other prompts find the
            pages; each then copies its ids to the host and waits for them.
    """

    def __init__(
        self,
        session: Session,
        sequences: Sequence[int],
        lengths: Sequence[int],
        *,
        tells_tokens: bool = False,
    ) -> None:
        if len(lengths) != len(sequences):
            raise InvalidArgument(f"{len(lengths)} lengths for {len(sequences)} sequences")
        self.session = session
        self.sequences = tuple(sequences)
        self.lengths = list(lengths)
        self.cached_tokens = tuple(lengths)
        self.tells_tokens = tells_tokens
        self._resting: set[int] = set()

    @classmethod
    def open(
        cls,
        session: Session,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        batch_size: int = 1,
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Opens one sequence for each row of a batch; all or none.

        Raises:
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        batch = cls(session, (), ())
        with batch._whole():
            for _ in range(batch_size):
                batch._add(session.open(prompt_tokens, max_new_tokens, **options), 0)
        return batch

    @classmethod
    def open_prompt(
        cls,
        session: Session,
        prompt_ids: torch.Tensor | Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> Self:
        """Opens one sequence for each prompt, on what any tier has of its beginning; all or none.

        `generate` cuts from its input what the cache has already, and takes one length for a
        batch: rows that have more than the row with the fewest cached tokens forget the rest. Pages
        are found whatever the selection was that their tokens were prefilled with.

        Args:
            session: where to open.
            prompt_ids: [batch, tokens] integers, or the ids of one prompt.
            max_new_tokens: most tokens that decoding will append to each.
            tenant: whose pages may be found; see `Sidecar.open_prompt`.
            options: see `OpenOptions`.

        Raises:
            InvalidArgument: another shape or dtype, no token, or no such tenant.
            TierFull, HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        batch = cls(session, (), (), tells_tokens=True)
        with batch._whole():
            for ids in _id_rows(prompt_ids):
                opened = session.open_prompt(ids, max_new_tokens, tenant=tenant, **options)
                batch._add(opened.sequence, opened.cached_tokens)
            batch.truncate(min(batch.lengths))
        batch.cached_tokens = tuple(batch.lengths)
        return batch

    @classmethod
    def pack(cls, batches: Sequence["SequenceBatch"]) -> Self:
        """The rows of several batches of one session as one batch; lengths may differ.

        The sequences move: the packed cache owns them, and the batches that it came from are empty.
        It tells token ids if any of them does.
        """
        sessions = {id(batch.session) for batch in batches}
        if len(sessions) != 1:
            raise InvalidArgument(f"batches are of {len(sessions)} sessions, need 1")
        packed = cls(batches[0].session, (), ())
        for batch in batches:
            packed.sequences += batch.sequences
            packed.lengths += batch.lengths
            packed.cached_tokens += batch.cached_tokens
            packed.tells_tokens |= batch.tells_tokens
            packed._resting |= batch._resting
            batch._forget()
        return packed

    def fork(self, length: int, max_new_tokens: int) -> Self:
        """The same rows once more, each with the first `length` tokens of its sequence.

        Raises:
            InvalidArgument: a sequence is shorter.
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        forked = type(self)(self.session, (), (), tells_tokens=self.tells_tokens)
        with forked._whole():
            for sequence in self.sequences:
                forked._add(self.session.fork(sequence, length, max_new_tokens), length)
        return forked

    def preempt(self) -> None:
        """Lets every sequence rest until `resume`; a call that failed may be made again."""
        for sequence in self.sequences:
            if sequence not in self._resting:
                self.session.preempt(sequence)
                self._resting.add(sequence)

    def resume(self) -> int:
        """Makes the sequences ready again; all or none.

        Returns:
            How many tokens of each sequence's end are lost, and to be given again: what the tiers
            have lost of any, so that the rows of a batch still belong together.

        Raises:
            HostPoolFull, DeviceArenaFull, TierFull: no room yet; all rest as before.
            TierDown, DeadlinePassed: a tier did not give out its pages; all rest as before.
        """
        back: dict[int, int] = {}
        try:
            for sequence in self._resting:
                back[sequence] = self.session.resume(sequence)
        except BaseException:
            for sequence in back:
                self.session.preempt(sequence)
            raise
        self._resting.clear()
        before, pairs = self.lengths, zip(self.sequences, self.lengths, strict=True)
        self.lengths = [back.get(sequence, length) for sequence, length in pairs]
        lost = max((was - now for was, now in zip(before, self.lengths, strict=True)), default=0)
        for row, length in enumerate(before):
            self._cut(row, length - lost)
        return lost

    def step_rows(self, num_rows: int) -> list[tuple[int, int]]:
        """What `Session.begin_step` takes when every sequence gets `num_rows` new tokens."""
        return [(sequence, num_rows) for sequence in self.sequences]

    def next_positions(self, num_rows: int, device: torch.device) -> torch.Tensor:
        """[batch, num_rows] int64, token positions of the next rows."""
        starts = torch.tensor(self.lengths, dtype=torch.int64, device=device)
        return starts[:, None] + torch.arange(num_rows, device=device)

    def advance(self, num_rows: int) -> None:
        """Counts the rows of a committed step."""
        self.lengths = [length + num_rows for length in self.lengths]

    def truncate(self, length: int) -> None:
        """Forgets every token from position `length` on, in every sequence that is longer."""
        for row in range(len(self.sequences)):
            self._cut(row, length)

    def close(self) -> None:
        """Closes the sequences; a second call does nothing."""
        sequences = self.sequences
        self._forget()
        for sequence in sequences:
            self.session.close_sequence(sequence)

    def _add(self, sequence: int, length: int) -> None:
        self.sequences += (sequence,)
        self.lengths.append(length)
        self.cached_tokens += (length,)

    def _cut(self, row: int, length: int) -> None:
        if self.lengths[row] > max(length, 0):
            self.session.truncate(self.sequences[row], max(length, 0))
            self.lengths[row] = max(length, 0)

    def _forget(self) -> None:
        self.sequences, self.lengths, self.cached_tokens = (), [], ()
        self._resting = set()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Closes the batch if the block that fills it raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _id_rows(prompt_ids: torch.Tensor | Sequence[int]) -> list[list[int]]:
    ids = prompt_ids if isinstance(prompt_ids, torch.Tensor) else torch.tensor([list(prompt_ids)])
    if ids.dim() != 2 or not ids.numel() or ids.is_floating_point():
        found = f"{tuple(ids.shape)} {ids.dtype}"
        raise InvalidArgument(f"prompt_ids are {found}, need [batch, tokens] integers, >= 1 each")
    rows: list[list[int]] = ids.tolist()
    return rows
