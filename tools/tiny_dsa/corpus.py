"""The prepared corpus: token stream, held-out part, words, tokenizer, and batches of tasks."""

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tools.tiny_dsa.config import DEVICE
from tools.tiny_dsa.tasks import TaskSampler, Tokens

HELD_OUT_SHARE = 0.01  # of the (shuffled) documents, at the end of the stream

Batch = tuple[torch.Tensor, torch.Tensor]  # tokens [b, s] int32; is_answer [b, s] bool


@dataclass(frozen=True)
class Corpus:
    """What `prepare` wrote."""

    train: Tokens
    held_out: Tokens
    words: list[str]
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """Read a data folder; one with the held-out part alone serves evaluation."""
        words = json.loads((folder / "meta.json").read_text())["words"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        held_out = folder / "val.u16.xz"
        if held_out.exists():
            tokens = _read_tokens(held_out)
            return cls(tokens, tokens, words, tokenizer)
        tokens = _read_tokens(folder / "tokens.u16.xz")
        cut = int(len(tokens) * (1 - HELD_OUT_SHARE))
        return cls(tokens[:cut], tokens[cut:], words, tokenizer)

    def held_out_sampler(self, seed: int) -> TaskSampler:
        """Tasks in held-out text."""
        return TaskSampler(self.held_out, self.words, self.tokenizer, seed)

    def batches(self, num_tokens: int, size: int, seed: int, workers: int) -> Iterator[Batch]:
        """Endless training batches of `size` sequences of `num_tokens` + 1."""
        loader = DataLoader(
            _TrainingTasks(self, num_tokens + 1, size, seed),
            batch_size=None,
            num_workers=workers,
            pin_memory=DEVICE == "cuda",
            prefetch_factor=6 if workers else None,
        )
        return iter(loader)


class _TrainingTasks(IterableDataset[Batch]):
    def __init__(self, corpus: Corpus, num_tokens: int, size: int, seed: int) -> None:
        self._corpus, self._num_tokens, self._size, self._seed = corpus, num_tokens, size, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        seed = self._seed * 1000 + (worker.id if worker else 0)
        corpus = self._corpus
        sampler = TaskSampler(corpus.train, corpus.words, corpus.tokenizer, seed)
        while True:
            spans = [sampler.sample(self._num_tokens) for _ in range(self._size)]
            yield (
                torch.from_numpy(np.stack([span.tokens for span in spans]).astype(np.int32)),
                torch.from_numpy(np.stack([span.is_answer for span in spans])),
            )


def _read_tokens(path: Path) -> Tokens:
    with lzma.open(path) as stream:
        return np.frombuffer(stream.read(), dtype=np.uint16)
