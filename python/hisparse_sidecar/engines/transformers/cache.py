"""A transformers cache without tensors: which sequence of a session each row of a batch is."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from transformers import Cache

from hisparse_sidecar.engines.transformers.sequence_batch import SequenceBatch
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.sidecar import Session


class SidecarCache(SequenceBatch, Cache):
    """A batch of sequences as `generate` wants it; pass it as `cache` or `past_key_values`."""

    def __init__(
        self,
        session: Session,
        sequences: Sequence[int],
        lengths: Sequence[int],
        *,
        tells_tokens: bool = False,
    ) -> None:
        SequenceBatch.__init__(self, session, sequences, lengths, tells_tokens=tells_tokens)
        Cache.__init__(self, layers=[])

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

    @property
    def is_linear(self) -> list[bool]:
        """Not all layers: `generate` asks whether to cut its input to what the cache has not."""
        return [False]

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last `-tokens_to_remove` tokens of every sequence."""
        if tokens_to_remove > 0:
            raise InvalidArgument(f"tokens_to_remove is {tokens_to_remove}, must be <= 0")
        for row, length in enumerate(self.lengths):
            self._cut(row, length + tokens_to_remove)

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
