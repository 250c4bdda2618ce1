"""Text of unpacked packages -> tokenizer, token stream and needle words (no torch).

python -m tools.tiny_dsa.prepare WORK DATA: WORK/x/<package>/ holds unpacked Debian packages,
WORK/w/<name>/ unpacked wheels, as `documents.SOURCES` names them.
"""

import argparse
import collections
import json
import lzma
import random
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.tiny_dsa.documents import collect

END_OF_TEXT = "<|endoftext|>"  # id 0, ends each document
NUM_NEEDLE_WORDS = 4300

# words, then single digits, then runs of signs, line breaks and spaces
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def prepare(work: Path, data: Path) -> None:
    """Write tokenizer.json, meta.json and tokens.u16.xz to the folder `data`."""
    rng = random.Random(0)
    documents, sizes = collect(work, rng)
    total = sum(sizes.values())
    print(json.dumps(sizes), f"total {total / 1e6:.1f} MB, {len(documents)} documents")
    data.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(documents[::3])
    tokenizer.save(str(data / "tokenizer.json"))
    tokens = encode(tokenizer, documents)
    words = needle_words(documents[::10], rng)
    meta = {"words": words, "stats": sizes, "tokens": int(tokens.size)}
    (data / "meta.json").write_text(json.dumps(meta))
    with lzma.open(data / "tokens.u16.xz", "wb", preset=3) as stream:
        stream.write(tokens.tobytes())
    print(f"{tokens.size} tokens, {total / tokens.size:.2f} characters each")


def train_tokenizer(documents: list[str], vocab_size: int = 4096) -> Tokenizer:
    """Byte-level BPE without merges across the splits, so that each digit stays one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> NDArray[np.uint16]:
    """[num_tokens] uint16: all documents, each ended by id 0."""
    parts = [
        np.array([*encoding.ids, 0], dtype=np.uint16)
        for start in range(0, len(documents), 512)
        for encoding in tokenizer.encode_batch(documents[start : start + 512])
    ]
    return np.concatenate(parts)


def needle_words(documents: list[str], rng: random.Random) -> list[str]:
    """Frequent plain words, shuffled by `rng`; the last 300 are kept for tests."""
    found = (word for text in documents for word in re.findall(r"(?<= )[a-z]{4,10}(?= )", text))
    words = sorted(word for word, _ in collections.Counter(found).most_common(NUM_NEEDLE_WORDS))
    rng.shuffle(words)
    return words


def main() -> None:
    """Read the two folders from the command line."""
    parser = argparse.ArgumentParser(description=prepare.__doc__)
    parser.add_argument("work", type=Path, help="folder of unpacked packages and wheels")
    parser.add_argument("data", type=Path, help="folder to write")
    arguments = parser.parse_args()
    prepare(arguments.work, arguments.data)


if __name__ == "__main__":
    main()
