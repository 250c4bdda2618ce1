"""Stand between SGLang and its own functions: lists from our selection, and the rest in its place.

Each hook has its target's parameters, which `check_targets` has compared before.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from hisparse_sidecar.engines.sglang.install import Function, install
from hisparse_sidecar.engines.sglang.offload.beside import coordinator_of
from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.offload_start import BACKEND_NAME
from hisparse_sidecar.engines.sglang.pool.writer_hooks import WRITER_HOOKS, running_pool
from hisparse_sidecar.engines.sglang.selection.selection import BackendSelection, IndexerCall
from hisparse_sidecar.engines.sglang.targets import TARGETS

_STANDS_FOR = "dsa"


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
        found = _selected(IndexerCall("paged", self, running_pool(), *given))
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
        found = _selected(IndexerCall("ragged", self, running_pool(), *given))
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


# -- offload -----------------------------------------------------------------------------------


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
    **WRITER_HOOKS,
    "HiSparseTokenToKVPoolAllocator.clear": _clear,
    "ScheduleBatch.check_decode_mem": _check_decode_mem,
    "DraftBackendFactory._create_backend": _create_draft_backend,
    "DeepseekMLAForwardMixin._fuse_rope_for_trtllm_mla": _fuse_rope_for_trtllm_mla,
}
