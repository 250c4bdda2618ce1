"""Synthetic retrieval tasks inside real text: planted facts, tables and repeated spans."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

NUM_TEST_WORDS = 300  # at the end of the word list: names that training never uses
TASK_SHARES = (0.30, 0.30, 0.20, 0.08, 0.12)  # text, asked at the end, interleaved, table, copy
TEMPLATES = (
    ("\nThe secret code of {k} is ", "\nQuestion: What is the secret code of {k}?\nAnswer:"),
    ("\nThe magic number for {k} is ", "\nQuestion: What is the magic number for {k}?\nAnswer:"),
    ("\nThe password of {k} is ", "\nQuestion: Which password does {k} have?\nAnswer:"),
    ("\nPlease remember that {k} equals ", "\nQuestion: What does {k} equal?\nAnswer:"),
)

Tokens = NDArray[np.uint16]


class Span(NamedTuple):
    """A run of tokens and which of them are answers."""

    tokens: Tokens  # [n] uint16
    is_answer: NDArray[np.bool_]  # [n] bool


class Insert(NamedTuple):
    """A span and where in the text it goes, as a fraction of the text."""

    depth: float
    span: Span


class Fact(NamedTuple):
    """A planted statement up to its number, the question for it, and the number."""

    statement: str
    question: str
    digits: str


def join(*spans: Span) -> Span:
    """One span after the other."""
    return Span(
        np.concatenate([span.tokens for span in spans]),
        np.concatenate([span.is_answer for span in spans]),
    )


class TaskSampler:
    """Samples of one seed; equal seeds and calls give equal samples."""

    def __init__(self, tokens: Tokens, words: list[str], tokenizer: Tokenizer, seed: int) -> None:
        self._tokens, self._tokenizer = tokens, tokenizer
        self._rng = np.random.default_rng(seed)
        self._train_words, self._test_words = words[:-NUM_TEST_WORDS], words[-NUM_TEST_WORDS:]
        vocabulary = range(tokenizer.get_vocab_size())
        self._breaks_line = np.array(["\n" in (tokenizer.decode([i]) or "") for i in vocabulary])

    def sample(self, num_tokens: int) -> Span:
        """A training sequence of `num_tokens`."""
        tasks: tuple[Callable[[int], Span], ...] = (
            lambda n: self._plain(self._text(n)),
            self._asked_at_end,
            self._interleaved,
            self._table,
            self._copy,
        )
        return tasks[self._rng.choice(len(tasks), p=TASK_SHARES)](num_tokens)

    def needle(
        self, num_tokens: int, depth: float, distractors: int = 0, template: int | None = None
    ) -> Span:
        """`num_tokens` that end in the 5 digits asked for; names are test words.

        Args:
            num_tokens: length of the sample.
            depth: where the fact is planted, 0 = start, 1 = end of the text.
            distractors: other facts, at random places.
            template: phrasing of the facts; None = any.
        """
        used: set[str] = set()
        facts = [
            self._fact(self._test_words, used, template, num_digits=5)
            for _ in range(1 + distractors)
        ]
        asked = self._question(facts[0], in_full=True)
        end = int(np.flatnonzero(asked.is_answer)[-1]) + 1
        inserts = [Insert(depth, self._statement(facts[0]))]
        inserts += [Insert(self._rng.random(), self._statement(fact)) for fact in facts[1:]]
        return self._build(num_tokens, inserts, [Span(asked.tokens[:end], asked.is_answer[:end])])

    def _asked_at_end(self, num_tokens: int) -> Span:
        rng, used = self._rng, set[str]()
        facts = [self._fact(self._train_words, used) for _ in range(int(rng.integers(1, 9)))]
        asked = [facts[i] for i in rng.permutation(len(facts))[:4]]
        inserts = [Insert(rng.random(), self._statement(fact)) for fact in facts]
        return self._build(num_tokens, inserts, [self._question(fact) for fact in asked])

    def _interleaved(self, num_tokens: int) -> Span:
        rng, used = self._rng, set[str]()
        inserts = []
        for _ in range(int(rng.integers(3, 11))):
            fact, told = self._fact(self._train_words, used), rng.random() * 0.9
            soon = rng.random() < 0.5
            within = min(1 - told, 200 / num_tokens) if soon else 1 - told
            asked = told + within * rng.random() + 1e-6
            inserts.append(Insert(told, self._statement(fact)))
            inserts.append(Insert(asked, self._question(fact)))
        return self._build(num_tokens, inserts)

    def _table(self, num_tokens: int) -> Span:
        rng = self._rng
        size = int(rng.integers(5, 40))
        keys = rng.choice(self._train_words, size, replace=False)
        values = [
            self._digits(4) if rng.random() < 0.6 else str(rng.choice(self._train_words))
            for _ in keys
        ]
        rows = "".join(f"{key}: {value}\n" for key, value in zip(keys, values, strict=True))
        table = self._plain(self._encode("\nTable:\n" + rows))
        tail = [self._plain(self._encode("\nLookup:\n"))]
        for i in rng.permutation(size)[:4]:
            key, value = self._encode(f"{keys[i]}:"), self._encode(f" {values[i]}")
            line_end = self._plain(self._encode("\n"))
            tail.append(join(self._plain(key), self._answer(value), line_end))
        return self._build(num_tokens, [Insert(rng.random(), table)], tail)

    def _copy(self, num_tokens: int) -> Span:
        rng = self._rng
        size = int(rng.integers(24, 97))
        from_text = rng.random() < 0.6
        span = self._text(size) if from_text else rng.integers(1, 4096, size).astype(np.uint16)
        first, second = sorted(rng.random(2))
        foreseeable = np.arange(size) >= 6
        inserts = [Insert(first, self._plain(span)), Insert(second + 1e-6, Span(span, foreseeable))]
        return self._build(num_tokens, inserts)

    def _build(self, num_tokens: int, inserts: Sequence[Insert], tail: Sequence[Span] = ()) -> Span:
        """Text cut to fit, with the inserts at their depths and the tail at the very end.

        A quarter of the tokens is text: what leaves less is dropped, the last insert first.
        """
        inserts, tail = _fit(num_tokens, inserts, tail)
        end = join(self._plain(np.zeros(0, np.uint16)), *tail)
        size = num_tokens - len(end.tokens) - sum(len(i.span.tokens) for i in inserts)
        text = self._text(size)
        line_starts = np.flatnonzero(self._breaks_line[text]) + 1
        parts, at = [], 0
        for depth, span in sorted(inserts, key=lambda insert: insert.depth):
            start = max(at, _next_line_start(line_starts, int(depth * size)))
            parts += [self._plain(text[at:start]), span]
            at = start
        return join(*parts, self._plain(text[at:]), end)

    def _fact(
        self,
        words: list[str],
        used: set[str],
        template: int | None = None,
        num_digits: int | None = None,
    ) -> Fact:
        """A fact whose name is not in `used`; the name is added there."""
        rng = self._rng
        while True:
            name = " ".join(rng.choice(words, 1 if rng.random() < 0.7 else 2))
            if name not in used:
                used.add(name)
                break
        chosen = int(rng.integers(len(TEMPLATES))) if template is None else template
        statement, question = TEMPLATES[chosen]
        digits = self._digits(num_digits or int(rng.integers(4, 8)))
        return Fact(statement.format(k=name), question.format(k=name), digits)

    def _statement(self, fact: Fact) -> Span:
        return self._plain(self._encode(f"{fact.statement}{fact.digits}.\n"))

    def _question(self, fact: Fact, in_full: bool | None = None) -> Span:
        in_full = self._rng.random() < 0.5 if in_full is None else in_full
        lead = f"{fact.question} {fact.statement.lstrip()}" if in_full else fact.statement
        asked, digits, end = (self._encode(part) for part in (lead, fact.digits, ".\n"))
        return join(self._plain(asked), self._answer(digits), self._plain(end))

    def _digits(self, count: int) -> str:
        return "".join(self._rng.choice(list("0123456789"), count))

    def _text(self, num_tokens: int) -> Tokens:
        start = int(self._rng.integers(0, len(self._tokens) - num_tokens))
        return self._tokens[start : start + num_tokens]

    def _encode(self, text: str) -> Tokens:
        return np.array(self._tokenizer.encode(text).ids, dtype=np.uint16)

    @staticmethod
    def _plain(tokens: Tokens) -> Span:
        return Span(tokens, np.zeros(len(tokens), dtype=bool))

    @staticmethod
    def _answer(tokens: Tokens) -> Span:
        return Span(tokens, np.ones(len(tokens), dtype=bool))


def _fit(
    num_tokens: int, inserts: Sequence[Insert], tail: Sequence[Span]
) -> tuple[Sequence[Insert], Sequence[Span]]:
    """The inserts and the end of the tail for which three quarters of the tokens suffice."""
    room = num_tokens - num_tokens // 4
    while (needed := _size(inserts, tail)) > room:
        if inserts:
            inserts = inserts[:-1]
        elif len(tail) > 1:
            tail = tail[1:]
        else:
            raise ValueError(f"sample of {num_tokens} tokens: the task needs {needed} of {room}")
    return inserts, tail


def _size(inserts: Sequence[Insert], tail: Sequence[Span]) -> int:
    return sum(len(i.span.tokens) for i in inserts) + sum(len(span.tokens) for span in tail)


def _next_line_start(line_starts: NDArray[np.int64], position: int) -> int:
    """The first line start within 64 tokens, else the position itself."""
    i = np.searchsorted(line_starts, position)
    near = i < len(line_starts) and line_starts[i] - position < 64
    return int(line_starts[i]) if near else position
