"""Hooks of SGLang's writers: pooled keys are kept up, index keys and KV rows go where they lie.

Each hook has its target's parameters, which `check_targets` has compared before.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from hisparse_sidecar.engines.sglang.install import Function
from hisparse_sidecar.engines.sglang.pool.beside_pool import (
    offloaded_keys_of,
    pooled_pages_of,
    written_rows_of,
)


def running_pool() -> object:
    """The pool of the running pass."""
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool

    return get_token_to_kv_pool()


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
        def store(rows: torch.Tensor | None) -> None:
            named = {"act_quant": act_quant, "out_cache_loc": rows}
            original(self, forward_batch, layer_id, key, **named)

        _write(forward_batch, layer_id, out_cache_loc, store)

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
        def store(rows: torch.Tensor | None) -> None:
            original(self, key_raw, positions, forward_batch, layer_id, act_quant, rows)

        _write(forward_batch, layer_id, out_cache_loc, store)

    return hook


def _write(
    forward_batch: Any,  # noqa: ANN401
    layer: int,
    row_ids: torch.Tensor | None,
    store: Callable[[torch.Tensor | None], None],
) -> None:
    pool = running_pool()
    pooled, offloaded = pooled_pages_of(pool), offloaded_keys_of(pool)
    if pooled is None:
        store(row_ids)
    elif offloaded is not None:
        offloaded.write(layer, forward_batch, row_ids, store, pooled)
    else:
        store(row_ids)
        pooled.rows_written(layer, forward_batch.out_cache_loc if row_ids is None else row_ids)


def _set_mla_kv_buffer(original: Function) -> Function:
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool

    @functools.wraps(original)
    def hook(
        self: Any,  # noqa: ANN401
        layer: Any,  # noqa: ANN401
        loc: Any,  # noqa: ANN401
        *keys: torch.Tensor,
        **named: torch.Tensor,
    ) -> None:
        written = written_rows_of(self)
        if written is None:
            original(self, layer, loc, *keys, **named)
            return
        slots = loc if isinstance(loc, torch.Tensor) else loc.loc  # 0.5.23: or a `KVWriteLoc`
        rows = written.of(layer.layer_id, slots, self.translate_loc_to_hisparse_device)
        DSATokenToKVPool.set_mla_kv_buffer(self, layer, rows, *keys, **named)

    return hook


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


def _written_in_all_layers(pool: object, row_ids: torch.Tensor) -> None:
    pooled = pooled_pages_of(pool)
    if pooled is not None and row_ids.numel():
        pooled.rows_written_in_all_layers(row_ids.flatten())


WRITER_HOOKS: dict[str, Callable[[Function], Function]] = {
    "Indexer._store_index_k_cache": _store_index_k_cache,
    "Indexer._fused_k_prepare_and_store": _fused_k_prepare_and_store,
    "HiSparseDSATokenToKVPool.set_mla_kv_buffer": _set_mla_kv_buffer,
    "DSATokenToKVPool.move_kv_cache": _move_kv_cache,
    "DSATokenToKVPool.load_cpu_copy": _load_cpu_copy,
}
