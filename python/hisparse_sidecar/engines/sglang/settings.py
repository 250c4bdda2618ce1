"""What `--hisparse-config` says: SGLang's own keys of that option, and ours beside them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hisparse_sidecar.config import SelectionConfig, require
from hisparse_sidecar.config_file import build_dataclass
from hisparse_sidecar.errors import InvalidArgument

_ADAPTIVE = "adaptive"
# keys that SGLang's HiSparse reads from the same option; they are its own affair
ENGINE_KEYS = ("top_k", "device_buffer_size", "host_to_device_ratio", "swap_in_block_size")
# of `SelectionConfig`: a wrapper audits nothing, and `min_tokens` is the gate
_NOT_OFFERED = {"gate", "audit_one_in"}
SELECTION_KEYS = tuple(
    field.name for field in fields(SelectionConfig) if field.name not in _NOT_OFFERED
)
# as many tokens as HISA's defaults, in blocks of one page
_DEFAULTS = {"num_kept_blocks": 128, "max_blocks": 512}


@dataclass(frozen=True)
class SglangSettings:
    """How the backend selects.

    Attributes:
        selection: whose tokens are chosen; its blocks are pages of 64 tokens.
        min_tokens: batches without a longer sequence take SGLang's own path; a CUDA graph counts as
            long as the context that it is captured for.
        hot_share: most of the device pool's rows that hot buffers may take, with HiSparse.
    """

    selection: SelectionConfig
    min_tokens: int = 16384
    hot_share: float = 0.5

    def __post_init__(self) -> None:
        require(self.min_tokens >= 0, f"min_tokens is {self.min_tokens}, must be >= 0")
        message = f"hot_share is {self.hot_share}, must be above 0 and below 1"
        require(0 < self.hot_share < 1, message)


def read_settings(text: str | None) -> SglangSettings:
    """The settings of an option's JSON; None and "" are the defaults.

    `index_source` may also be "adaptive", which is "hisa" with that budget.

    Raises:
        InvalidArgument: it is no JSON object, or a key is unknown (the message lists those that are
            known), or a value does not fit.
    """
    values = _object(text)
    known = {*ENGINE_KEYS, *SELECTION_KEYS, "min_tokens", "hot_share"}
    unknown = sorted(set(values) - known)
    if unknown:
        listed = ", ".join(sorted(known))
        raise InvalidArgument(f"hisparse-config has {', '.join(unknown)}; known keys: {listed}")
    min_tokens = values.get("min_tokens", SglangSettings.min_tokens)
    if type(min_tokens) is not int:
        raise InvalidArgument(f"hisparse-config: min_tokens is {min_tokens!r}, needs an integer")
    hot_share = values.get("hot_share", SglangSettings.hot_share)
    if type(hot_share) not in (int, float):
        raise InvalidArgument(f"hisparse-config: hot_share is {hot_share!r}, needs a number")
    selection = {name: values[name] for name in SELECTION_KEYS if name in values}
    try:
        made = build_dataclass(SelectionConfig, _selection(selection), "")
        return SglangSettings(made, min_tokens, hot_share)
    except ValueError as error:
        raise InvalidArgument(f"hisparse-config: {error}") from None


def _object(text: str | None) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"hisparse-config is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument(f"hisparse-config is a {type(values).__name__}, needs an object")
    return values


def _selection(values: dict[str, Any]) -> dict[str, Any]:
    source = values.get("index_source", "hisa")
    if source == "given":
        raise InvalidArgument("index_source is 'given', and here nobody gives a list")
    if source == _ADAPTIVE:
        budget = values.get("budget", _ADAPTIVE)
        require(budget == _ADAPTIVE, f"index_source is adaptive, budget is {budget!r}")
        values = values | {"index_source": "hisa", "budget": _ADAPTIVE}
    return _DEFAULTS | {"gate": "off"} | values
