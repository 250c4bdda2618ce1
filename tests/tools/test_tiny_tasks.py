import numpy as np
import pytest

from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.tasks import NUM_TEST_WORDS, TEMPLATES


def test_a_sample_too_short_for_its_question_is_refused(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"sample of 24 tokens: the task needs \d+ of 18"):
        corpus.held_out_sampler(0).needle(24, 0.5)


@pytest.mark.parametrize("num_tokens", [128, 1000, 2049])
def test_every_sample_has_the_length_asked_for(corpus: Corpus, num_tokens: int) -> None:
    sampler = corpus.held_out_sampler(0)
    for _ in range(20):
        sample = sampler.sample(num_tokens)
        assert sample.tokens.shape == sample.is_answer.shape == (num_tokens,)


def test_equal_seeds_give_equal_samples(corpus: Corpus) -> None:
    first, second, other = (corpus.held_out_sampler(seed) for seed in (5, 5, 6))
    samples = [
        [sampler.sample(400).tokens for _ in range(10)] for sampler in (first, second, other)
    ]
    assert np.array_equal(samples[0], samples[1])
    assert not np.array_equal(samples[0], samples[2])


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("distractors", [0, 7])
def test_a_needle_sample_states_once_what_its_last_five_tokens_answer(
    corpus: Corpus, depth: float, distractors: int
) -> None:
    sample = corpus.held_out_sampler(1).needle(1500, depth, distractors, template=0)
    text, answer = corpus.tokenizer.decode(sample.tokens), sample.tokens[-5:]
    digits = corpus.tokenizer.decode(answer)

    assert len(sample.tokens) == 1500
    assert sample.is_answer[-5:].all()
    assert sample.is_answer.sum() == 5
    assert digits.isdigit()
    asked = text.rsplit("The secret code of ", 1)[1]
    assert text.count(f"\nThe secret code of {asked}.\n") == 1
    assert text.count("The secret code of") == distractors + 2


def test_needles_are_named_by_words_that_training_never_uses(corpus: Corpus) -> None:
    test_words = set(corpus.words[-NUM_TEST_WORDS:])
    assert not test_words & set(corpus.words[:-NUM_TEST_WORDS])
    sampler = corpus.held_out_sampler(2)
    for template, (statement, _) in enumerate(TEMPLATES):
        text = corpus.tokenizer.decode(sampler.needle(800, 0.5, template=template).tokens)
        before, after = statement.strip().split("{k}")
        name = text.rsplit(before, 1)[1].split(after, 1)[0].strip()
        assert set(name.split()) <= test_words
