"""A prompt of an exact number of tokens: real text with facts planted in it, and a question."""

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Phrasings that the small model was trained on; each statement begins and ends a line.
_PHRASINGS = (
    ("The secret code of {key} is ", "What is the secret code of {key}?"),
    ("The magic number for {key} is ", "What is the magic number for {key}?"),
    ("The password of {key} is ", "Which password does {key} have?"),
    ("Please remember that {key} equals ", "What does {key} equal?"),
)
_KEYS = (
    "harbour",
    "silver lantern",
    "orchard",
    "copper kettle",
    "meadow",
    "winter garden",
    "compass",
    "marble",
    "river stone",
    "violin",
    "anchor",
    "glass tower",
)
_NUM_DIGITS = 5
_NEAR_TOKENS = 64  # a line break this far away is still worth going to


@dataclass(frozen=True)
class Needle:
    """One planted fact.

    Attributes:
        key: what the fact is about.
        digits: what is to be found, one token each.
        statement: the fact up to its digits.
        question: what asks for it.
        position: token position of the statement in the prompt.
    """

    key: str
    digits: str
    statement: str
    question: str
    position: int

    @property
    def ask(self) -> str:
        """The end of a prompt that asks for it: its digits are what comes next."""
        return f"\nQuestion: {self.question}\nAnswer: {self.statement}"


@dataclass(frozen=True)
class Prompt:
    """Token ids that end where the answer's digits are due.

    Attributes:
        token_ids: the prompt: the text with its facts, then a question.
        needles: facts in the order of their positions.
        asked: the one that the question at the end asks for.
        questions: token ids that ask for each needle.
    """

    token_ids: tuple[int, ...]
    needles: tuple[Needle, ...]
    asked: Needle
    questions: tuple[tuple[int, ...], ...]

    @property
    def text_tokens(self) -> int:
        """Tokens before the question."""
        return len(self.token_ids) - len(self.questions[self.needles.index(self.asked)])


def build_prompt(
    tokenizer: "Tokenizer", text: str, num_tokens: int, *, num_needles: int = 6, seed: int = 0
) -> Prompt:
    """Plant facts in a text and ask for one of them.

    The facts lie at even distances, each after a line break where one is near; the one asked for
    is the last of the first half.

    Args:
        tokenizer: the model's; writes each digit as one token.
        text: real text; as many of its first tokens are used as the prompt has room for.
        num_tokens: exact length of the prompt.
        num_needles: facts to plant, each with a key of its own.
        seed: chooses keys, phrasings and digits.

    Raises:
        ValueError: the text has too few tokens, the prompt is too short for its facts, or there
            are fewer keys than facts.
    """
    needles = _draw_needles(num_needles, seed)
    asked = (num_needles - 1) // 2
    questions = [_encode(tokenizer, needle.ask) for needle in needles]
    planted = [_encode(tokenizer, f"\n{n.statement}{n.digits}.\n") for n in needles]
    room = num_tokens - len(questions[asked]) - sum(map(len, planted))
    body = _cut_text(tokenizer, text, room, num_tokens)
    at = _places(body, _line_starts(tokenizer, body), num_needles)
    token_ids: list[int] = []
    for number, (start, end) in enumerate(zip([0, *at], [*at, len(body)], strict=True)):
        token_ids += body[start:end]
        if number < num_needles:
            needles[number] = replace(needles[number], position=len(token_ids))
            token_ids += planted[number]
    return Prompt(
        token_ids=(*token_ids, *questions[asked]),
        needles=tuple(needles),
        asked=needles[asked],
        questions=tuple(map(tuple, questions)),
    )


def read_text(path: Path) -> str:
    """A text file, or the .txt files of a folder in the order of their names.

    Raises:
        FileNotFoundError: the folder holds none.
    """
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"no .txt file in {path}")
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def _draw_needles(num_needles: int, seed: int) -> list[Needle]:
    if not 1 <= num_needles <= len(_KEYS):
        raise ValueError(f"{num_needles} needles asked for, 1 to {len(_KEYS)} possible")
    draw = random.Random(seed)
    keys = draw.sample(_KEYS, num_needles)
    return [_draw_needle(key, draw) for key in keys]


def _draw_needle(key: str, draw: random.Random) -> Needle:
    statement, question = draw.choice(_PHRASINGS)
    digits = "".join(draw.choices("0123456789", k=_NUM_DIGITS))
    return Needle(key, digits, statement.format(key=key), question.format(key=key), -1)


def _encode(tokenizer: "Tokenizer", text: str) -> list[int]:
    token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return token_ids


def _cut_text(tokenizer: "Tokenizer", text: str, room: int, num_tokens: int) -> list[int]:
    if room < num_tokens // 4:
        used = num_tokens - room
        raise ValueError(
            f"needles and question take {used} of {num_tokens} tokens, at most 3/4 may"
        )
    body = _encode(tokenizer, text)
    if len(body) < room:
        raise ValueError(f"the text has {len(body)} tokens, {room} needed")
    return body[:room]


def _line_starts(tokenizer: "Tokenizer", token_ids: Sequence[int]) -> list[int]:
    breaks = {token for token in set(token_ids) if "\n" in tokenizer.decode([token])}
    return [place + 1 for place, token in enumerate(token_ids) if token in breaks]


def _places(body: Sequence[int], line_starts: Sequence[int], num_needles: int) -> list[int]:
    """Ascending token positions of the text at which to plant, at even distances."""
    return [
        _next_line(line_starts, len(body) * (2 * number + 1) // (2 * num_needles))
        for number in range(num_needles)
    ]


def _next_line(line_starts: Sequence[int], place: int) -> int:
    found = bisect_left(line_starts, place)
    near = found < len(line_starts) and line_starts[found] - place < _NEAR_TOKENS
    return line_starts[found] if near else place
