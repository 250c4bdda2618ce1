"""What of SGLang is replaced or relied on, with the signatures that we know, and their check."""

import dataclasses
import importlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hisparse_sidecar.errors import InvalidArgument

_SRT = "sglang.srt."
_INDEXER = _SRT + "layers.attention.dsa.dsa_indexer"
_POOL = _SRT + "mem_cache.memory_pool"
_BACKEND = _SRT + "layers.attention.dsa_backend"
_METADATA = _SRT + "layers.attention.dsa.dsa_indexer_metadata"
_COORDINATOR = _SRT + "managers.hisparse_coordinator"
_SCHEDULER = _SRT + "managers.scheduler"
_BATCH = _SRT + "managers.schedule_batch"
_POLICY = _SRT + "managers.schedule_policy"
_ALLOCATOR = _SRT + "mem_cache.allocator."
_MODEL = _SRT + "models.deepseek_common."
_ADDER = (
    "(self, page_size, tree_cache, token_to_kv_pool_allocator, running_batch, new_token_ratio, "
    "rem_input_tokens, rem_chunk_tokens, num_mixed_decode_tokens=, "
    "priority_scheduling_preemption_threshold=, max_prefill_bs=, max_running_requests=, "
    "prefill_max_requests=, prefill_delayer_single_pass=, dllm_config=, waiting_queue_len="
)


@dataclass(frozen=True)
class Target:
    """A function of SGLang, or a dataclass by its fields.

    Attributes:
        module: where it is defined.
        name: qualified name there.
        known: its parameters as `parameters_of` writes them, one text for each form that works; of
            a dataclass the names that it must have, among others.
        is_replaced: whether a hook stands in its place.
    """

    module: str
    name: str
    known: tuple[str, ...]
    is_replaced: bool = False

    @property
    def is_dataclass(self) -> bool:
        """Whether `known` are fields."""
        return not self.known[0].startswith("(")

    @property
    def path(self) -> str:
        """Where it is, dotted."""
        return f"{self.module}.{self.name}"

    def difference(self, found: str | None) -> str | None:
        """What is wrong with what was found there; None = nothing.

        Args:
            found: `parameters_of` it, or the fields' names; None = it is not there.
        """
        if found is None:
            return f"{self.path} is missing"
        if self.is_dataclass:
            missing = sorted(set(self.known) - set(found.split(", ")))
            return f"{self.path} lacks {', '.join(missing)}" if missing else None
        if found in self.known:
            return None
        return f"{self.path} is {found}, needs {' or '.join(self.known)}"


def _replaced(module: str, name: str, *known: str) -> Target:
    return Target(module, name, known, is_replaced=True)


def methods_of(module: str, owner: str, **known: str) -> tuple[Target, ...]:
    """Methods of a class of SGLang's that ours calls or has in their place, by their parameters."""
    return tuple(Target(module, f"{owner}.{name}", (one,)) for name, one in known.items())


_OFFLOAD_TARGETS = (
    _replaced(_BATCH, "ScheduleBatch.check_decode_mem", "(self, selected_indices=)"),
    Target(_BATCH, "ScheduleBatch.new_tokens_required_next_decode", ("(self, selected_indices=)",)),
    _replaced(_ALLOCATOR + "hisparse", "HiSparseTokenToKVPoolAllocator.clear", "(self)"),
    Target(
        _ALLOCATOR + "hisparse",
        "HiSparseTokenToKVPoolAllocator.free_hisparse",
        ("(self, free_indices)",),
    ),
    Target(_ALLOCATOR + "paged", "PagedTokenToKVPoolAllocator.alloc", ("(self, need_size)",)),
    Target(
        _COORDINATOR,
        "HiSparseCoordinator.__init__",
        (
            "(self, req_to_token_pool, token_to_kv_pool_allocator, top_k, device_buffer_size, "
            "device, tp_group, host_to_device_ratio=, swap_in_block_size=)",
            "(self, req_to_token_pool, token_to_kv_pool_allocator, top_k, device_buffer_size, "
            "device, tp_group, host_to_device_ratio=, swap_in_block_size=, shared_index_layers=, "
            "num_draft_tokens=)",
        ),
    ),
    *methods_of(
        _COORDINATOR,
        "HiSparseCoordinator",
        set_decode_producer_stream="(self, stream)",
        destroy="(self)",
        get_token_stats="(self)",
        admit_request_into_staging="(self, req)",
        has_ongoing_staging="(self)",
        collect_ready_reqs="(self)",
        map_last_loc_to_buffer="(self, seq_lens, out_cache_loc, req_pool_indices, seq_lens_cpu, "
        "req_pool_indices_cpu)",
        wait_for_pending_backup="(self)",
        abort_staging_request="(self, req)",
        retract_req="(self, req)",
        request_finished="(self, req)",
        swap_in_selected_pages="(self, req_pool_indices, compressed_seq_lens, top_k_result, "
        "layer_id)",
    ),
)

TARGETS = (
    _replaced(
        _INDEXER,
        "Indexer._get_topk_paged",
        "(self, forward_batch, layer_id, q_fp8, weights, metadata)",
    ),
    _replaced(
        _INDEXER,
        "Indexer._get_topk_ragged",
        "(self, enable_dual_stream, forward_batch, layer_id, q_fp8, weights, metadata, "
        "topk_result=)",
    ),
    _replaced(
        _INDEXER,
        "Indexer._store_index_k_cache",
        "(self, forward_batch, layer_id, key, *, act_quant=, out_cache_loc=)",
    ),
    _replaced(
        _INDEXER,
        "Indexer._fused_k_prepare_and_store",
        "(self, key_raw, positions, forward_batch, layer_id, act_quant, out_cache_loc=)",
    ),
    _replaced(
        _SRT + "mem_cache.hisparse_memory_pool",
        "HiSparseDSATokenToKVPool.set_mla_kv_buffer",
        "(self, layer, loc, cache_k_nope, cache_k_rope)",
        "(self, layer, loc_info, cache_k_nope, cache_k_rope)",
    ),
    Target(
        _SRT + "mem_cache.hisparse_memory_pool",
        "HiSparseDSATokenToKVPool.translate_loc_to_hisparse_device",
        ("(self, compressed_indices)",),
    ),
    Target(
        _POOL,
        "MLATokenToKVPool.set_mla_kv_buffer",
        (
            "(self, layer, loc, cache_k_nope, cache_k_rope)",
            "(self, layer, loc_info, cache_k_nope, cache_k_rope, layer_id_override=)",
        ),
    ),
    _replaced(_POOL, "DSATokenToKVPool.move_kv_cache", "(self, tgt_loc, src_loc)"),
    _replaced(
        _POOL,
        "DSATokenToKVPool.load_cpu_copy",
        "(self, kv_cache_cpu_dict, indices, mamba_indices=)",
        "(self, kv_cache_cpu_dict, indices, mamba_indices=, req_pool_index=)",
    ),
    _replaced(
        _SRT + "speculative.draft_utils",
        "DraftBackendFactory._create_backend",
        "(self, backend_name, backend_map, error_template)",
        "(self, backend_name, backend_map, error_template, stamps_children=)",
    ),
    _replaced(
        _MODEL + "attention_forward_methods.forward_mla",
        "DeepseekMLAForwardMixin._fuse_rope_for_trtllm_mla",
        "(self, forward_batch)",
    ),
    Target(
        _MODEL + "attention_backend_handler",
        "AttentionBackendRegistry.register",
        ("(backend_name, handler_func)",),
    ),
    Target(
        _MODEL + "attention_backend_handler",
        "handle_attention_dsa",
        ("(attn, forward_batch)",),
    ),
    Target(
        _BACKEND,
        "DeepseekSparseAttnBackend.__init__",
        (
            "(self, model_runner, skip_prefill=, speculative_step_id=, topk=, "
            "speculative_num_steps=, seed_dsa_topk_from_draft_extend=)",
        ),
    ),
    Target(
        _BACKEND,
        "DeepseekSparseAttnBackend.get_indexer_metadata",
        ("(self, layer_id, forward_batch)",),
    ),
    Target(_POOL, "DSATokenToKVPool.get_index_k_with_scale_buffer", ("(self, layer_id)",)),
    Target(_SRT + "model_executor.forward_context", "get_token_to_kv_pool", ("()",)),
    Target(
        _METADATA,
        "DSAIndexerMetadata",
        ("attn_metadata", "topk_transform_method", "force_unfused_topk"),
    ),
    Target(
        _BACKEND,
        "DSAMetadata",
        (
            "cache_seqlens_int32",
            "cu_seqlens_q",
            "dsa_seqlens_expanded",
            "max_seq_len_k",
            "real_page_table",
            "topk_indices_offset",
        ),
    ),
    *_OFFLOAD_TARGETS,
)

# in processes that have the coordinator alone: its scheduler and its worker are heavy to import
SCHEDULER_TARGETS = (
    _replaced(_SCHEDULER, "Scheduler.abort_request", "(self, recv_req)"),
    _replaced(_SCHEDULER, "Scheduler.process_pending_chunked_abort", "(self)"),
    _replaced(_SCHEDULER, "Scheduler.pause_generation", "(self, recv_req)"),
    _replaced(_SCHEDULER, "Scheduler._build_hisparse_decode_batch", "(self, reqs)"),
    Target(_SCHEDULER, "Scheduler._add_request_to_queue", ("(self, req, is_retracted=)",)),
    _replaced(_BATCH, "ScheduleBatch.retract_decode", "(self, server_args)", "(self)"),
    Target(
        _SRT + "disaggregation.utils",
        "prepare_abort",
        ("(req, error_message, status_code=)",),
    ),
    Target(
        _SRT + "mem_cache.common",
        "release_kv_cache",
        ("(req, tree_cache, is_insert=)", "(req, tree_cache, *, checkpoint)"),
    ),
    Target(
        _BATCH,
        "retract_all",
        (
            "(*, reqs, server_args, req_to_token_pool, token_to_kv_pool_allocator, tree_cache, "
            "hisparse_coordinator, offload_kv=)",
            "(*, reqs, req_to_token_pool, token_to_kv_pool_allocator, tree_cache, "
            "hisparse_coordinator, offload_kv=)",
        ),
    ),
    _replaced(
        _POLICY,
        "PrefillAdder.__init__",
        f"{_ADDER})",
        f"{_ADDER}, prefill_tile_block_m=)",
    ),
    _replaced(_POLICY, "PrefillAdder._get_running_request_total_token_offset", "(self, req)"),
    _replaced(
        _POLICY,
        "PrefillAdder.add_one_req",
        "(self, req, has_chunked_req, truncation_align_size)",
    ),
    _replaced(_SRT + "managers.tp_worker", "TpModelWorker.get_worker_info", "(self)"),
)
ALL_TARGETS = (*TARGETS, *SCHEDULER_TARGETS)


def check_targets(targets: Iterable[Target] = TARGETS) -> None:
    """Raises InvalidArgument that names every target that is missing or has changed."""
    found = [target.difference(_found(target)) for target in targets]
    wrong = [line for line in found if line is not None]
    if wrong:
        raise InvalidArgument("sglang is not as this version needs it: " + "; ".join(wrong))


def resolve(target: Target) -> tuple[object, str, Any]:
    """Owner (a module or a class), name and value of a target.

    Raises:
        ImportError: no such module.
        AttributeError: nothing of that name in it.
    """
    owner: object = importlib.import_module(target.module)
    *path, name = target.name.split(".")
    for part in path:
        owner = inspect.unwrap(getattr(owner, part))  # the coordinator's name may be ours
    return owner, name, getattr(owner, name)


def _found(target: Target) -> str | None:
    try:
        value = resolve(target)[2]
    except (ImportError, AttributeError):
        return None
    if target.is_dataclass:
        fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        return ", ".join(field.name for field in fields)
    return parameters_of(inspect.signature(value))


def parameters_of(signature: inspect.Signature) -> str:
    """Names and kinds of the parameters, and which have a default: "(self, key, *, out=)"."""
    written, has_star = [], False
    for parameter in signature.parameters.values():
        kind = parameter.kind
        if kind is parameter.KEYWORD_ONLY and not has_star:
            written.append("*")
        has_star = has_star or kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(kind.name, "")
        default = "" if parameter.default is parameter.empty else "="
        written.append(f"{stars}{parameter.name}{default}")
    return f"({', '.join(written)})"
