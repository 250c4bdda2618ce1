"""Puts our coordinator where SGLang makes its own: with `--enable-hisparse` and our backend.

SGLang makes the coordinator before it asks for a backend, and by a name that it looks up then, so
that name has to be ours from the time when plug-ins are loaded.
"""

import functools
import logging
import sys
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engines.sglang.calls import CallCounts
from hisparse_sidecar.engines.sglang.install import Function, install, replace_once
from hisparse_sidecar.engines.sglang.offload.beside import keep_coordinator
from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.offload.rank_agreement import has_same_rows
from hisparse_sidecar.engines.sglang.offload.scheduler_hooks import (
    SCHEDULER_HOOKS,
    most_prompt_tokens,
)
from hisparse_sidecar.engines.sglang.offload.stats import (
    Listener,
    StatsLine,
    StatsPublisher,
    folder_of,
)
from hisparse_sidecar.engines.sglang.pool.beside_pool import keep_written_rows
from hisparse_sidecar.engines.sglang.pool.pool_hooks import check_pool, hook_pool
from hisparse_sidecar.engines.sglang.prefix.cache import (
    check_prefix_options,
    register_prefix_cache,
)
from hisparse_sidecar.engines.sglang.settings import read_settings
from hisparse_sidecar.engines.sglang.start_checks import hook_start
from hisparse_sidecar.engines.sglang.targets import ALL_TARGETS, SCHEDULER_TARGETS, check_targets
from hisparse_sidecar.engines.sglang.unsupported import (
    check_index_offload,
    check_offload_options,
)
from hisparse_sidecar.engines.sglang.versions import check_sglang, installed_versions
from hisparse_sidecar.errors import WrongState

_LOG = logging.getLogger("hisparse_sidecar.sglang")
BACKEND_NAME = "hisparse"
COORDINATOR = "HiSparseCoordinator"
_COORDINATORS = "sglang.srt.managers.hisparse_coordinator"


def stand_in_for_coordinator() -> None:
    """Gives our factory the name of SGLang's class, in a process that has loaded its scheduler.

    Other processes make no coordinator. What the factory makes without our backend is SGLang's own.
    With it come the hooks of the pool, which is made before the coordinator, and that of the start.
    """
    module: Any = sys.modules.get(_COORDINATORS)
    if module is None:
        return
    hook_start(is_asked_for, BACKEND_NAME)
    hook_pool(is_asked_for)
    replace_once(module, COORDINATOR, _factory)


def _factory(stock: Function) -> Function:
    @functools.wraps(stock, updated=())
    def make(*args: Any, **named: Any) -> Any:  # noqa: ANN401
        from sglang.srt.runtime_context import get_server_args

        server_args = get_server_args()
        if not is_asked_for(server_args):
            return stock(*args, **named)
        return create_coordinator(server_args, *args, **named)

    return make


def is_asked_for(server_args: Any) -> bool:  # noqa: ANN401
    """Whether rows of decoding requests go to the host, and our backend decodes."""
    decodes = server_args.decode_attention_backend or server_args.attention_backend
    return bool(server_args.enable_hisparse and decodes == BACKEND_NAME)


def create_coordinator(server_args: Any, *args: Any, **named: Any) -> HiSparseCoordinator:  # noqa: ANN401
    """Our coordinator, of the arguments that SGLang's takes.

    Raises:
        InvalidArgument: this SGLang is not one that we know, or an option does not fit.
        RegionError: the host pool is not to be had.
        DeadlinePassed, TierDown: the ranks that share it did not come together.
        WrongState: SGLang's scheduler is not as we know it.
    """
    check_sglang(installed_versions().sglang)
    check_targets(ALL_TARGETS)
    check_offload_options(server_args)
    settings = read_settings(server_args.hisparse_config)
    has_prefixes = check_prefix_options(server_args, BACKEND_NAME)
    window_pages = None
    if settings.offload_index_keys:
        check_index_offload(server_args, BACKEND_NAME)
        window_pages = settings.pages_of_window
    made = HiSparseCoordinator(
        *args,
        **named,
        hot_share=settings.hot_share,
        window_pages=window_pages,
        share_host_pool=settings.share_host_pool and has_same_rows(server_args),
        listeners=_listeners(server_args),
    )
    keep_coordinator(made.token_to_kv_pool_allocator, made)
    keep_written_rows(made.token_to_kv_pool_allocator.get_kvcache())
    try:
        if settings.offload_index_keys:
            check_pool(server_args, settings, made.token_to_kv_pool_allocator.get_kvcache())
        most_prompt_tokens(made.prompt_rows)
        install(SCHEDULER_TARGETS, SCHEDULER_HOOKS)
        if has_prefixes:
            register_prefix_cache(BACKEND_NAME)
    except BaseException:
        made.destroy()
        raise
    _say_sizes(made)
    return made


def _listeners(server_args: Any) -> list[Listener]:  # noqa: ANN401
    """Who is told what offload does: the log, and where SGLang serves gRPC the server beside it."""
    found: list[Listener] = [StatsLine()]
    port = getattr(server_args, "grpc_port", None)
    if port is not None:
        found.append(StatsPublisher(folder_of(port)))
    return found


def _say_sizes(made: HiSparseCoordinator) -> None:
    config = made.tier.config
    host_gib = config.host_layout().num_bytes / 2**30
    _LOG.info(
        "hisparse: %d rows of the pool for hot buffers of %d, %d for prompts; "
        "%s host pool of %d tokens, %.1f GiB",
        *(config.num_rows, config.hot_slots, made.prompt_rows),
        *("a" if made.tier.writes_host else "rank 0's", config.host_pages * PAGE_TOKENS, host_gib),
    )
    if config.index is not None:
        part, groups = config.index, config.num_groups
        _LOG.info(
            "hisparse: index keys of %d of %d layers, in windows of %d pages, %d for each request",
            *(groups, len(config.groups), part.num_pages, part.slots_of_one),
        )


def check_coordinator(model_runner: Any) -> tuple[str, ...]:  # noqa: ANN401
    """Names of what was replaced for offload, for the start-up line; nothing without offload.

    Raises:
        WrongState: the runner has SGLang's coordinator, and should have ours.
    """
    if not is_asked_for(model_runner.server_args):
        return ()
    found = model_runner.hisparse_coordinator
    if not isinstance(found, HiSparseCoordinator):
        kind = f"{type(found).__module__}.{type(found).__name__}"
        raise WrongState(f"the coordinator is a {kind}, needs ours: was the plug-in loaded late?")
    return (*(target.name for target in SCHEDULER_TARGETS if target.is_replaced), COORDINATOR)


def note_selection(model_runner: Any, counts: CallCounts) -> None:  # noqa: ANN401
    """Adds a backend's counts to what the runner's coordinator tells, if that is ours."""
    coordinator = getattr(model_runner, "hisparse_coordinator", None)
    if isinstance(coordinator, HiSparseCoordinator):
        coordinator.selections.append(counts)
