"""What of SGLang the prefix cache relies on, with the signatures that we know."""

from hisparse_sidecar.engines.sglang.targets import Target, methods_of
from hisparse_sidecar.engines.sglang.versions import NEWEST, OLDEST
from hisparse_sidecar.requirements import require

_CACHE = "sglang.srt.mem_cache."


PREFIX_TARGETS = (
    *methods_of(
        _CACHE + "radix_cache",
        "RadixCache",
        __init__="(self, params)",
        reset="(self)",
        match_prefix="(self, params)",
        insert="(self, params)",
        evict="(self, params)",
        evictable_size="(self)",
        inc_lock_ref="(self, node)",
        dec_lock_ref="(self, node, params=)",
        _split_node="(self, key, child, split_len)",
        _delete_leaf="(self, node)",
    ),
    Target(
        _CACHE + "base_prefix_cache",
        "InitLoadBackParams",
        ("best_match_node", "req"),
    ),
    Target(
        _CACHE + "cache_init_params",
        "CacheInitParams",
        ("disable", "is_eagle", "page_size", "token_to_kv_pool_allocator"),
    ),
    Target(
        _CACHE + "registry",
        "TreeCacheBuildContext",
        ("params", "is_hybrid_swa", "is_hybrid_ssm", "enable_hierarchical_cache"),
    ),
    Target(_CACHE + "registry", "register_radix_cache_backend", ("(name, factory)",)),
    Target(_CACHE + "registry", "registered_radix_cache_backends", ("()",)),
)


def check_prefix_version(found: str) -> None:
    """Raises InvalidArgument unless the cache knows this SGLang's words.

    They changed between the two versions, and not all at once.
    """
    known = (OLDEST, NEWEST)
    message = f"sglang is {found}, the prefix cache needs {' or '.join(known)}"
    require(found.startswith(known), message)
