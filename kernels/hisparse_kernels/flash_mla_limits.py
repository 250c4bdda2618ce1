"""What FlashMLA's kernels for sm_90 attend to: asked before anything is launched."""

import torch

from hisparse_kernels.layouts import KvLayout

HEADS = (64, 128)
LIST_ALIGN = {"fp8_ds_mla": 64, "bf16": 128}  # ids, of the kernels for decode and for prefill


def check_flash_mla(
    *,
    layout: KvLayout | None = None,
    num_heads: int | None = None,
    query_dtype: torch.dtype | None = None,
    topk: int | None = None,
    split_keys: int | None = None,
) -> None:
    """Refuses what FlashMLA does not do.

    Args:
        layout: how a KV row is stored; here and below None = not known yet.
        num_heads: of the queries.
        query_dtype: of the queries.
        topk: ids of one list, with its `layout`.
        split_keys: see `sparse_mla`; None = not asked for.

    Raises:
        ValueError: what was found and what is needed.
    """
    if layout is not None and layout.name not in LIST_ALIGN:
        found = f"KV rows are {layout.name}, {layout.row_bytes} B"
        raise ValueError(f"{found}, flash_mla needs fp8_ds_mla (656 B) or bf16")
    if num_heads is not None and num_heads not in HEADS:
        raise ValueError(f"queries have {num_heads} heads, flash_mla needs 64 or 128")
    if query_dtype not in (None, torch.bfloat16):
        raise ValueError(f"queries are {query_dtype}, flash_mla needs torch.bfloat16")
    if split_keys is not None:
        raise ValueError(f"split_keys is {split_keys}, flash_mla splits by the batch: needs None")
    if layout is not None and topk is not None and topk % LIST_ALIGN[layout.name]:
        needed = f"flash_mla needs a multiple of {LIST_ALIGN[layout.name]} over {layout.name} rows"
        raise ValueError(f"lists have {topk} ids, {needed}")
