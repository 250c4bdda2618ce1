"""Score keys with all heads of a row: sum_j w[j] * relu(q[j] . key) * key_scale, in a fixed order.

Every selection op scores through here, so a row's bits depend on the row and the key alone: not on
the other rows or keys of the call, and not on the op.
"""

import torch

_TILE_DOTS = 2**18  # 1 MiB of fp32 dots: stays in a core's L2
_MIN_GEMM_ROWS = 16  # fewer may take a kernel with another order of summation
KEY_ALIGN = 64


def score_keys(
    index_q: torch.Tensor,
    index_weights: torch.Tensor,
    keys: torch.Tensor,
    key_scale: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Scores [n, T] of every key for every row, written to `out`.

    Args:
        index_q: [n, heads, 128] fp32.
        index_weights: [n, heads] fp32.
        keys: [T, 128] fp32 without their scale; T is a multiple of 64.
        key_scale: [T] fp32, None = all 1.
        out: [n, T] fp32.
    """
    rows, heads, _ = index_q.shape
    if not rows or not keys.shape[0]:
        return
    key_step = min(keys.shape[0], max(KEY_ALIGN, _align(_TILE_DOTS // (heads * rows))))
    row_step = max(1, _TILE_DOTS // (heads * key_step))
    dots = keys.new_empty(max(row_step * heads, _MIN_GEMM_ROWS) * key_step)
    for row in range(0, rows, row_step):
        some = slice(row, row + row_step)
        for key in range(0, keys.shape[0], key_step):
            tile = keys[key : key + key_step]
            terms = relu_dots(index_q[some], tile, dots).mul_(index_weights[some, :, None])
            scores = halving_sum(terms)
            if key_scale is not None:
                scores = scores.mul_(key_scale[key : key + key_step])
            out[some, key : key + key_step] = scores


def relu_dots(index_q: torch.Tensor, keys: torch.Tensor, dots: torch.Tensor) -> torch.Tensor:
    """relu(q . key) as [n, heads, T], computed in the caller's scratch `dots`."""
    n, heads, _ = index_q.shape
    flat = index_q.reshape(n * heads, -1)
    if n * heads < _MIN_GEMM_ROWS:
        flat = torch.nn.functional.pad(flat, (0, 0, 0, _MIN_GEMM_ROWS - n * heads))
    tile = dots[: flat.shape[0] * keys.shape[0]].view(flat.shape[0], keys.shape[0])
    torch.mm(flat, keys.T, out=tile)
    return tile[: n * heads].view(n, heads, -1).relu_()


def halving_sum(terms: torch.Tensor) -> torch.Tensor:
    """Sum over dimension 1 of [n, count, T], in place; the order depends on `count` alone."""
    count = terms.shape[1]
    while count > 1:
        half = count // 2
        terms[:, :half] += terms[:, count - half : count]
        count -= half
    return terms[:, 0]


def _align(count: int) -> int:
    return count // KEY_ALIGN * KEY_ALIGN
