"""Which ways of running SGLang our selection does not cover: there SGLang's own runs."""

from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS

# options under which index keys come to pages by other ways than the hooked writers, or lie
# elsewhere than in one pool's pages
_OPTIONS = {
    "enable_hierarchical_cache": "hierarchical cache",
    "enable_unified_cache_external_linker": "external cache linker",
    "enable_lmcache": "LMCache",
    "enable_flexkv": "FlexKV",
    "enable_prefill_cp": "prefill context parallel",
    "enable_dsa_cache_layer_split": "index keys split by layer",
    "enable_kv_cache_sharding": "sharded KV cache",
}

_OUR_TREE = "hisparse"  # with offload alone, whose start checks it


def uncovered_process(server_args: Any, pool: Any) -> str | None:  # noqa: ANN401
    """Why no call of a process can be ours, by its options and its pool; None = some can.

    Args:
        server_args: SGLang's `ServerArgs`.
        pool: its `DSATokenToKVPool`.
    """
    for name, reason in _OPTIONS.items():
        if getattr(server_args, name, False):
            return reason
    tree = getattr(server_args, "radix_cache_backend", None)
    if tree not in (None, _OUR_TREE):
        return "another prefix cache"
    if server_args.disaggregation_mode != "null":
        return "disaggregated prefill and decode"
    if getattr(server_args, "dcp_size", 1) > 1:
        return "decode context parallel"
    if getattr(pool, "index_kpool", 1) != 1:
        return "index keys of several tokens"
    if pool.page_size != PAGE_TOKENS:
        return f"pages of {pool.page_size} tokens"
    return None
