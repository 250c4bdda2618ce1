"""SidecarConfig as a message, and back."""

from dataclasses import asdict, fields
from typing import cast

from hisparse_sidecar._proto.hisparse.v1 import sidecar_pb2
from hisparse_sidecar.config import Backend, ModelShape, SelectionConfig, SidecarConfig, TiersConfig
from hisparse_sidecar.wire.selections import decode_selection, encode_selection

_PLAIN = (
    "host_pages",
    "max_sequences",
    "kv_layout",
    "index_layout",
    "device",
    "backend",
    "window_blocks",
    "max_step_rows",
    "warm_rows",
    "stage_rows",
    "block_tokens",
    "max_logits_bytes",
    "split_keys",
    "overlap_rows",
    "huge_pages",
    "numa_node",
    "layer_profile",
)
_OPTIONAL_TIERS = ("file_directory", "remote_master", "secret_file", "recompute_tokens_per_second")


def encode_config(config: SidecarConfig) -> sidecar_pb2.SidecarConfig:
    """The configuration, with its default hot slots resolved."""
    model = config.model
    return sidecar_pb2.SidecarConfig(
        model=sidecar_pb2.ModelShape(
            num_layers=model.num_layers,
            anchor_of=model.anchor_of,
            index_heads=model.index_heads,
            topk=model.topk,
            softmax_scale=model.softmax_scale,
        ),
        hot_slots=config.default_hot_slots,
        selection=encode_selection(config.selection),
        tiers=sidecar_pb2.TiersConfig(**asdict(config.tiers)),
        **{name: getattr(config, name) for name in _PLAIN},
    )


def decode_config(message: sidecar_pb2.SidecarConfig) -> SidecarConfig:
    """The configuration that `encode_config` was given."""
    model = message.model
    return SidecarConfig(
        model=ModelShape(
            num_layers=model.num_layers,
            anchor_of=tuple(model.anchor_of),
            index_heads=model.index_heads,
            topk=model.topk,
            softmax_scale=model.softmax_scale,
        ),
        host_pages=message.host_pages,
        max_sequences=message.max_sequences,
        kv_layout=message.kv_layout,
        index_layout=message.index_layout,
        device=message.device,
        backend=cast(Backend, message.backend),
        hot_slots=message.hot_slots,
        window_blocks=message.window_blocks,
        max_step_rows=message.max_step_rows,
        warm_rows=message.warm_rows,
        stage_rows=message.stage_rows,
        block_tokens=message.block_tokens,
        max_logits_bytes=message.max_logits_bytes,
        split_keys=message.split_keys if message.HasField("split_keys") else None,
        overlap_rows=message.overlap_rows,
        selection=decode_selection(message.selection, SelectionConfig()),
        huge_pages=message.huge_pages,
        numa_node=message.numa_node if message.HasField("numa_node") else None,
        layer_profile=message.layer_profile if message.HasField("layer_profile") else None,
        tiers=_decode_tiers(message.tiers),
    )


def _decode_tiers(message: sidecar_pb2.TiersConfig) -> TiersConfig:
    def value(name: str) -> object:
        unset = name in _OPTIONAL_TIERS and not message.HasField(name)
        return None if unset else getattr(message, name)

    return TiersConfig(**{field.name: value(field.name) for field in fields(TiersConfig)})  # type: ignore[arg-type]
