"""What `--hisparse-config` says: SGLang's own keys of that option, and ours beside them."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.config.file import build_dataclass
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require

_ADAPTIVE = "adaptive"
# keys that SGLang's HiSparse reads from the same option, and looks at few of their values: by the
# most that each may be; all are integers from 1 on
_ENGINE: dict[str, int | None] = {
    "top_k": None,
    "device_buffer_size": None,
    "host_to_device_ratio": None,
    "swap_in_block_size": 1024,
}
_ENGINE_TOPK = 2048  # its default
ENGINE_KEYS = tuple(_ENGINE)
# of `SelectionConfig`: a wrapper audits nothing, and `min_tokens` is the gate
_NOT_OFFERED = {"gate", "audit_one_in"}
SELECTION_KEYS = tuple(
    field.name for field in fields(SelectionConfig) if field.name not in _NOT_OFFERED
)
# of `SglangSettings`, by JSON's types
_OWN: dict[str, tuple[tuple[type, ...], str]] = {
    "min_tokens": ((int,), "an integer"),
    "hot_share": ((int, float), "a number"),
    "offload_index_keys": ((bool,), "true or false"),
    "window_pages": ((int,), "an integer"),
    "share_host_pool": ((bool,), "true or false"),
}
_OFFLOAD_KEYS = {*ENGINE_KEYS, "hot_share", "window_pages", "share_host_pool"}
_MOST_HEADS = 128  # of an indexer: models have 32 or 64
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
        offload_index_keys: with HiSparse index keys of decoding requests are on the host, too.
        window_pages: then so many pages of them of a request and anchor layer are on the device,
            and its open page; None = half as many again as are kept.
        share_host_pool: with HiSparse ranks of one host that have the same rows have one host pool.
    """

    selection: SelectionConfig
    min_tokens: int = 16384
    hot_share: float = 0.5
    offload_index_keys: bool = False
    window_pages: int | None = None
    share_host_pool: bool = True

    def __post_init__(self) -> None:
        require(self.min_tokens >= 0, f"min_tokens is {self.min_tokens}, must be >= 0")
        message = f"hot_share is {self.hot_share}, must be above 0 and below 1"
        require(0 < self.hot_share < 1, message)
        pages, routed = self.window_pages, self.selection.routed_heads
        require(pages is None or pages >= 1, f"window_pages is {pages}, must be >= 1")
        require(routed <= _MOST_HEADS, f"routed_heads is {routed}, must be <= {_MOST_HEADS}")
        if self.offload_index_keys:
            self._check_windows()

    def _check_windows(self) -> None:
        source, kept = self.selection.index_source, self.selection.num_kept_blocks
        needed = "offload_index_keys needs a selection by pages: hisa, adaptive"
        require(source == "hisa", f"index_source is {source}, which scans every key; {needed}")
        found = self.pages_of_window
        require(found >= kept, f"window_pages is {found}, num_kept_blocks needs {kept}")

    @property
    def pages_of_window(self) -> int:
        """Pages of index keys of a request and anchor layer that come and go."""
        kept = self.selection.num_kept_blocks
        return kept + kept // 2 if self.window_pages is None else self.window_pages


def read_settings(text: str | None) -> SglangSettings:
    """The settings of an option's JSON; None and "" are the defaults.

    `index_source` may also be "adaptive", which is "hisa" with that budget.

    Raises:
        InvalidArgument: it is no JSON object, or has a key twice, or a key is unknown (the message
            lists those that are known), or a value does not fit, SGLang's own included.
    """
    values = _object(text)
    known = {*ENGINE_KEYS, *SELECTION_KEYS, *_OWN}
    unknown = sorted(set(values) - known)
    if unknown:
        listed = ", ".join(sorted(known))
        raise InvalidArgument(f"hisparse-config has {', '.join(unknown)}; known keys: {listed}")
    _check_engine_values(values)
    own = {name: values[name] for name in _OWN if name in values}
    for name, value in own.items():
        kinds, needed = _OWN[name]
        if type(value) not in kinds:
            raise InvalidArgument(f"hisparse-config: {name} is {value!r}, needs {needed}")
    selection = {name: values[name] for name in SELECTION_KEYS if name in values}
    try:
        made = build_dataclass(SelectionConfig, _selection(selection), "")
        return SglangSettings(made, **own)
    except ValueError as error:
        raise InvalidArgument(f"hisparse-config: {error}") from None


def unused_without_offload(text: str | None) -> tuple[str, ...]:
    """Keys of an option's JSON that have no effect without HiSparse, in their order."""
    return tuple(name for name in _object(text) if name in _OFFLOAD_KEYS)


def _check_engine_values(values: Mapping[str, Any]) -> None:
    for name, most in _ENGINE.items():
        if name not in values:
            continue
        found = values[name]
        message = f"hisparse-config: {name} is {found!r}"
        require(type(found) is int, f"{message}, needs an integer")
        require(found >= 1, f"{message}, must be >= 1")
        require(most is None or found <= most, f"{message}, must be <= {most}")
    topk = values.get("top_k", _ENGINE_TOPK)
    found = values.get("device_buffer_size", 2 * topk)  # SGLang's default
    message = f"hisparse-config: device_buffer_size is {found}, top_k needs {topk}"
    require(found >= topk, message)


def _object(text: str | None) -> Mapping[str, Any]:
    if not text:
        return {}
    try:
        values = json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"hisparse-config is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidArgument(f"hisparse-config is a {type(values).__name__}, needs an object")
    return values


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that it has twice Python's own reader takes the last."""
    counts = Counter(name for name, _ in pairs)
    repeated = ", ".join(name for name, count in counts.items() if count > 1)
    require(not repeated, f"hisparse-config has {repeated} more than once, needs each key once")
    return dict(pairs)


def _selection(values: dict[str, Any]) -> dict[str, Any]:
    source = values.get("index_source", "hisa")
    if source == "given":
        raise InvalidArgument("index_source is 'given', and here nobody gives a list")
    if source == _ADAPTIVE:
        budget = values.get("budget", _ADAPTIVE)
        require(budget == _ADAPTIVE, f"index_source is adaptive, budget is {budget!r}")
        values = values | {"index_source": "hisa", "budget": _ADAPTIVE}
    return _DEFAULTS | {"gate": "off"} | values
