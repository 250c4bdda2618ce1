"""The end of sparse attention in one program: lse, and what makes sums of it an output."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

_LOG2_E = gl.constexpr(1.4426950408889634)
_LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def store_lse(lse_ptr, sink_ptr, most, total, head, heads) -> gl.tensor:
    """Stores lse [heads]; returns what the sums have to be divided by.

    Args:
        lse_ptr: [heads] pointers.
        sink_ptr: the layer's sinks, one a head; None = none.
        most: [heads], largest logit in base 2; -inf of no key.
        total: [heads], sum of weights; 0 of no key.
        head: [heads] of the layer.
        heads: their number; those beyond are not stored.
    """
    held = gl.where(total == 0, 1.0, total)
    gl.store(lse_ptr, (most + gl.log2(held)) * _LN_2, mask=head < heads)
    denominator = held
    if sink_ptr is not None:
        base = gl.where(most == float("-inf"), 0.0, most)
        sink = gl.load(sink_ptr + head, mask=head < heads, other=0.0) * _LOG2_E
        # a sink 2**126 times the best key leaves nothing of it: no overflow is needed
        denominator += gl.where(total == 0, 0.0, gl.exp2(gl.minimum(sink - base, 126.0)))
    return denominator
