"""What single layers change in the default selection, from a file."""

from pathlib import Path

from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.config.file import change_selection, read_values
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require


def read_profile(config: SidecarConfig) -> dict[int, SelectionConfig]:
    """The selection of each layer that `config.layer_profile` names; none without a profile.

    The file is TOML (or JSON with the same names): a table `layers` of tables, one a layer, with
    the fields of `SelectionConfig` that differ from `config.selection`.

        [layers.0]
        index_source = "flat"
        [layers.3]
        budget = "adaptive"
        max_blocks = 512

    What fits HISA alone is not dropped by itself: where `config.selection` has a budget or routed
    stages, a layer of another index source says budget = "fixed" or routed_stages = "none", too.

    Raises:
        InvalidArgument: the file cannot be read, a key, a layer or a value is none that fits, or
            the layer shares another's selection; the message names the file and the key.
    """
    if config.layer_profile is None:
        return {}
    path = Path(config.layer_profile)
    try:
        source = config.selection.index_source
        require(source != "given", "selection.index_source is 'given', a profile needs another")
        values = read_values(path)
        require(set(values) == {"layers"}, f"keys are {sorted(values)}, need ['layers']")
        layers = values["layers"]
        require(isinstance(layers, dict), f"key layers is {layers!r}, need a table of layers")
        return {_layer(config, name): _selection(config, name, layers[name]) for name in layers}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"layer profile {path}: {error}") from None


def _layer(config: SidecarConfig, name: str) -> int:
    model = config.model
    known = [str(layer) for layer in model.anchors]
    message = f"key layers.{name} names no layer that selects, those are {', '.join(known)}"
    require(name in known, message)
    return int(name)


def _selection(config: SidecarConfig, name: str, changes: object) -> SelectionConfig:
    prefix = f"layers.{name}"
    if not isinstance(changes, dict):
        raise InvalidArgument(f"key {prefix} is {changes!r}, need a table of settings")
    try:
        selection = change_selection(config.selection, changes, prefix + ".")
        selection.check_for(config.model, config.block_tokens)
    except InvalidArgument as error:  # of a value out of range: it does not name the layer
        raise InvalidArgument(f"{prefix}: {error}") from None
    message = f"{prefix}.index_source is 'given': positions are given to all layers or to none"
    require(selection.index_source != "given", message)
    return selection
