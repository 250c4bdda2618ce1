"""At model level: device sizes and aborted steps change no bit, packing changes no token."""

import pytest
import torch

from hisparse_sidecar import SelectionConfig, Session
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.engines.transformers import SidecarCache, attach
from hisparse_sidecar.server import SidecarServer
from tests.engines.models import MODELS, token_ids
from tests.engines.sidecars import FP32, QUANTISED, Room, local_session, sidecar_config

PROMPT, NEW = 330, 24
HISA = SelectionConfig("hisa", num_kept_blocks=3, gate="off")


@pytest.fixture(params=["deepseek", "glm-shared"])
def model(request):
    return MODELS[request.param]()


def run(model, session: Session, selection: SelectionConfig | None) -> torch.Tensor:
    """[PROMPT + NEW, vocab]: prefill in chunks, then steps of one token."""
    ids = token_ids(model, PROMPT + NEW)
    chunks = [*ids[:, :PROMPT].split(128, dim=1), *ids[:, PROMPT:].split(1, dim=1)]
    with (
        attach(model, session) as attached,
        attached.open(PROMPT, NEW, selection=selection) as cache,
    ):
        logits = [model(chunk, past_key_values=cache).logits[0] for chunk in chunks]
    return torch.cat(logits)


def run_locally(model, room: Room, selection: SelectionConfig | None) -> torch.Tensor:
    with local_session(model, room) as session:
        return run(model, session, selection)


@pytest.mark.parametrize("layouts", [FP32, QUANTISED], ids=["fp32", "quantised"])
@pytest.mark.parametrize("selection", [None, HISA], ids=["flat", "hisa"])
def test_logits_are_bit_identical_for_any_hot_buffer_and_window(model, layouts, selection):
    topk, tokens = model.config.index_topk, PROMPT + NEW
    roomy = Room(tokens, layouts=layouts, hot_slots=tokens, window_blocks=6)
    expected = run_locally(model, roomy, selection)
    for hot_slots, window_blocks in ((topk, 3), (topk + 17, 4)):
        room = Room(tokens, layouts=layouts, hot_slots=hot_slots, window_blocks=window_blocks)
        assert torch.equal(run_locally(model, room, selection), expected)


@pytest.mark.parametrize("selection", [None, HISA], ids=["flat", "hisa"])
def test_logits_over_grpc_are_those_of_a_session_in_process(model, selection, tmp_path):
    room = Room(PROMPT + NEW, layouts=QUANTISED, window_blocks=4)
    socket_path = tmp_path / "sidecar.sock"
    with (
        SidecarServer(sidecar_config(model, room), socket_path),
        RemoteSession(socket_path) as session,
    ):
        found = run(model, session, selection)
    assert torch.equal(found, run_locally(model, room, selection))


def test_two_prompts_in_one_batch_give_each_what_it_gives_alone(model):
    prompts = [token_ids(model, length, seed) for length, seed in ((200, 1), (131, 2))]
    room = Room(256, sequences=4)
    with local_session(model, room) as session, attach(model, session) as attached:
        caches = [attached.open(200, 9) for _ in range(4)]
        for ids, cache in zip(prompts * 2, caches, strict=True):
            model(ids[:, :-1], past_key_values=cache)
        tokens = torch.cat([ids[:, -1:] for ids in prompts])
        with SidecarCache.pack(caches[:2]) as packed, caches[2], caches[3]:
            for _ in range(8):
                together = model(tokens, past_key_values=packed).logits[:, 0]
                alone = [
                    model(row[None], past_key_values=cache).logits[0, 0]
                    for row, cache in zip(tokens, caches[2:], strict=True)
                ]
                torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-4)
                tokens = together.argmax(dim=1, keepdim=True)


def test_an_aborted_forward_leaves_later_logits_bit_identical(model, monkeypatch):
    ids = token_ids(model, 200)
    parts = ids.split(100, dim=1)
    with (
        local_session(model, Room(256, sequences=2, layouts=QUANTISED)) as session,
        attach(model, session) as attached,
        attached.open(200, 1) as plain,
        attached.open(200, 1) as disturbed,
    ):
        expected = [model(part, past_key_values=plain).logits for part in parts]
        found = [model(parts[0], past_key_values=disturbed).logits]
        run_layer = session.run_layer

        def failing(layer, inputs):
            if layer == 2:
                raise RuntimeError("layer 2 fails on purpose")
            return run_layer(layer, inputs)

        with monkeypatch.context() as patch:
            patch.setattr(session, "run_layer", failing)
            for new_tokens in (50, 1):
                with pytest.raises(RuntimeError, match="layer 2 fails on purpose"):
                    model(token_ids(model, new_tokens, seed=3), past_key_values=disturbed)
        session.sidecar.check_integrity()
        found.append(model(parts[1], past_key_values=disturbed).logits)
    assert torch.equal(torch.cat(found), torch.cat(expected))
