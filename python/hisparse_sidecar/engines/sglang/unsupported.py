"""Ways of running SGLang that offload does not cover: refused at the start."""

from collections.abc import Sequence
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.requirements import require

_ROW_BYTES = (528, 656, 1152)


def check_offload(
    allocator: Any,  # noqa: ANN401
    pool: Any,  # noqa: ANN401
    hot_slots: int,
    topk: int,
    num_draft_tokens: int,
) -> None:
    """Raises InvalidArgument with what was found and needed unless offload covers these."""
    kind = type(pool).__name__
    needed = "HiSparseDSATokenToKVPool"
    require(kind == needed, f"offload is for {needed}, the pool is a {kind}")
    pages = pool.page_size
    require(pages == PAGE_TOKENS, f"the pool has pages of {pages} tokens, offload needs 64")
    late = getattr(pool, "post_capture_active", False)
    require(not late, f"the pool's post_capture_active is {late}, offload needs False")
    ratio = allocator.compress_ratio
    require(ratio == 1, f"rows of {ratio} tokens, offload needs rows of 1")
    message = f"speculative decoding has {num_draft_tokens} draft tokens, offload needs 0"
    require(num_draft_tokens == 0, message)
    require(hot_slots >= topk, f"device_buffer_size is {hot_slots}, top_k needs {topk}")
    found = pool.kv_buffer[0][0].nbytes
    known = ", ".join(map(str, _ROW_BYTES))
    require(found in _ROW_BYTES, f"KV rows have {found} bytes, offload knows {known}")


def check_offload_options(server_args: Any) -> None:  # noqa: ANN401
    """Raises InvalidArgument unless offload covers these options of SGLang's."""
    for name, needed in (
        ("pp_size", 1),
        ("disaggregation_mode", "null"),
        ("speculative_algorithm", None),
        ("disable_radix_cache", True),
        ("enable_memory_saver", False),
        # these run decoding rows in other batches than the step's own
        ("enable_mixed_chunk", False),
        ("enable_two_batch_overlap", False),
        ("enable_pdmux", False),
        # these keep the slots of a request that has ended, whose rows are given back
        ("enable_streaming_session", False),
    ):
        found = getattr(server_args, name)
        require(found == needed, f"{name} is {found}, offload needs {needed}")
    # a request that is preempted may have outgrown the rows for prompts: it would wait for ever,
    # and others behind it
    if server_args.enable_priority_scheduling:
        message = "enable_priority_scheduling is True and disable_priority_preemption is False"
        require(
            server_args.disable_priority_preemption, f"{message}, offload needs both or neither"
        )


def check_index_offload(server_args: Any, backend_name: str) -> None:  # noqa: ANN401
    """Raises InvalidArgument unless index keys can be offloaded with these options of SGLang's.

    Args:
        server_args: SGLang's `ServerArgs`; decoding is our backend's.
        backend_name: its name.
    """
    prefills = server_args.prefill_attention_backend or server_args.attention_backend
    message = f"the prefill attention backend is {prefills}, offload_index_keys needs"
    require(prefills == backend_name, f"{message} {backend_name}")


def layer_groups(num_layers: int, shares: Sequence[bool] | None) -> tuple[int, ...]:
    """For each layer the group whose selection it uses.

    Args:
        num_layers: layers of the pool.
        shares: for each layer whether it uses the selection of the one before; None, or of another
            number of layers (SGLang then ignores it too): none does.
    """
    if shares is None or len(shares) != num_layers:
        return tuple(range(num_layers))
    groups: list[int] = []
    for layer, is_shared in enumerate(shares):
        groups.append(groups[-1] + (not is_shared) if layer else 0)
    return tuple(groups)
