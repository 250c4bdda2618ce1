"""Prompts that begin alike through an attached model: what was computed once is not prefilled."""

import functools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers
from packaging.version import Version

from hisparse_sidecar import LocalSession, Session, Sidecar, SidecarConfig
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.engines.transformers import GreedyOptions, attach, generate
from hisparse_sidecar.errors import HostPoolFull, InvalidArgument
from hisparse_sidecar.server import SidecarServer
from tests.engines.answers import Answer, answer
from tests.engines.models import CACHE, MODELS, TEXT, text_ids, token_ids
from tests.engines.sidecars import FP32, QUANTISED, Room, local_session, sidecar_config

PROMPT, NEW = 300, 8
CACHED = 256  # whole pages of the prompt
ROOM = Room(512, sequences=3, layouts=QUANTISED)
SHARED = 150  # tokens that the prompts of one model begin with
ATOL = 1e-4  # of logits whose rows were computed in other chunks: products of other shapes

CUTS_CHUNKS = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"),
    reason="its generate gives all tokens again where it prefills in chunks",
)


@pytest.fixture(params=["deepseek", "glm-shared", "tiny-dsa"])
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def random_model():
    return MODELS["glm-shared"]()


def prompt_of(model, ending: int = 0, num_tokens: int = PROMPT) -> list[int]:
    """A prompt that begins with the same 150 tokens as those with other endings."""
    whole = text_ids(TEXT, num_tokens) if model is MODELS["tiny-dsa"]() else token_ids(model, 300)
    other = token_ids(model, num_tokens, seed=100 + ending)
    start = whole[:, :SHARED] if ending else whole
    return torch.cat([start, other[:, start.shape[1] :]], dim=1)[0, :num_tokens].tolist()


def alone(model, prompt: list[int]) -> Answer:
    """The answer of a sidecar that has seen nothing."""
    return _alone(model, tuple(prompt))


@functools.cache
def _alone(model, prompt: tuple[int, ...]) -> Answer:
    with local_session(model, ROOM) as session, attach(model, session) as attached:
        return answer(attached, list(prompt), NEW)


@contextmanager
def remote_session(config: SidecarConfig, path):
    with SidecarServer(config, path), RemoteSession(path) as session:
        yield session


@pytest.fixture
def session(model, tmp_path):
    """In process, and for one model over gRPC."""
    if model is MODELS["glm-shared"]():
        opened = remote_session(sidecar_config(model, ROOM), tmp_path / "sidecar.sock")
    else:
        opened = local_session(model, ROOM)
    with opened as session:
        yield session


def test_a_prompt_that_is_asked_again_prefills_only_its_rest(model, session: Session):
    prompt = prompt_of(model)
    with attach(model, session) as attached:
        first, again = (answer(attached, prompt, NEW) for _ in range(2))
    assert (first.cached, again.cached) == (0, CACHED)
    assert first.chunks == [64, 64, 64, 64, 44] + [1] * (NEW - 1)
    assert again.chunks == [44] + [1] * (NEW - 1)
    assert again.same_as(first)
    assert first.same_as(alone(model, prompt))


def test_prompts_with_other_endings_share_what_they_begin_with(model, session: Session):
    with attach(model, session) as attached:
        answer(attached, prompt_of(model), NEW)
        found = answer(attached, prompt_of(model, ending=1), NEW)
    assert found.cached == 128  # the whole pages of 150 tokens
    assert found.same_as(alone(model, prompt_of(model, ending=1)))


def test_a_restart_on_the_same_files_prefills_only_the_rest(model, tmp_path):
    files = TiersConfig(
        file_directory=str(tmp_path / "pages"),
        file_bytes=1 << 27,
        segment_bytes=1 << 23,
        model_name="of the test",
        free_share=0.0,
        probe_seconds=0.0,
    )
    config, found = replace(sidecar_config(model, ROOM), tiers=files), []
    for _ in range(2):
        with Sidecar(config) as sidecar, attach(model, LocalSession(sidecar)) as attached:
            found.append(answer(attached, prompt_of(model), NEW))
            sidecar.check_integrity()
            sidecar.drain(10.0)
    assert [one.cached for one in found] == [0, CACHED]
    assert found[1].same_as(found[0])


def test_another_tenants_equal_prompt_has_nothing_cached(random_model):
    model, prompt = random_model, prompt_of(random_model)
    with local_session(model, ROOM) as session, attach(model, session) as attached:
        session.sidecar.add_tenant("other")
        found = [answer(attached, prompt, NEW, tenant=name) for name in ("", "other", "other")]
    assert [one.cached for one in found] == [0, 0, CACHED]
    assert found[1].same_as(found[0])
    assert found[2].same_as(found[0])


def test_pages_that_decoding_filled_are_found_by_the_next_turn(model):
    prompt = prompt_of(model)[:120]
    room = replace(ROOM, layouts=FP32)
    with local_session(model, room) as session, attach(model, session) as attached:
        with attached.open_prompt(prompt, 150) as cache:
            turn = answer(attached, prompt, 80, cache=cache)
            longer = [*prompt, *turn.tokens, *prompt_of(model, ending=2)[-30:]]
            going_on = answer(attached, longer, NEW, cache=cache)
        found = answer(attached, longer, NEW)
        assert (going_on.cached, found.cached) == (199, 192)
    with local_session(model, room) as session, attach(model, session) as attached:
        fresh = answer(attached, longer, NEW)
    for one in (going_on, found):
        assert one.tokens == fresh.tokens
        torch.testing.assert_close(one.logits, fresh.logits, rtol=0, atol=ATOL)


@pytest.mark.parametrize("chunk", [None, pytest.param(64, marks=CUTS_CHUNKS)])
def test_transformers_generate_prefills_only_what_is_not_cached(model, session: Session, chunk):
    ids, rows = torch.tensor([prompt_of(model)]), []
    options = {"max_new_tokens": NEW, "do_sample": False, "prefill_chunk_size": chunk}
    options["eos_token_id"] = None
    observer = lambda layer, inputs, _: rows.append(inputs.query.shape[0])  # noqa: E731
    with attach(model, session, on_layer=observer) as attached:
        tokens, num_rows = [], []
        for _ in range(2):
            rows.clear()
            with attached.open_prompt(ids, 2 * NEW + 1) as cache:
                tokens.append(model.generate(ids, **{CACHE: cache}, **options))
                num_rows.append(sum(rows) // session.config.model.num_layers)
                # what it has generated is a longer prompt of the same sequence
                more = model.generate(tokens[-1], **{CACHE: cache}, **options)
    assert num_rows == [PROMPT + NEW - 1, PROMPT - CACHED + NEW - 1]
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[0][0, PROMPT:].tolist() == alone(model, ids[0].tolist()).tokens
    assert more.shape[1] == PROMPT + 2 * NEW
    assert torch.equal(more[:, : PROMPT + NEW], tokens[1])


def test_a_batch_goes_on_from_the_shortest_cached_beginning(model, session: Session):
    prompts = [prompt_of(model), prompt_of(model, ending=3)]
    ids = torch.tensor(prompts)
    with attach(model, session) as attached:
        answer(attached, prompts[0], NEW)
        with attached.open_prompt(ids, NEW) as cache:
            assert cache.lengths == [128, 128]
            assert cache.cached_tokens == (128, 128)
            found = model.generate(
                ids, **{CACHE: cache}, max_new_tokens=NEW, do_sample=False, eos_token_id=None
            )
        assert answer(attached, prompts[1], NEW).cached == CACHED
    for row, prompt in zip(found, prompts, strict=True):
        assert row[PROMPT:].tolist() == alone(model, prompt).tokens


def test_the_greedy_helper_reports_cached_tokens_as_done(random_model):
    model, prompt, seen = random_model, prompt_of(random_model), []
    options = GreedyOptions(4, on_progress=lambda *report: seen.append(report))
    with local_session(model, ROOM) as session, attach(model, session) as attached:
        first = generate(attached, prompt, options)
        seen.clear()
        assert generate(attached, prompt, options) == first
    assert seen[:2] == [("prefill", CACHED, PROMPT), ("prefill", PROMPT, PROMPT)]
    assert seen[-1] == ("decode", 4, 4)


def test_a_batch_that_is_not_admitted_holds_nothing(random_model):
    model, ids = random_model, token_ids(random_model, 600)
    with local_session(model, Room(640, sequences=2)) as session:
        free = session.stats().core.host_pages_free
        with attach(model, session) as attached, pytest.raises(HostPoolFull):
            attached.open_prompt(torch.cat([ids] * 2), 400)
        core = session.stats().core
        assert (core.host_pages_free, core.host_pages_reserved) == (free, 0)


@pytest.mark.parametrize(
    "prompt_ids",
    [[], torch.zeros(1, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), torch.ones(1, 3)],
)
def test_ids_of_another_shape_or_type_are_refused(random_model, prompt_ids):
    with (
        local_session(random_model, ROOM) as session,
        attach(random_model, session) as attached,
        pytest.raises(InvalidArgument, match=r"need \[batch, tokens\] integers"),
    ):
        attached.open_prompt(prompt_ids, 1)
