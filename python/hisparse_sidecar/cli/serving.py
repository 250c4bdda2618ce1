"""What `hisparse serve` serves: one configuration from a checkpoint, a file and flags."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.file import build_config, merge_values, read_values


def sidecar_config(
    model_dir: Path | None, config_file: Path | None, flags: Mapping[str, Any]
) -> SidecarConfig:
    """Merge the sources of a configuration.

    Args:
        model_dir: checkpoint folder whose config.json gives `model`.
        config_file: JSON or TOML file; wins over the checkpoint.
        flags: nested values; they win over both.

    Raises:
        ValueError: see `build_config`; or `model` is given by no source.
        OSError: a file cannot be read.
    """
    values: dict[str, Any] = {"model": _model_values(model_dir)} if model_dir else {}
    if config_file:
        values = merge_values(values, read_values(config_file))
    return build_config(merge_values(values, flags))


def _model_values(model_dir: Path) -> dict[str, Any]:
    from hisparse_sidecar.engines.transformers.checkpoint import checkpoint_shape

    return asdict(checkpoint_shape(model_dir))
