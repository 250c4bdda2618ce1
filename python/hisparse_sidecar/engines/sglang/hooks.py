"""Stand between SGLang and its own functions: lists from our selection, pooled keys kept up.

Each hook has its target's parameters, which `check_targets` has compared before.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from hisparse_sidecar.engines.sglang.beside import coordinator_of
from hisparse_sidecar.engines.sglang.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.install import Function, install
from hisparse_sidecar.engines.sglang.offload import BACKEND_NAME
from hisparse_sidecar.engines.sglang.pooled_pages import PooledPages
from hisparse_sidecar.engines.sglang.selection import BackendSelection, IndexerCall
from hisparse_sidecar.engines.sglang.targets import TARGETS

_STANDS_FOR = "dsa"
_POOLED = "_hisparse_pooled_pages"


def pooled_pages_of(pool: object) -> PooledPages | None:
    """The pooled keys that are kept beside a pool; None = none are."""
    found = getattr(pool, _POOLED, None)
    assert found is None or isinstance(found, PooledPages)
    return found


def keep_beside(pool: object, pooled: PooledPages) -> None:
    """From now on the pool's writers keep these pooled keys up to date."""
    setattr(pool, _POOLED, pooled)


def install_hooks() -> tuple[str, ...]:
    """Puts every hook in its place, once a process; the names of what was replaced.

    Raises:
        WrongState: a hook is not in its place afterwards; says which.
    """
    return install(TARGETS, _HOOKS)


# -- selection --------------------------------------------------------------------------------


def _get_topk_paged(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        forward_batch: Any,  # noqa: ANN401
        layer_id: int,
        q_fp8: torch.Tensor,
        weights: torch.Tensor,
        metadata: Any,  # noqa: ANN401
    ) -> torch.Tensor | None:
        given = forward_batch, metadata, layer_id, q_fp8, weights
        found = _selected(IndexerCall("paged", self, _pool(), *given))
        if found is None:
            found = original(self, forward_batch, layer_id, q_fp8, weights, metadata)
        return found

    return hook


def _get_topk_ragged(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        enable_dual_stream: bool,
        forward_batch: Any,  # noqa: ANN401
        layer_id: int,
        q_fp8: torch.Tensor,
        weights: torch.Tensor,
        metadata: Any,  # noqa: ANN401
        topk_result: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        given = forward_batch, metadata, layer_id, q_fp8, weights
        found = _selected(IndexerCall("ragged", self, _pool(), *given))
        if found is None:
            found = original(
                self,
                enable_dual_stream,
                forward_batch,
                layer_id,
                q_fp8,
                weights,
                metadata,
                topk_result,
            )
        elif topk_result is not None:
            topk_result[: len(found)] = found
            found = topk_result
        return found

    return hook


def _selected(call: IndexerCall) -> torch.Tensor | None:
    """Our lists, where the backend of the running pass is ours and takes the call."""
    selection = getattr(call.metadata, "hisparse", None)
    return selection.select(call) if isinstance(selection, BackendSelection) else None


# -- writers of index keys --------------------------------------------------------------------


def _store_index_k_cache(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        forward_batch: Any,  # noqa: ANN401
        layer_id: int,
        key: torch.Tensor,
        *,
        act_quant: Function | None = None,
        out_cache_loc: torch.Tensor | None = None,
    ) -> None:
        named = {"act_quant": act_quant, "out_cache_loc": out_cache_loc}
        original(self, forward_batch, layer_id, key, **named)
        _written(forward_batch, layer_id, out_cache_loc)

    return hook


def _fused_k_prepare_and_store(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        key_raw: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: Any,  # noqa: ANN401
        layer_id: int,
        act_quant: Function | None,
        out_cache_loc: torch.Tensor | None = None,
    ) -> None:
        given = key_raw, positions, forward_batch, layer_id, act_quant, out_cache_loc
        original(self, *given)
        _written(forward_batch, layer_id, out_cache_loc)

    return hook


def _written(forward_batch: Any, layer: int, row_ids: torch.Tensor | None) -> None:  # noqa: ANN401
    pooled = pooled_pages_of(_pool())
    if pooled is not None:
        pooled.rows_written(layer, forward_batch.out_cache_loc if row_ids is None else row_ids)


def _move_kv_cache(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:  # noqa: ANN401
        original(self, tgt_loc, src_loc)
        _written_in_all_layers(self, tgt_loc)

    return hook


def _load_cpu_copy(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        kv_cache_cpu_dict: Any,  # noqa: ANN401
        indices: torch.Tensor,
        *rest: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> None:
        original(self, kv_cache_cpu_dict, indices, *rest, **named)
        _written_in_all_layers(self, indices)

    return hook


def _clear(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any) -> None:  # noqa: ANN401
        original(self)
        coordinator = coordinator_of(self)
        if coordinator is not None:
            coordinator.pool_was_cleared()

    return hook


def _check_decode_mem(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any, selected_indices: list[int] | None = None) -> bool:  # noqa: ANN401
        if not isinstance(self.hisparse_coordinator, HiSparseCoordinator):
            return bool(original(self, selected_indices))
        wanted = self.new_tokens_required_next_decode(selected_indices)
        return self.hisparse_coordinator.has_slots_for(wanted)

    return hook


def _written_in_all_layers(pool: object, row_ids: torch.Tensor) -> None:
    pooled = pooled_pages_of(pool)
    if pooled is not None and row_ids.numel():
        pooled.rows_written_in_all_layers(row_ids.flatten())


def _pool() -> object:
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    return get_token_to_kv_pool()


# -- names ------------------------------------------------------------------------------------


def _create_draft_backend(original: Function) -> Function:
    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        backend_name: str,
        backend_map: dict[str, Function],
        *rest: Any,  # noqa: ANN401
        **named: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        joined = backend_map | {BACKEND_NAME: backend_map[_STANDS_FOR]}
        return original(self, backend_name, joined, *rest, **named)

    return hook


def _fuse_rope_for_trtllm_mla(original: Function) -> Function:
    @functools.wraps(original)
    def hook(self: Any, forward_batch: Any) -> bool:  # noqa: ANN401
        name = self.current_attention_backend
        if name != BACKEND_NAME:
            return bool(original(self, forward_batch))
        self.current_attention_backend = _STANDS_FOR
        try:
            return bool(original(self, forward_batch))
        finally:
            self.current_attention_backend = name

    return hook


_HOOKS: dict[str, Callable[[Function], Function]] = {
    "Indexer._get_topk_paged": _get_topk_paged,
    "Indexer._get_topk_ragged": _get_topk_ragged,
    "Indexer._store_index_k_cache": _store_index_k_cache,
    "Indexer._fused_k_prepare_and_store": _fused_k_prepare_and_store,
    "DSATokenToKVPool.move_kv_cache": _move_kv_cache,
    "DSATokenToKVPool.load_cpu_copy": _load_cpu_copy,
    "HiSparseTokenToKVPoolAllocator.clear": _clear,
    "ScheduleBatch.check_decode_mem": _check_decode_mem,
    "DraftBackendFactory._create_backend": _create_draft_backend,
    "DeepseekMLAForwardMixin._fuse_rope_for_trtllm_mla": _fuse_rope_for_trtllm_mla,
}
