"""A model through the sidecar, everything offloaded, gives the logits of the model in memory."""

import pytest
import torch

from tests.engines.models import MODELS, TEXT, text_ids, token_ids
from tests.engines.sidecars import FP32, QUANTISED, Room, local_session
from tests.oracle.lockstep import run_lockstep

LED_ATOL = 1e-4  # the same selection everywhere
# The same selection in this row, near-ties taken otherwise in earlier rows: 1.2e-3 and 2.7e-3 at
# 12,000 tokens on two processors.
FREE_ATOL = 5e-3
# A near-tie taken otherwise swaps one key, and that alone can move this row's logits by 0.1 (12,000
# tokens): such rows are held to LED_ATOL by the reference that follows the same sets.
DIFFERING_SHARE = 1e-2
NEAR_TIE = 1e-5  # relative distance from the k-th score
ROW_GAP = 1e-4  # rows before rounding, relative to the row's largest value
CODE_SHARE = 1e-3  # index query codes that noise in the last bit rounds the other way


def prompt_of(name: str, num_tokens: int) -> torch.Tensor:
    if name == "tiny-dsa":
        return text_ids(TEXT, num_tokens)
    return token_ids(MODELS[name](), num_tokens)


def assert_agrees(name, num_tokens, layouts, new_tokens, chunk):
    model = MODELS[name]()
    room = Room(num_tokens + new_tokens, layouts=layouts)
    with local_session(model, room) as session:
        found = run_lockstep(model, session, prompt_of(name, num_tokens), new_tokens, chunk)
    assert found.led_gap < LED_ATOL
    assert found.generated == found.led_generated
    assert max(layer.worst_gap for layer in found.near_ties) < NEAR_TIE
    if found.differing_rows == 0:
        assert found.free_gap < LED_ATOL
        assert found.generated == found.free_generated
    elif name == "tiny-dsa" and layouts is FP32:
        # in a random model one key of 64 weighs too much for any bound, and so does, with rounded
        # rows, a value that noise in the last bit rounds to the next code
        assert found.free_gap < FREE_ATOL
        assert found.differing_rows <= DIFFERING_SHARE * (num_tokens + new_tokens)
        assert found.generated == found.free_generated
    assert len(found.generated) == new_tokens
    for layer in found.rows:
        assert layer.worst_gap < ROW_GAP
        assert layer.differing_codes <= CODE_SHARE * layer.codes


@pytest.mark.parametrize("layouts", [FP32, QUANTISED], ids=["fp32", "quantised"])
@pytest.mark.parametrize("name", ["tiny-dsa", "deepseek", "glm-shared"])
def test_logits_and_64_generated_tokens_agree_at_500_tokens(name, layouts):
    assert_agrees(name, 500, layouts, new_tokens=64, chunk=200)


_FULL = pytest.mark.full  # minutes; the other sizes of the model are in CI


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        pytest.param("tiny-dsa", FP32, marks=_FULL),
        ("tiny-dsa", QUANTISED),
        *((name, layouts) for name in ("deepseek", "glm-shared") for layouts in (FP32, QUANTISED)),
    ],
)
def test_logits_and_64_generated_tokens_agree_at_4000_tokens(name, layouts):
    assert_agrees(name, 4000, layouts, new_tokens=64, chunk=512)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("tiny-dsa", FP32),
        pytest.param("tiny-dsa", QUANTISED, marks=_FULL),
        pytest.param("deepseek", FP32, marks=_FULL),
        ("glm-shared", FP32),
    ],
)
def test_logits_and_64_generated_tokens_agree_at_12000_tokens(name, layouts):
    assert_agrees(name, 12000, layouts, new_tokens=64, chunk=512)
