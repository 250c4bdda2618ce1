"""The demo's prompt: exact length, facts planted where it says, a question that has an answer."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from hisparse_sidecar.cli.checkout import find_beside
from hisparse_sidecar.cli.demo.prompt import build_prompt, read_text


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(find_beside("models/tiny-dsa/tokenizer.json")))


@pytest.fixture(scope="module")
def text() -> str:
    return read_text(find_beside("examples/text"))


@pytest.mark.parametrize("num_tokens", [700, 1500, 12000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_prompt_has_its_length_its_facts_and_its_question(
    tokenizer: Tokenizer, text: str, num_tokens: int, seed: int
) -> None:
    prompt = build_prompt(tokenizer, text, num_tokens, seed=seed)

    assert len(prompt.token_ids) == num_tokens
    assert len({needle.key for needle in prompt.needles}) == len(prompt.needles) == 6
    for needle in prompt.needles:
        planted = tokenizer.decode(list(prompt.token_ids[needle.position :]))
        assert planted.startswith(f"\n{needle.statement}{needle.digits}.\n")
    asked = prompt.asked
    question = prompt.questions[prompt.needles.index(asked)]
    assert prompt.token_ids[prompt.text_tokens :] == question
    assert asked == prompt.needles[2]
    end = tokenizer.decode(list(prompt.token_ids[-60:]))
    assert end.endswith(f"\nQuestion: {asked.question}\nAnswer: {asked.statement}")
    assert asked.digits not in end


def test_each_digit_of_an_answer_is_one_token(tokenizer: Tokenizer, text: str) -> None:
    prompt = build_prompt(tokenizer, text, 1500)
    after = tokenizer.encode(f"{prompt.asked.statement}{prompt.asked.digits}").ids[-5:]
    assert [tokenizer.decode([token]) for token in after] == list(prompt.asked.digits)


def test_the_same_seed_gives_the_same_prompt_and_another_gives_another(
    tokenizer: Tokenizer, text: str
) -> None:
    first = build_prompt(tokenizer, text, 1500, seed=5)
    assert build_prompt(tokenizer, text, 1500, seed=5) == first
    assert build_prompt(tokenizer, text, 1500, seed=6) != first


@pytest.mark.parametrize(
    ("num_tokens", "num_needles", "message"),
    [
        (60000, 6, r"the text has \d+ tokens, \d+ needed"),
        (150, 6, r"needles and question take \d+ of 150 tokens, at most 3/4 may"),
        (1500, 99, r"99 needles asked for, 1 to 12 possible"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused_with_both_numbers(
    tokenizer: Tokenizer, text: str, num_tokens: int, num_needles: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_prompt(tokenizer, text, num_tokens, num_needles=num_needles)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.txt file in"):
        read_text(tmp_path)
