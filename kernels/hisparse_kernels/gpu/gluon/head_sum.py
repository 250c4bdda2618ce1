"""The weighted sum over heads, in the order of `_head_sum` of the Triton bodies."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from hisparse_kernels.gpu.gluon.layouts import shared_sums_layout


@gluon.jit
def head_sum(
    dots, weights, ROWS: gl.constexpr, HEADS: gl.constexpr, ARCH: gl.constexpr
) -> gl.tensor:
    """Sum over each row's heads of weight * relu(dot).

    Args:
        dots: [keys, ROWS * HEADS] fp32, heads of a row side by side.
        weights: [ROWS * HEADS] fp32, in the slice of the dots' layout.
        ROWS: whose heads the columns are.
        HEADS: 32 or 64.
        ARCH: 90, or one with tensor memory.

    Returns:
        [keys, ROWS] fp32.
    """
    keys: gl.constexpr = dots.shape[0]
    v0, v1, v8, v9 = _quarters(gl.maximum(dots, 0.0))
    # of every key: the same registers, but in the layout of the dots
    spread, _ = gl.broadcast(gl.expand_dims(weights, 0), dots)
    w0, w1, w8, w9 = _quarters(spread)
    sums = gl.fma(v9, w9, gl.fma(v8, w8, gl.fma(v1, w1, v0 * w0)))
    if ARCH >= 100:  # all of a row in one thread
        total = gl.sum(gl.reshape(sums, [keys, ROWS, HEADS // 4]), axis=2)
    else:
        quads = gl.sum(gl.reshape(sums, [keys, ROWS, HEADS // 16, 4]), axis=2)
        shared = gl.convert_layout(quads, shared_sums_layout(keys, ROWS, gl.num_warps()))
        pairs = gl.sum(gl.reshape(shared, [keys, ROWS, 2, 2]), axis=2)
        total = gl.sum(pairs, axis=2)
    return total


@gluon.jit
def _quarters(values):
    """Columns j, j + 1, j + 8 and j + 9 of [keys, columns]: four [keys, columns / 16, 4]."""
    keys: gl.constexpr = values.shape[0]
    sixteens: gl.constexpr = values.shape[1] // 16
    eights = gl.reshape(values, [keys, sixteens, 2, 8])
    low, high = gl.split(gl.permute(eights, (0, 1, 3, 2)))
    v0, v1 = gl.split(gl.reshape(low, [keys, sixteens, 4, 2]))
    v8, v9 = gl.split(gl.reshape(high, [keys, sixteens, 4, 2]))
    return v0, v1, v8, v9
