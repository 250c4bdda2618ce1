"""What happens to sequences from prompts on the way: failures, forks, cuts, rest, packing."""

import pytest
import torch

from hisparse_sidecar.engines.transformers import SidecarCache, attach, model_shape
from hisparse_sidecar.errors import HostPoolFull, WrongState
from tests.engines.answers import CHUNK, answer
from tests.engines.dense_session import DenseSession
from tests.engines.models import glm_shared_model, token_ids
from tests.engines.sidecars import Room, local_session

PROMPT, NEW = 200, 6
CACHED = 192
ROOM = Room(512, sequences=4)


@pytest.fixture(scope="module")
def model():
    return glm_shared_model()


@pytest.fixture(scope="module")
def prompt(model):
    return token_ids(model, PROMPT)[0].tolist()


@pytest.fixture(scope="module")
def expected(model, prompt):
    """What a sidecar says that has seen nothing else."""
    with local_session(model, ROOM) as session, attach(model, session) as attached:
        return answer(attached, prompt, NEW)


@pytest.fixture
def session(model):
    with local_session(model, ROOM) as session:
        yield session


@pytest.fixture
def attached(model, session, expected):
    with attach(model, session) as attached:
        yield attached


def prefill(model, cache, ids: list[int]) -> None:
    """In chunks as those of `answer`: products of other shapes have other last bits."""
    for chunk in torch.tensor([ids]).split(CHUNK, dim=1):
        model(chunk, past_key_values=cache)


def cached(attached, prompt) -> int:
    """Tokens of a prompt that are found now."""
    with attached.open_prompt(prompt, 1) as cache:
        return cache.cached_tokens[0]


@pytest.mark.parametrize("start", [64, 100])  # on the border of a page, within one
def test_tokens_of_a_failed_forward_are_never_found(
    model, session, attached, prompt, expected, monkeypatch, start
):
    wrong = token_ids(model, PROMPT, seed=9)
    tried = [*prompt[:start], *wrong[0, start:].tolist()]
    with attached.open_prompt(prompt, NEW) as cache:
        model(torch.tensor([prompt[:start]]), past_key_values=cache)
        with monkeypatch.context() as patch:
            patch.setattr(session, "end_step", lambda: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                model(torch.tensor([tried[start:]]), past_key_values=cache)
        assert cache.lengths == [start]
        found = answer(attached, prompt, NEW, cache=cache)
    assert found.tokens == expected.tokens
    assert cached(attached, tried) == 64
    # a chunk that is told and put back within a page leaves a gap: what follows is not shared
    assert cached(attached, prompt) == (CACHED if start == 64 else 64)
    assert answer(attached, prompt, NEW).tokens == expected.tokens


@pytest.mark.parametrize(
    ("kept", "cut"),
    [
        (128, lambda cache: cache.truncate(128)),
        (128, lambda cache: cache.crop(128 - PROMPT)),
        (0, lambda cache: cache.reset()),
    ],
    ids=["truncate", "crop", "reset"],
)
def test_what_comes_after_a_cut_is_found_by_its_own_tokens(
    model, attached, prompt, expected, kept, cut
):
    other = [*prompt[:kept], *token_ids(model, PROMPT, seed=7)[0, kept:].tolist()]
    with attached.open_prompt(prompt, NEW) as cache:
        prefill(model, cache, other)
        cut(cache)
        assert cache.lengths == [kept]
        assert answer(attached, prompt, NEW, cache=cache).same_as(expected)
    again = answer(attached, prompt, NEW)
    assert again.cached == CACHED
    assert again.same_as(expected)
    assert cached(attached, other) == CACHED  # what was cut off was right, too


def test_forks_share_their_beginning_and_are_found_by_their_own_tokens(
    model, attached, prompt, expected
):
    other = [*prompt[:128], *token_ids(model, 72, seed=5)[0].tolist()]
    with attached.open_prompt(prompt, NEW) as cache:
        prefill(model, cache, prompt[:128])
        with cache.fork(128, 100) as fork:
            assert fork.cached_tokens == (128,)
            forked = answer(attached, other, NEW, cache=fork)
        assert answer(attached, prompt, NEW, cache=cache).same_as(expected)
    again = answer(attached, other, NEW)
    assert again.cached == CACHED
    assert again.same_as(forked)
    assert cached(attached, prompt) == CACHED


def test_a_sequence_that_has_rested_goes_on_bit_for_bit(model, attached, prompt, expected):
    with attached.open_prompt(prompt, NEW) as cache:
        prefill(model, cache, prompt[:128])
        cache.preempt()
        cache.preempt()
        with pytest.raises(WrongState):
            prefill(model, cache, prompt[128:])
        assert cache.resume() == 0
        assert cache.resume() == 0
        assert cache.lengths == [128]
        assert answer(attached, prompt, NEW, cache=cache).same_as(expected)
    assert cached(attached, prompt) == CACHED


def test_rows_of_a_batch_lose_the_same_number_of_tokens(model, session, attached, monkeypatch):
    ids = torch.cat([token_ids(model, 150, seed) for seed in (1, 2)])
    with attached.open_prompt(ids, NEW) as cache:
        expected = model(ids, past_key_values=cache).logits
        first, second = cache.sequences
        resume = session.resume

        def losing(sequence: int) -> int:
            length = resume(sequence)
            if sequence == first:
                length = 64
                session.truncate(sequence, length)
            return length

        monkeypatch.setattr(session, "resume", losing)
        cache.preempt()
        assert cache.resume() == 150 - 64
        assert cache.lengths == [64, 64]
        assert session.sidecar.length(second) == 64
        found = model(ids[:, 64:], past_key_values=cache).logits
    torch.testing.assert_close(found[:, -1], expected[:, -1], rtol=0, atol=1e-4)
    assert torch.equal(found[:, -1].argmax(-1), expected[:, -1].argmax(-1))


def test_a_batch_that_finds_no_room_rests_as_before(model, session, attached, monkeypatch):
    ids = torch.cat([token_ids(model, 70, seed) for seed in (1, 2)])
    with attached.open_prompt(ids, NEW) as cache:
        model(ids, past_key_values=cache)
        resume, calls = session.resume, []

        def refusing(sequence: int) -> int:
            calls.append(sequence)
            if len(calls) == 2:
                raise HostPoolFull("needs 2 pages, 0 free")
            return resume(sequence)

        cache.preempt()
        with monkeypatch.context() as patch:
            patch.setattr(session, "resume", refusing)
            with pytest.raises(HostPoolFull):
                cache.resume()
        for sequence in cache.sequences:
            with pytest.raises(WrongState):
                session.truncate(sequence, 0)
        assert cache.resume() == 0
        model(ids[:, :1], past_key_values=cache)
        assert cache.lengths == [71, 71]


def test_embeddings_without_ids_end_what_is_shared(model, attached, prompt, expected):
    ids = torch.tensor([prompt])
    with attached.open_prompt(prompt, NEW) as cache:
        model(ids[:, :CHUNK], past_key_values=cache)
        embedded = model.get_input_embeddings()(ids[:, CHUNK : 2 * CHUNK])
        model(inputs_embeds=embedded, past_key_values=cache)
        assert answer(attached, prompt, NEW, cache=cache).same_as(expected)
    assert cached(attached, prompt) == CHUNK


def test_the_session_is_told_ids_of_sequences_from_prompts_only(model):
    session, ids = DenseSession(model_shape(model.config)), token_ids(model, 9)
    with attach(model, session) as attached:
        plain, prompted = attached.open(9, 2), attached.open_prompt(ids, 2)
        for cache in (plain, prompted):
            model(ids, past_key_values=cache)
        with SidecarCache.pack([plain, prompted]) as packed:
            assert packed.cached_tokens == (0, 0)
            model(torch.tensor([[3], [4]]), past_key_values=packed)
    assert session.told == [None, ids[0].tolist(), [3, 4]]
