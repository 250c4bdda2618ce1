"""Hooks where SGLang sizes and makes its pool: with index offload its index keys take less.

They must be in place before the model runner makes its pool, so they come with the coordinator's
name, when plug-ins are loaded. Without index offload they change nothing.
"""

import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT
from hisparse_sidecar.engines.sglang.install import Function, is_hooked, replace_once
from hisparse_sidecar.engines.sglang.pool.index_sizes import IndexSizes
from hisparse_sidecar.engines.sglang.settings import SglangSettings, read_settings
from hisparse_sidecar.engines.sglang.targets import Target, check_targets, resolve
from hisparse_sidecar.engines.sglang.unsupported import layer_groups
from hisparse_sidecar.errors import WrongState

_SRT = "sglang.srt."
_HISPARSE_POOL = "HiSparseDSATokenToKVPool"
POOL_TARGETS = (
    Target(
        _SRT + "model_executor.pool_configurator",
        "DefaultPoolConfigurator._compute_cell_size",
        ("(self, kvc, num_layers)",),
        is_replaced=True,
    ),
    Target(
        _SRT + "mem_cache.memory_pool",
        "DSATokenToKVPool.__init__",
        (
            "(self, size, page_size, kv_lora_rank, dtype, qk_rope_head_dim, layer_num, device, "
            "index_head_dim, enable_memory_saver, kv_cache_dim, start_layer=, end_layer=, "
            "index_buf_size=)",
            "(self, size, page_size, kv_lora_rank, dtype, qk_rope_head_dim, layer_num, device, "
            "index_head_dim, enable_memory_saver, kv_cache_dim, start_layer=, end_layer=, "
            "index_buf_size=, index_kpool=, index_kpool_compress=, tail_extra_slots=, "
            "max_running_requests=, skip_topk_layers=, dcp_replicated=)",
        ),
        is_replaced=True,
    ),
)


def hook_pool(is_asked_for: Callable[[Any], bool]) -> None:
    """Puts the hooks in their places, once a process that has loaded SGLang's scheduler.

    Args:
        is_asked_for: of SGLang's `ServerArgs`, whether our backend decodes with HiSparse.
    """
    for module, path, hook_of in _HOOKS:
        owner: Any = None
        with suppress(ImportError):
            owner = import_module(_SRT + module)  # SGLang imports some of them when it uses them
        *names, name = path.split(".")
        for part in names:
            owner = getattr(owner, part, None)
        if owner is None or not hasattr(owner, name):
            continue  # `check_pool` misses it, if it must be there
        replace_once(owner, name, functools.partial(hook_of, is_asked_for=is_asked_for))


def check_pool(server_args: Any, settings: SglangSettings, pool: Any) -> None:  # noqa: ANN401
    """Looks whether a pool was made with the hooks in their places.

    Raises:
        InvalidArgument: this SGLang is not one that we know.
        WrongState: it was not; says what was found and needed.
    """
    check_targets(POOL_TARGETS)
    for target in POOL_TARGETS:
        if not is_hooked(resolve(target)[2]):
            raise WrongState(f"{target.path} is not ours: was the plug-in loaded late?")
    rows = index_sizes(server_args, settings).index_rows(pool.size)
    needed = rows // PAGE_TOKENS + 1
    found = max(len(pages) for pages in pool.index_k_with_scale_buffer)
    if found != needed:
        message = f"the pool has {found} pages of index keys, needs {needed}"
        raise WrongState(f"{message}: was the plug-in loaded late?")


def index_sizes(server_args: Any, settings: SglangSettings) -> IndexSizes:  # noqa: ANN401
    """Sizes of the index side by SGLang's options and ours."""
    config = _engine_config(server_args)
    hot, per_row = config.device_buffer_size, config.host_to_device_ratio
    return IndexSizes(settings.hot_share, hot, settings.pages_of_window, per_row)


def _engine_config(server_args: Any) -> Any:  # noqa: ANN401
    """SGLang's own reading of `--hisparse-config`; 0.5.17 asks for the arguments."""
    from sglang.srt.mem_cache.sparsity import parse_hisparse_config

    asks = inspect.signature(parse_hisparse_config).parameters
    return parse_hisparse_config(server_args) if asks else parse_hisparse_config()


def _offloading(server_args: Any, is_asked_for: Callable[[Any], bool]) -> SglangSettings | None:  # noqa: ANN401
    """The settings, where they say that index keys are offloaded."""
    if server_args is None or not is_asked_for(server_args):
        return None
    settings = read_settings(server_args.hisparse_config)
    return settings if settings.offload_index_keys else None


# -- hooks ------------------------------------------------------------------------------------


def _compute_cell_size(original: Function, is_asked_for: Callable[[Any], bool]) -> Function:
    @functools.wraps(original)
    def hook(self: Any, kvc: Any, num_layers: int) -> int:  # noqa: ANN401
        stock = int(original(self, kvc, num_layers))
        settings = _offloading(kvc.server_args, is_asked_for)
        if settings is None or kvc.is_draft_worker:
            return stock
        sizes = index_sizes(kvc.server_args, settings)
        index_bytes = int(INDEX_LAYOUT.row_bytes * num_layers * sizes.slots_per_row)
        groups = num_groups(kvc.model_config.hf_text_config, num_layers)
        return stock - index_bytes + sizes.cell_bytes(num_layers, groups, 0)

    return hook


def num_groups(hf_text_config: Any, num_layers: int) -> int:  # noqa: ANN401
    """Layers of a model that select, and have index keys."""
    from sglang.srt.managers import hisparse_coordinator

    shares_of = getattr(hisparse_coordinator, "resolve_shared_index_layers", None)
    shares = None if shares_of is None else shares_of(hf_text_config=hf_text_config)
    return layer_groups(num_layers, shares)[-1] + 1


def _pool_init(original: Function, is_asked_for: Callable[[Any], bool]) -> Function:
    @functools.wraps(original)
    def hook(self: Any, size: int, *rest: Any, **named: Any) -> None:  # noqa: ANN401
        server_args = _server_args() if type(self).__name__ == _HISPARSE_POOL else None
        settings = _offloading(server_args, is_asked_for)
        if settings is not None:
            named["index_buf_size"] = index_sizes(server_args, settings).index_rows(size)
        original(self, size, *rest, **named)

    return hook


def _should_elide(original: Function, is_asked_for: Callable[[Any], bool]) -> Function:
    @functools.wraps(original)
    def hook(*, is_draft_worker: bool) -> bool:
        if is_draft_worker or not _offloading(_server_args(), is_asked_for):
            return bool(original(is_draft_worker=is_draft_worker))
        return True

    return hook


def _server_args() -> Any:  # noqa: ANN401
    from sglang.srt.runtime_context import get_server_args

    return get_server_args()


_HOOKS: tuple[tuple[str, str, Callable[..., Function]], ...] = (
    (
        "model_executor.pool_configurator",
        "DefaultPoolConfigurator._compute_cell_size",
        _compute_cell_size,
    ),
    ("mem_cache.memory_pool", "DSATokenToKVPool.__init__", _pool_init),
    # 0.5.17 has none: every layer has index keys there
    ("mem_cache.kv_cache_configurator", "_should_elide_dsa_index_k", _should_elide),
)
