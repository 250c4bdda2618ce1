"""The adapter alone: an attached model over plain tensors gives the stock model's logits."""

import pytest
import torch

from hisparse_sidecar.engines.transformers import (
    GreedyOptions,
    SidecarCache,
    attach,
    generate,
    model_shape,
)
from hisparse_sidecar.errors import InvalidArgument, WrongState
from tests.engines.dense_session import DenseSession
from tests.engines.models import CACHE, MODELS, deepseek_model, glm_shared_model, token_ids
from tests.oracle.selections import SelectionRecord
from tests.oracle.stock import stock_logits

LOGITS_ATOL = 1e-4
NEAR_TIE = 1e-5  # relative distance from the k-th score within which sets may differ


@pytest.fixture(params=["deepseek", "glm-shared"])
def model(request):
    return MODELS[request.param]()


@pytest.fixture
def session(model):
    return DenseSession(model_shape(model.config))


def attached_logits(model, cache, chunks):
    return torch.cat([model(chunk, past_key_values=cache).logits for chunk in chunks], dim=1)


def assert_stock_logits(model, ids, found, selected):
    """`found` [rows, vocab] are the stock model's last logits, given the sets of all tokens."""
    expected, difference = stock_logits(model, ids, selected)
    assert difference.worst_gap < NEAR_TIE
    torch.testing.assert_close(found, expected[-found.shape[0] :], rtol=0, atol=LOGITS_ATOL)


def test_attached_logits_equal_the_stock_models_in_chunks_and_steps(model, session):
    ids = token_ids(model, 300)
    chunks = [*ids[:, :280].split(128, dim=1), *ids[:, 280:].split(1, dim=1)]
    record = SelectionRecord()
    with attach(model, session, on_layer=record) as attached, attached.open(280, 20) as cache:
        found = attached_logits(model, cache, chunks)
    assert [kind for kind, _ in session.steps] == ["prefill"] * 3 + ["decode"] * 20
    assert_stock_logits(model, ids, found[0], record.of())


def test_the_cache_goes_by_the_old_and_the_new_name(model, session):
    ids, found = token_ids(model, 20), []
    for name in ("cache", "past_key_values"):
        with attach(model, session) as attached, attached.open(20, 0) as cache:
            found.append(model(ids, **{name: cache}).logits)
            assert cache.get_seq_length() == 20
    assert torch.equal(found[0], found[1])


def test_transformers_generate_gives_the_stock_models_tokens(model, session):
    ids = token_ids(model, 150)
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    with attach(model, session) as attached:
        for chunk in (None, 64):
            with attached.open(150, 12) as cache:
                found = model.generate(ids, prefill_chunk_size=chunk, **{CACHE: cache}, **options)
            assert found.tolist() == expected.tolist()


def test_greedy_helper_gives_the_stock_models_tokens_and_reports_progress(model, session):
    ids = token_ids(model, 150)
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
    )
    seen = []
    options = GreedyOptions(8, prefill_chunk=100, on_progress=lambda *report: seen.append(report))
    with attach(model, session) as attached:
        found = generate(attached, ids[0].tolist(), options)
    assert found == expected[0, 150:].tolist()
    assert seen[:2] == [("prefill", 100, 150), ("prefill", 150, 150)]
    assert seen[-1] == ("decode", 8, 8)


def test_detach_restores_the_model_exactly(model, session):
    ids = token_ids(model, 64)
    before, _ = stock_logits(model, ids)
    state = [dict(module.__dict__) for module in model.modules()]
    attachment = attach(model, session)
    assert "forward" in model.__dict__
    attachment.detach()
    attachment.detach()
    assert [dict(module.__dict__) for module in model.modules()] == state
    assert torch.equal(stock_logits(model, ids)[0], before)


def test_a_failed_forward_leaves_the_sequence_as_it_was(model, session, monkeypatch):
    ids = token_ids(model, 130)
    record = SelectionRecord()
    with attach(model, session, on_layer=record) as attached, attached.open(130, 0) as cache:
        first = model(ids[:, :100], past_key_values=cache).logits
        before = record.of()
        session.fail_at_layer = 1
        with pytest.raises(RuntimeError, match="layer 1 fails on purpose"):
            model(ids[:, 100:], past_key_values=cache)
        with monkeypatch.context() as patch:
            patch.setattr(session, "end_step", lambda: 1 // 0)  # what a GPU finds, it finds here
            with pytest.raises(ZeroDivisionError):
                model(ids[:, 100:], past_key_values=cache)
        assert session.aborted_steps == 2
        assert cache.get_seq_length() == session.length(cache.sequences[0]) == 100
        second = model(ids[:, 100:], past_key_values=cache).logits
    selected = [torch.cat(parts) for parts in zip(before, record.last(), strict=True)]
    assert_stock_logits(model, ids, torch.cat([first, second], dim=1)[0], selected)


def test_a_batch_gives_what_each_row_gives_alone(model, session):
    ids = torch.cat([token_ids(model, 200, seed) for seed in (1, 2)])
    record = SelectionRecord(batch_size=2)
    with (
        attach(model, session, on_layer=record) as attached,
        attached.open(200, 0, batch_size=2) as cache,
    ):
        chunks = [ids[:, :120], ids[:, 120:199], ids[:, 199:]]
        found = attached_logits(model, cache, chunks)
    for row in range(2):
        assert_stock_logits(model, ids[row : row + 1], found[row], record.of(row))


def test_sequences_of_different_lengths_decode_in_one_batch(model, session):
    prompts = [token_ids(model, 150, 1), token_ids(model, 77, 2)]
    record, before = SelectionRecord(), []
    with attach(model, session, on_layer=record) as attached:
        caches = [attached.open(200, 1) for _ in prompts]
        for ids, cache in zip(prompts, caches, strict=True):
            model(ids[:, :-1], past_key_values=cache)
            before.append(record.last())
        record.clear()
        record.batch_size = 2
        with SidecarCache.pack(caches) as packed:
            last = torch.cat([ids[:, -1:] for ids in prompts])
            found = model(last, past_key_values=packed).logits
    for row, ids in enumerate(prompts):
        selected = [torch.cat(parts) for parts in zip(before[row], record.of(row), strict=True)]
        assert_stock_logits(model, ids, found[row], selected)


def test_cropped_tokens_are_forgotten(model, session):
    ids = token_ids(model, 120)
    record = SelectionRecord()
    with attach(model, session, on_layer=record) as attached, attached.open(160, 0) as cache:
        model(ids[:, :100], past_key_values=cache)
        before = record.of()
        model(token_ids(model, 7, seed=9), past_key_values=cache)
        cache.crop(-7)
        found = model(ids[:, 100:], past_key_values=cache).logits
    selected = [torch.cat(parts) for parts in zip(before, record.last(), strict=True)]
    assert_stock_logits(model, ids, found[0], selected)


def test_the_observer_sees_every_layer_and_shared_layers_bring_no_index_rows():
    model = glm_shared_model()
    session, seen = DenseSession(model_shape(model.config)), []
    observer = lambda layer, inputs, outputs: seen.append((layer, inputs, outputs))  # noqa: E731
    with attach(model, session, on_layer=observer) as attached, attached.open(80, 0) as cache:
        model(token_ids(model, 80), past_key_values=cache)
    assert [layer for layer, _, _ in seen] == [0, 1, 2, 3]
    assert [inputs.index_k is None for _, inputs, _ in seen] == [False, True, False, True]
    assert torch.equal(seen[0][2].topk_indices, seen[1][2].topk_indices)
    assert seen[0][1].query.shape == (80, 4, 576)
    assert seen[0][1].kv.shape == (80, 576)
    assert seen[0][1].index_q.shape == (80, 8, 128)


def test_a_deepseek_config_with_a_sharing_rule_shares_its_selection():
    model = deepseek_model()
    model.config.index_topk_freq = 2
    try:
        shape = model_shape(model.config)
        session, seen = DenseSession(shape), []
        watch = lambda layer, inputs, _: seen.append(inputs.index_k is None)  # noqa: E731
        with attach(model, session, on_layer=watch) as attached, attached.open(9, 0) as cache:
            model(token_ids(model, 9), past_key_values=cache)
    finally:
        del model.config.index_topk_freq
    assert shape.anchor_of == (0, 1, 1)
    assert seen == [False, False, True]


def test_logits_of_an_attached_model_carry_no_gradient(model, session):
    with attach(model, session) as attached, attached.open(9, 0) as cache:
        logits = model(token_ids(model, 9), past_key_values=cache).logits
    assert not logits.requires_grad


class TestRefusals:
    @pytest.fixture
    def attached(self, model, session):
        with attach(model, session) as attached:
            yield attached

    def refused(self, attached, match, **arguments):
        steps = len(attached.session.steps)
        with pytest.raises(InvalidArgument, match=match):
            attached.model(**arguments)
        assert len(attached.session.steps) == steps

    def test_a_model_of_another_class_is_refused(self, session):
        with pytest.raises(InvalidArgument, match="Linear, need DeepseekV32ForCausalLM or Glm"):
            attach(torch.nn.Linear(2, 2), session)

    def test_a_model_in_training_mode_is_refused(self, model, session):
        model.train()
        try:
            with pytest.raises(InvalidArgument, match="training mode"):
                attach(model, session)
        finally:
            model.eval()

    def test_a_forward_in_training_mode_is_refused(self, attached):
        with attached.open(9, 0) as cache:
            attached.model.train()
            ids = token_ids(attached.model, 9)
            self.refused(attached, "training mode", input_ids=ids, past_key_values=cache)
            attached.model.eval()

    def test_a_session_of_another_shape_is_refused(self, model):
        other = deepseek_model() if model is glm_shared_model() else glm_shared_model()
        with pytest.raises(InvalidArgument, match=r"of the model is .*, the session's is"):
            attach(model, DenseSession(model_shape(other.config)))

    def test_a_stock_cache_is_refused(self, attached):
        self.refused(attached, "NoneType, an attached", input_ids=token_ids(attached.model, 9))
        with pytest.raises(InvalidArgument, match="DynamicCache, an attached"):
            attached.model.generate(token_ids(attached.model, 9), max_new_tokens=2)

    def test_two_caches_are_refused(self, attached):
        with attached.open(9, 0) as cache:
            arguments = {"input_ids": token_ids(attached.model, 9), "past_key_values": cache}
            self.refused(attached, "cache and past_key_values, needs one", cache=cache, **arguments)

    def test_a_cache_of_another_session_is_refused(self, attached, model):
        cache = SidecarCache.open(DenseSession(model_shape(model.config)), 9, 0)
        ids = token_ids(model, 9)
        self.refused(attached, "another session", input_ids=ids, past_key_values=cache)

    def test_padding_is_refused_with_the_number_of_padding_tokens(self, attached):
        ids, mask = token_ids(attached.model, 9), torch.ones(1, 9)
        mask[0, :3] = 0
        with attached.open(9, 0) as cache:
            arguments = {"input_ids": ids, "past_key_values": cache}
            self.refused(attached, "3 padding tokens", attention_mask=mask, **arguments)
            custom = torch.zeros(1, 1, 9, 9)
            self.refused(attached, "custom mask", attention_mask=custom, **arguments)
            attached.model(**arguments)

    def test_a_batch_of_another_size_is_refused(self, attached):
        with attached.open(9, 0, batch_size=2) as cache:
            ids = token_ids(attached.model, 9)
            self.refused(
                attached,
                "1 rows of 9 tokens, the cache needs 2",
                input_ids=ids,
                past_key_values=cache,
            )

    def test_positions_that_do_not_continue_the_sequence_are_refused(self, attached):
        with attached.open(9, 0) as cache:
            arguments = {"input_ids": token_ids(attached.model, 4), "past_key_values": cache}
            positions = torch.arange(1, 5)[None]
            self.refused(
                attached, "1..4, the sequence continues 0..3", position_ids=positions, **arguments
            )

    def test_tokens_beyond_the_admitted_length_leave_the_cache_as_it_was(self, attached):
        with attached.open(8, 0) as cache:
            ids = token_ids(attached.model, 9)
            self.refused(attached, "9 tokens, admitted 8", input_ids=ids, past_key_values=cache)
            assert cache.get_seq_length() == 0

    def test_beam_search_is_refused(self, attached):
        ids, options = token_ids(attached.model, 9), {"num_beams": 2, "max_new_tokens": 4}
        with attached.open(9, 4, batch_size=2) as cache, pytest.raises(InvalidArgument):
            attached.model.generate(ids, **{CACHE: cache}, **options)

    def test_an_attached_model_is_not_attached_again(self, attached, model, session):
        forward = model.__dict__["forward"]
        with pytest.raises(WrongState, match="replaced already: detach the model first"):
            attach(model, session)
        assert model.__dict__["forward"] is forward

    def test_detaching_under_a_foreign_replacement_changes_nothing(self, attached, model):
        ours = model.__dict__["forward"]
        model.__dict__["forward"] = lambda: None
        with pytest.raises(WrongState, match="was replaced a second time"):
            attached.detach()
        model.__dict__["forward"] = ours
