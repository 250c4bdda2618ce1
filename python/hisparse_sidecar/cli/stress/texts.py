"""The prompts: a few texts that many sequences share, and what each of them goes on with."""

import random
from bisect import bisect_right
from dataclasses import dataclass

from hisparse_sidecar.cli.stress.rows import mix

NUM_TEXTS = 48
MAX_TOKENS = 640
_FAMILY = 4  # texts that begin alike
_ZIPF = 1.1
_VOCABULARY = 32768
_FIRST_FAMILY_STREAM, _FIRST_FRESH_STREAM = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Text:
    """Endless text: from each start on, the tokens of a stream.

    Attributes:
        parts: (start, stream), ascending, the first start is 0.
    """

    parts: tuple[tuple[int, int], ...]

    def token(self, position: int) -> int:
        """The token at a position."""
        part = bisect_right(self.parts, position, key=lambda part: part[0]) - 1
        return mix(self.parts[part][1] * 1_000_003 + position) % _VOCABULARY

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` tokens from `start` on."""
        return [self.token(position) for position in range(start, start + count)]

    def branch(self, start: int, number: int) -> "Text":
        """The same up to `start`, then what nobody else has said; `number` is used once."""
        kept = tuple(part for part in self.parts if part[0] < start)
        return Text((*kept, (start, _FIRST_FRESH_STREAM + number)))


def text(number: int) -> Text:
    """One of the `NUM_TEXTS` prompts; those of a family begin alike, some end within a page."""
    family = number // _FAMILY
    shared = 64 * (1 + family % 4) + 11 * (number % 2)
    return Text(((0, _FIRST_FAMILY_STREAM + family), (shared, number)))


def prompt_tokens(number: int) -> int:
    """Length of a prompt, 80 to 500."""
    return 80 + mix(number) % 421


def draw_text(draws: random.Random) -> int:
    """A number of a text, by Zipf: the first ones come again and again."""
    weights = [1 / (rank + 1) ** _ZIPF for rank in range(NUM_TEXTS)]
    return draws.choices(range(NUM_TEXTS), weights)[0]
