"""Needles in a haystack for the trained model: prompts whose answers are known."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from benchmarks.engine.models import TINY_DSA
from hisparse_sidecar.cli.checkout import find_beside
from hisparse_sidecar.cli.demo.prompt import build_prompt, read_text

_NUM_NEEDLES = 4
_TEXT = find_beside("examples/text")


@dataclass(frozen=True)
class Question:
    """A prompt, and what should come next.

    Attributes:
        token_ids: the text with its facts, then the question.
        digits: token ids of the fact asked for.
    """

    token_ids: list[int]
    digits: list[int]


def questions(num_tokens: int, num_texts: int) -> list[Question]:
    """Each fact of each text asked for; questions of one text share it as their prefix."""
    tokenizer, text = Tokenizer.from_file(str(TINY_DSA / "tokenizer.json")), read_text(_TEXT)
    asked = []
    for seed in range(num_texts):
        prompt = build_prompt(tokenizer, text, num_tokens, num_needles=_NUM_NEEDLES, seed=seed)
        shared = list(prompt.token_ids[: prompt.text_tokens])
        for needle, question in zip(prompt.needles, prompt.questions, strict=True):
            digits = [
                tokenizer.encode(one, add_special_tokens=False).ids[-1] for one in needle.digits
            ]
            asked.append(Question(shared + list(question), digits))
    return asked


def share_right(asked: Sequence[Question], answers: Sequence[Sequence[int]]) -> float:
    """Share of the questions all of whose digits were answered, 0 to 1."""
    pairs = zip(asked, answers, strict=True)
    return sum(list(a[: len(q.digits)]) == q.digits for q, a in pairs) / len(asked)
