"""Makes the prefix cache of offload where SGLang asks for a tree: `--radix-cache-backend hisparse`.

SGLang's HiSparse insists on `--disable-radix-cache`, which stays: it is about SGLang's own trees. A
tree by name comes before that option, in all versions that we know, and nothing is relaxed for it.
"""

from dataclasses import replace
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.engines.sglang.offload.beside import coordinator_of
from hisparse_sidecar.engines.sglang.offload.no_prefixes import NoPrefixes
from hisparse_sidecar.engines.sglang.prefix.targets import PREFIX_TARGETS, check_prefix_version
from hisparse_sidecar.engines.sglang.settings import SglangSettings
from hisparse_sidecar.engines.sglang.targets import check_targets
from hisparse_sidecar.engines.sglang.versions import installed_versions
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.requirements import require


def check_prefix_options(
    server_args: Any,  # noqa: ANN401
    settings: SglangSettings,
    name: str,
) -> bool:
    """Whether the prefix cache is asked for.

    Args:
        server_args: SGLang's `ServerArgs`.
        settings: of `--hisparse-config`.
        name: of our cache.

    Raises:
        InvalidArgument: another cache is; an option does not fit ours; this SGLang does not.
    """
    found = server_args.radix_cache_backend
    require(found in (None, name), f"radix_cache_backend is {found}, offload needs {name} or none")
    if found is None:
        return False
    message = "offload_index_keys is true, the prefix cache needs index keys at SGLang's slots"
    require(not settings.offload_index_keys, message)
    check_prefix_version(installed_versions().sglang)
    check_targets(PREFIX_TARGETS)
    return True


def register_prefix_cache(name: str) -> None:
    """Lets SGLang find our cache by its name; a second call does nothing."""
    from sglang.srt.mem_cache.registry import (
        register_radix_cache_backend,
        registered_radix_cache_backends,
    )

    if name not in registered_radix_cache_backends():
        register_radix_cache_backend(name, make_prefix_cache)


def make_prefix_cache(context: Any) -> Any:  # noqa: ANN401
    """The cache, over the coordinator of the context's allocator; SGLang calls it once.

    Raises:
        InvalidArgument: what the tree would hold is of another kind.
        WrongState: there is no coordinator of ours, or it has a cache already.
    """
    params = context.params
    require(not params.is_eagle, "the tree is EAGLE's, the prefix cache needs single tokens")
    pages = params.page_size
    require(pages == PAGE_TOKENS, f"the tree has pages of {pages} tokens, needs {PAGE_TOKENS}")
    kinds = context.is_hybrid_swa, context.is_hybrid_ssm, context.enable_hierarchical_cache
    message = f"sliding windows, states, a hierarchical cache: {kinds}, the prefix cache needs none"
    require(not any(kinds), message)
    coordinator = coordinator_of(params.token_to_kv_pool_allocator)
    if coordinator is None:
        raise WrongState("the prefix cache is for offload: 0 coordinators of ours, needs 1")
    if not isinstance(coordinator.prefixes, NoPrefixes):
        raise WrongState("the coordinator has 1 prefix cache already, needs 0")
    from hisparse_sidecar.engines.sglang.prefix.tree import HostRadixCache

    cache = HostRadixCache(
        replace(params, disable=False), coordinator.tier.cached, coordinator.wait_for_passes
    )
    coordinator.prefixes = cache
    return cache
