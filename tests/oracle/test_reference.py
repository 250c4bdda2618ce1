"""The reference is the stock model: the same logits, the same sets, and rows rounded as stored."""

import pytest
import torch

from hisparse_sidecar.engines.transformers import GivenLayer, ReferenceModel, RowLayouts
from hisparse_sidecar.engines.transformers.exact_topk import exact_topk, index_scores, positions_of
from hisparse_sidecar.engines.transformers.row_rounding import (
    rounded_index_k,
    rounded_index_q,
    rounded_kv,
)
from hisparse_sidecar.errors import InvalidArgument
from tests.engines.models import MODELS, TEXT, text_ids, token_ids
from tests.oracle.stock import stock_logits

LOGITS_ATOL = 1e-4
NEAR_TIE = 1e-5
FP32 = RowLayouts()


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_gives_the_unchanged_models_logits(name):
    model = MODELS[name]()
    ids = text_ids(TEXT, 540) if name == "tiny-dsa" else token_ids(model, 300)
    selected, logits = [], []
    with ReferenceModel(model, layouts=FP32, max_tokens=ids.shape[1]) as reference:
        for chunk in ids.split(200, dim=1):
            logits.append(reference.forward(chunk))
            selected.append(reference.selected)
    sets = [torch.cat(parts) for parts in zip(*selected, strict=True)]
    expected, difference = stock_logits(model, ids, sets)
    assert difference.worst_gap < NEAR_TIE
    torch.testing.assert_close(torch.cat(logits), expected, rtol=0, atol=LOGITS_ATOL)
    if difference.rows == 0:
        untouched, _ = stock_logits(model, ids)
        torch.testing.assert_close(expected, untouched, rtol=0, atol=LOGITS_ATOL)


@pytest.mark.parametrize("name", ["deepseek", "glm-shared"])
def test_logits_depend_on_the_selection(name):
    model = MODELS[name]()
    ids = token_ids(model, 300)
    positions = torch.arange(300, dtype=torch.int32)[:, None]
    window = positions - model.config.index_topk + 1 + torch.arange(model.config.index_topk)
    window = torch.where(window < 0, -1, window).int().sort(dim=1, descending=True).values
    given = [GivenLayer(topk_indices=window)] * model.config.num_hidden_layers
    with ReferenceModel(model, layouts=FP32, max_tokens=300) as reference:
        found = reference.forward(ids, given=given)
    expected, _ = stock_logits(model, ids)
    assert (found - expected).abs().max() > 0.05
    assert reference.near_ties[0].worst_gap > 0.05
    assert reference.near_ties[0].differing_rows > 100


def test_the_model_is_itself_after_a_reference():
    model = MODELS["glm-shared"]()
    ids = token_ids(model, 64)
    before, _ = stock_logits(model, ids)
    with ReferenceModel(model, layouts=RowLayouts("fp8_ds_mla", "fp8"), max_tokens=64) as other:
        assert not torch.equal(other.forward(ids), before)
    assert torch.equal(stock_logits(model, ids)[0], before)


def test_more_tokens_than_the_reference_holds_are_refused_with_both_numbers():
    model = MODELS["deepseek"]()
    with ReferenceModel(model, layouts=FP32, max_tokens=8) as reference:
        reference.forward(token_ids(model, 5))
        with pytest.raises(InvalidArgument, match="up to token 10, holds 1 row of 8"):
            reference.forward(token_ids(model, 5))


def test_index_scores_follow_the_formula():
    made = torch.Generator().manual_seed(0)
    query = torch.randn(3, 5, 8, generator=made)
    weights, keys = torch.randn(3, 5, generator=made), torch.randn(7, 8, generator=made)
    found = index_scores(query, weights, keys, first_position=4)
    for row in range(3):
        for token in range(7):
            dots = [max(0.0, float(query[row, head] @ keys[token])) for head in range(5)]
            terms = sum(dot * float(w) for dot, w in zip(dots, weights[row], strict=True))
            expected = terms if token <= 4 + row else -torch.inf
            assert float(found[row, token]) == pytest.approx(expected, abs=1e-5)


def test_exact_topk_takes_the_lowest_columns_among_equals():
    inf = torch.inf
    scores = torch.tensor(
        [[1.0, 2, 1, 2, 1, 1], [3, 3, 3, 3, 3, 3], [5, -inf, -inf, -inf, 4, -inf]]
    )
    taken = positions_of(exact_topk(scores, 4), 4)
    assert taken.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 4, -1, -1]]


def nearest_e4m3(values: torch.Tensor) -> torch.Tensor:
    """Every value's nearest e4m3 number, found by looking at all of them."""
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    grid = grid[~grid.isnan()].unique()
    return grid[(values[..., None] - grid).abs().argmin(dim=-1)]


def test_kv_rows_are_rounded_to_e4m3_with_power_of_two_scales_and_bf16_rope():
    rows = torch.randn(6, 576, generator=torch.Generator().manual_seed(1))
    found = rounded_kv(rows, "fp8_ds_mla")
    assert torch.equal(found[:, 512:], rows[:, 512:].bfloat16().float())
    tiles = rows[:, :512].reshape(6, 4, 128)
    scales = torch.exp2(torch.ceil(torch.log2(tiles.abs().amax(-1, keepdim=True) / 448)))
    expected = nearest_e4m3(tiles / scales) * scales
    torch.testing.assert_close(found[:, :512].reshape(6, 4, 128), expected, rtol=0, atol=1e-7)


def test_index_keys_and_queries_are_rounded_to_e4m3_with_a_scale_a_row():
    made = torch.Generator().manual_seed(2)
    keys, query = torch.randn(6, 128, generator=made), torch.randn(6, 4, 128, generator=made)
    scale = keys.abs().amax(-1, keepdim=True) / 448
    expected = nearest_e4m3(keys / scale) * scale
    torch.testing.assert_close(rounded_index_k(keys, "fp8"), expected, rtol=1e-6, atol=0)
    weights = torch.randn(6, 4, generator=made)
    codes, folded = rounded_index_q(query, weights, "fp8")
    q_scale = query.abs().amax(-1) / 448
    torch.testing.assert_close(folded, weights * q_scale, rtol=1e-6, atol=0)
    assert torch.equal(codes.float(), nearest_e4m3(query / q_scale[..., None]))
