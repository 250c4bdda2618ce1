"""`model_shape` reads every sharing rule, and refuses dimensions that no row layout holds."""

import pytest

from hisparse_sidecar.engines.transformers import model_shape
from hisparse_sidecar.errors import InvalidArgument
from tests.engines.models import (
    DEFAULT_ROPE,
    YARN_ROPE,
    deepseek_config,
    deepseek_model,
    glm_config,
)


def glm_without_types(**rule):
    return glm_config(indexer_types=None, num_hidden_layers=8, **rule)


@pytest.mark.parametrize(
    ("rule", "anchor_of"),
    [
        ({}, (0, 1, 2, 3, 4, 5, 6, 7)),
        ({"index_topk_pattern": "FSSFFSSS"}, (0, 0, 0, 3, 4, 4, 4, 4)),
        ({"index_topk_freq": 4}, (0, 1, 1, 1, 1, 5, 5, 5)),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, (0, 1, 2, 2, 2, 2, 6, 6)),
        ({"index_topk_freq": 2, "index_skip_topk_offset": 1}, (0, 0, 2, 2, 4, 4, 6, 6)),
        ({"index_topk_pattern": "FSFSFSFS", "index_topk_freq": 4}, (0, 0, 2, 2, 4, 4, 6, 6)),
    ],
)
def test_every_sharing_rule_gives_its_anchors(rule, anchor_of):
    assert model_shape(glm_without_types(**rule)).anchor_of == anchor_of
    plain = deepseek_config(num_hidden_layers=8, **rule)  # transformers itself ignores the rule
    assert model_shape(plain).anchor_of == anchor_of


def test_indexer_types_outrank_the_pattern():
    config = glm_config()
    config.index_topk_pattern = "FFFF"
    assert model_shape(config).anchor_of == (0, 0, 2, 2)


def test_the_shape_of_the_glm_schedule_has_21_anchors_in_78_layers():
    config = glm_config(
        indexer_types=None, num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3
    )
    assert len(model_shape(config).anchors) == 21


@pytest.mark.parametrize("rope", [DEFAULT_ROPE, YARN_ROPE])
def test_the_softmax_scale_is_the_models_own(rope):
    model = deepseek_model()
    own = type(model)(deepseek_config(rope_parameters=rope)).model.layers[0].self_attn.scaling
    assert model_shape(deepseek_config(rope_parameters=rope)).softmax_scale == pytest.approx(own)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rank": 256}, "kv_lora_rank is 256, the row layouts need 512"),
        ({"qk_rope_head_dim": 32}, "qk_rope_head_dim is 32, the row layouts need 64"),
        ({"index_head_dim": 64}, "index_head_dim is 64, the row layouts need 128"),
    ],
)
def test_dimensions_that_no_layout_holds_are_refused_with_both_numbers(change, message):
    with pytest.raises(InvalidArgument, match=message):
        model_shape(deepseek_config(**change))


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["shared", "full", "full", "full"], "layer 0 shares a selection, but no layer before"),
        (["full", "half", "full", "full"], "layer 1 has indexer type 'half'"),
        (["full"] * 3, "3 layers have an indexer type, need 4"),
    ],
)
def test_sharing_rules_that_fit_no_layers_are_refused(types, message):
    config = glm_config()
    config.indexer_types = types
    with pytest.raises(InvalidArgument, match=message):
        model_shape(config)
