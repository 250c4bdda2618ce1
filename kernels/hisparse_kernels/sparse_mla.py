"""Attend to selected KV rows: multi-query attention over latent rows, V = the latent part."""

from dataclasses import dataclass

import torch

from hisparse_kernels.kv_rows import unpack_kv_rows_ref
from hisparse_kernels.layouts import KvLayout
from hisparse_kernels.shapes import Shapes, check_at_least

_CHUNK_ROWS = 4  # at topk 512 their gathered values take 5 MB: they stay in the cache
# small matrices may take a kernel with another order of summation
_MIN_HEADS = 8
_KEY_ALIGN = 64
ROW_ALIGN = 16  # bytes of one load
FEW_HEADS = 32  # no more of them leave the products of a tile mostly empty
_FEW_HEADS_SPLIT, _SPLIT = 128, 256
SPLIT_ALIGN = 64  # keys of one tile: a split is whole tiles


@dataclass(frozen=True)
class AttentionOptions:
    """What a call of attention may ask for besides its inputs.

    Attributes:
        sink: [heads] fp32, an extra logit in the denominator alone; not part of `lse`.
        valid_counts: [rows] int32, only so many leading ids of a row are looked at; None = all.
        split_keys: ids of one split, a multiple of 64; splits may run side by side, and are merged
            in ascending order. None = one goes over all ids.
        out: the two results, contiguous, to write to and return; None = allocate.
        workspace: [at least `split_workspace_size`] fp32, contiguous; None = allocate if needed.
    """

    sink: torch.Tensor | None = None
    valid_counts: torch.Tensor | None = None
    split_keys: int | None = None
    out: tuple[torch.Tensor, torch.Tensor] | None = None
    workspace: torch.Tensor | None = None


NO_OPTIONS = AttentionOptions()


def sparse_mla(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention of each row over its own list of KV rows.

    Products of bf16 or fp16 queries with fp8 or bf16 rows may be taken in bf16, with fp32 sums; all
    else is fp32. A row's bits depend on its own inputs and on `split_keys` alone.

    Args:
        query: [rows, heads, query_dim] fp32, bf16 or fp16.
        kv_rows: [N, row_bytes] uint8, rows of adjacent bytes a multiple of 16 B apart; only listed
            rows are read, so the others may hold anything.
        row_ids: [rows, topk] int32, distinct rows of `kv_rows`; -1, anywhere, = nothing.
        layout: how a KV row is stored.
        softmax_scale: factor of the logits.
        options: what else is asked for.

    Returns:
        Output [rows, heads, latent_dim] query.dtype, and lse [rows, heads] fp32, the natural log of
        the sum of exponentials; 0 and -inf for a row without a key.
    """
    shapes = Shapes(
        row_bytes=layout.row_bytes, query_dim=layout.query_dim, latent_dim=layout.latent_dim
    )
    floats = (torch.float32, torch.bfloat16, torch.float16)
    shapes.check("query", query, "rows heads query_dim", *floats)
    shapes.check("kv_rows", kv_rows, "num_rows row_bytes", torch.uint8)
    _check_row_strides(kv_rows)
    shapes.check("row_ids", row_ids, "rows topk", torch.int32)
    check_at_least("topk", row_ids.shape[1], 1)
    _check_options(options, shapes, query.dtype)
    _check_split(options, shapes, query, row_ids, layout)
    args = query, kv_rows, row_ids, layout, softmax_scale, options
    if query.is_cuda:
        from hisparse_kernels.gpu.sparse_mla import sparse_mla_triton

        return sparse_mla_triton(*args)
    return sparse_mla_ref(*args)


def decode_split_keys(heads: int) -> int:
    """Ids of one split for few rows: they leave a GPU idle unless a row's keys are shared out.

    By the heads alone: a row's bits may depend on the split, and so must not on the batch.
    """
    return _FEW_HEADS_SPLIT if heads <= FEW_HEADS else _SPLIT


def split_workspace_size(
    rows: int, heads: int, topk: int, layout: KvLayout, split_keys: int | None
) -> int:
    """fp32 values that `sparse_mla` keeps between splits: their maxima, sums and outputs."""
    splits = 1 if split_keys is None else -(-topk // split_keys)
    return 0 if splits == 1 else splits * rows * heads * (layout.latent_dim + 2)


def empty_results(query: torch.Tensor, layout: KvLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Places for what `sparse_mla` returns."""
    rows, heads, _ = query.shape
    lse = query.new_empty(rows, heads, dtype=torch.float32)
    return query.new_empty(rows, heads, layout.latent_dim), lse


def sparse_mla_ref(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    options: AttentionOptions = NO_OPTIONS,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows, heads, _ = query.shape
    if options.valid_counts is not None:
        rank = torch.arange(row_ids.shape[1], device=row_ids.device)
        row_ids = row_ids.masked_fill(rank >= options.valid_counts[:, None], -1)
    row_ids = torch.nn.functional.pad(row_ids, (0, -row_ids.shape[1] % _KEY_ALIGN), value=-1)
    values, value_ids = _dequantised(kv_rows, row_ids, layout)
    gathered = values.new_empty(min(rows, _CHUNK_ROWS), row_ids.shape[1], layout.query_dim)
    out = options.out or empty_results(query, layout)
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        ids = value_ids[chunk]
        keys = gathered[: ids.shape[0]]
        torch.index_select(values, 0, ids.flatten(), out=keys.view(-1, layout.query_dim))
        logits = _scores(query[chunk].float(), keys, softmax_scale)
        logits.masked_fill_((row_ids[chunk] < 0)[:, None], -torch.inf)
        latent = keys[:, :, : layout.latent_dim]
        out[0][chunk], out[1][chunk] = _attend(logits, latent, heads, options.sink)
    return out


def _check_row_strides(kv_rows: torch.Tensor) -> None:
    # of a lone row the first stride means nothing
    between, within = kv_rows.stride()
    if within != 1 or (kv_rows.shape[0] > 1 and between % ROW_ALIGN):
        raise ValueError(
            f"kv_rows has strides {(between, within)}, needs (a multiple of {ROW_ALIGN}, 1)"
        )


def _check_options(options: AttentionOptions, shapes: Shapes, dtype: torch.dtype) -> None:
    if options.sink is not None:
        shapes.check("sink", options.sink, "heads", torch.float32)
    if options.valid_counts is not None:
        shapes.check("valid_counts", options.valid_counts, "rows", torch.int32)
    if options.out is not None:
        shapes.check_packed("out", options.out[0], "rows heads latent_dim", dtype)
        shapes.check_packed("lse", options.out[1], "rows heads", torch.float32)


def _check_split(
    options: AttentionOptions,
    shapes: Shapes,
    query: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
) -> None:
    split_keys, workspace = options.split_keys, options.workspace
    if split_keys is not None and (split_keys <= 0 or split_keys % SPLIT_ALIGN):
        raise ValueError(f"split_keys is {split_keys}, needs a multiple of {SPLIT_ALIGN}")
    if workspace is not None:
        rows, heads, _ = query.shape
        shapes.check_packed("workspace", workspace, "values", torch.float32)
        needed = split_workspace_size(rows, heads, row_ids.shape[1], layout, split_keys)
        check_at_least("number of values in workspace", workspace.numel(), needed)


def _dequantised(
    kv_rows: torch.Tensor, row_ids: torch.Tensor, layout: KvLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 values of the listed rows, then a row of zeros for -1; and ids into them."""
    if kv_rows.shape[0] <= row_ids.numel():
        ids = row_ids.long()
    else:
        listed, ids = row_ids.unique(return_inverse=True)
        num_none = int((listed < 0).sum())  # -1 sorts first
        kv_rows, ids = kv_rows.index_select(0, listed[num_none:]), ids - num_none
    values = kv_rows.new_empty(kv_rows.shape[0] + 1, layout.query_dim, dtype=torch.float32)
    values[:-1] = unpack_kv_rows_ref(kv_rows, layout)
    values[-1] = 0.0
    return values, ids.where(ids >= 0, kv_rows.shape[0])


def _scores(query: torch.Tensor, keys: torch.Tensor, softmax_scale: float) -> torch.Tensor:
    """Logits [n, heads, topk]; few heads are padded with zero queries."""
    padding = max(_MIN_HEADS - query.shape[1], 0)
    query = torch.nn.functional.pad(query, (0, 0, 0, padding))
    return _product_of_each(query, keys.transpose(1, 2)).mul_(softmax_scale)


def _attend(
    logits: torch.Tensor, values: torch.Tensor, heads: int, sink: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output [n, heads, latent_dim] and lse [n, heads] of masked logits."""
    most = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    weights = logits.sub_(most).exp_()
    total, most = weights.sum(-1)[:, :heads], most[:, :heads, 0]
    lse = total.log() + most
    denominator = total if sink is None else total + (sink - most).exp()
    out = _product_of_each(weights, values)[:, :heads]
    return out / denominator.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None], lse


def _product_of_each(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[n, a, k] x [n, k, b], one product after the other.

    All have one shape, so each has the bits that it has alone; a batched product's bits depend on
    the size of the batch on some processors.
    """
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[2])
    for one, other, product in zip(left, right, out, strict=True):
        torch.mm(one, other, out=product)
    return out
