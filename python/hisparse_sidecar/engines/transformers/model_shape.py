"""The `ModelShape` of a transformers config: layer sharing, indexer, softmax scale."""

import math

from hisparse_sidecar.config import ModelShape
from hisparse_sidecar.engines.transformers.family import EngineConfig
from hisparse_sidecar.errors import InvalidArgument

# the row layouts are made for these: 512 + 64 values of a KV row, 128 of an index key
_ROW_DIMS = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "index_head_dim": 128}
_ANCHOR, _SHARED = "full", "shared"


def model_shape(config: EngineConfig) -> ModelShape:
    """Shape of a DSA model, from its transformers config.

    The layers that share a selection come from `indexer_types`, else from `index_topk_pattern`
    ("F" and "S"), else from `index_topk_freq` and `index_skip_topk_offset`.

    Args:
        config: `DeepseekV32Config` or `GlmMoeDsaConfig`.

    Raises:
        InvalidArgument: a row dimension that no layout holds, or a sharing rule without sense.
    """
    for name, needed in _ROW_DIMS.items():
        found = getattr(config, name, None)
        if found != needed:
            raise InvalidArgument(f"{name} is {found}, the row layouts need {needed}")
    return ModelShape(
        num_layers=config.num_hidden_layers,
        anchor_of=_anchor_of(_layer_kinds(config)),
        index_heads=config.index_n_heads,
        topk=config.index_topk,
        softmax_scale=_softmax_scale(config),
    )


def _layer_kinds(config: EngineConfig) -> list[str]:
    num_layers = config.num_hidden_layers
    kinds = getattr(config, "indexer_types", None) or _kinds_of_pattern(config)
    if kinds is None:
        freq = max(getattr(config, "index_topk_freq", None) or 1, 1)
        offset = getattr(config, "index_skip_topk_offset", None)
        first = 1 if offset is None else offset - 1
        kinds = [_ANCHOR if max(i - first, 0) % freq == 0 else _SHARED for i in range(num_layers)]
    if len(kinds) != num_layers:
        raise InvalidArgument(f"{len(kinds)} layers have an indexer type, need {num_layers}")
    return list(kinds)


def _kinds_of_pattern(config: EngineConfig) -> list[str] | None:
    pattern = getattr(config, "index_topk_pattern", None)
    if pattern is None:
        return None
    letters = {"F": _ANCHOR, "S": _SHARED}
    return [letters.get(letter, letter) for letter in pattern]


def _anchor_of(kinds: list[str]) -> tuple[int, ...]:
    anchors: list[int] = []
    for layer, kind in enumerate(kinds):
        if kind not in (_ANCHOR, _SHARED):
            raise InvalidArgument(
                f"layer {layer} has indexer type {kind!r}, need {_ANCHOR!r} or {_SHARED!r}"
            )
        if kind == _SHARED and not anchors:
            raise InvalidArgument(
                f"layer {layer} shares a selection, but no layer before it selects"
            )
        anchors.append(layer if kind == _ANCHOR else anchors[-1])
    return tuple(anchors)


def _softmax_scale(config: EngineConfig) -> float:
    scale = float((config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5)
    rope = config.rope_parameters or {}
    mscale = rope.get("mscale_all_dim", 0)
    if rope.get("rope_type", "default") == "default" or not mscale or rope["factor"] <= 1:
        return scale
    # YaRN's temperature, arXiv:2309.00071 section 3.4, applied to queries and keys alike
    return scale * float(0.1 * mscale * math.log(rope["factor"]) + 1.0) ** 2
