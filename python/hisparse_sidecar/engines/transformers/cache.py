"""A transformers cache without tensors: which sequence of a session each row of a batch is."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NoReturn

import torch
from transformers import Cache
from typing_extensions import Unpack

from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.sequence_options import OpenOptions
from hisparse_sidecar.session import Session


class SidecarCache(Cache):
    """Row i of every batch continues `sequences[i]`; pass it as `cache` or `past_key_values`.

    Attributes:
        session: where keys and values are.
        sequences: handles, one for each row of the batch.
        lengths: tokens of each sequence.
    """

    def __init__(self, session: Session, sequences: Sequence[int], lengths: Sequence[int]) -> None:
        super().__init__(layers=[])
        if len(lengths) != len(sequences):
            raise InvalidArgument(f"{len(lengths)} lengths for {len(sequences)} sequences")
        self.session = session
        self.sequences = tuple(sequences)
        self.lengths = list(lengths)

    @classmethod
    def open(
        cls,
        session: Session,
        prompt_tokens: int,
        max_new_tokens: int,
        *,
        batch_size: int = 1,
        **options: Unpack[OpenOptions],
    ) -> "SidecarCache":
        """Opens one sequence for each row of a batch; all or none.

        Raises:
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        cache = cls(session, (), ())
        try:
            for _ in range(batch_size):
                sequence = session.open(prompt_tokens, max_new_tokens, **options)
                cache.sequences += (sequence,)
                cache.lengths.append(0)
        except BaseException:
            cache.close()
            raise
        return cache

    @classmethod
    def pack(cls, caches: Sequence["SidecarCache"]) -> "SidecarCache":
        """The rows of several caches of one session as one batch; lengths may differ.

        The sequences move: the packed cache owns them, and the caches that it came from are empty.
        """
        sessions = {id(cache.session) for cache in caches}
        if len(sessions) != 1:
            raise InvalidArgument(f"caches are of {len(sessions)} sessions, need 1")
        sequences = [sequence for cache in caches for sequence in cache.sequences]
        packed = cls(caches[0].session, sequences, [n for cache in caches for n in cache.lengths])
        for cache in caches:
            cache.sequences, cache.lengths = (), []
        return packed

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
        for row, sequence in enumerate(self.sequences):
            if self.lengths[row] > length:
                self.session.truncate(sequence, length)
                self.lengths[row] = length

    def close(self) -> None:
        """Closes the sequences; a second call does nothing."""
        sequences, self.sequences, self.lengths = self.sequences, (), []
        for sequence in sequences:
            self.session.close_sequence(sequence)

    def __enter__(self) -> "SidecarCache":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- what transformers asks a cache ---------------------------------------------------------

    def __repr__(self) -> str:
        return f"SidecarCache(sequences={self.sequences}, lengths={self.lengths})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the session bounds each sequence by what it was admitted for."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that a mask would cover, and where they start."""
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return len(self.sequences)

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens of every sequence."""
        if tokens_to_remove > 0:
            raise InvalidArgument(f"tokens_to_remove is {tokens_to_remove}, must be <= 0")
        for row, sequence in enumerate(self.sequences):
            length = max(self.lengths[row] + tokens_to_remove, 0)
            if length < self.lengths[row]:
                self.session.truncate(sequence, length)
                self.lengths[row] = length

    def reset(self) -> None:
        """Forgets every token; the sequences stay open."""
        self.truncate(0)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Refused: keys and values go through the session."""
        self._refuse("update")

    def update_indexer(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401
        """Refused: index keys go through the session."""
        self._refuse("update_indexer")

    def reorder_cache(self, beam_idx: torch.Tensor) -> NoReturn:
        """Refused: beam search is not served."""
        self._refuse("reorder_cache")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        """Refused: open one sequence for each row instead."""
        self._refuse("batch_repeat_interleave")

    def batch_select_indices(self, indices: torch.Tensor) -> NoReturn:
        """Refused: the rows of a batch stay."""
        self._refuse("batch_select_indices")

    def _refuse(self, what: str) -> NoReturn:
        rows = len(self.sequences)
        raise InvalidArgument(
            f"a SidecarCache ({rows} sequences, 0 tensors) does not serve {what}; "
            "is the model attached, and not in beam search?"
        )
