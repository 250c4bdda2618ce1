"""Many heads as the rows of all products: their queries, softmax over a tile, where results go.

The arithmetic of `many_heads_mla` on sm_90 and of `tmem_mla` on sm_100: one body of code, so what
runs on the one tests the other.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def load_query(query_ptr, target, first_head, heads, first_dim, strides) -> None:
    """Copies some dims of the heads to shared memory; 0 beyond the heads."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    target.store(
        query_values(
            query_ptr,
            first_head,
            heads,
            first_dim,
            strides,
            target.shape[0],
            target.shape[1],
            layout,
        )
    )


@gluon.jit
def query_values(
    query_ptr,
    first_head,
    heads,
    first_dim,
    strides,
    HEADS: gl.constexpr,
    DIMS: gl.constexpr,
    LAYOUT: gl.constexpr,
) -> gl.tensor:
    """Some dims of the heads in bf16, [HEADS, DIMS]; 0 beyond the heads."""
    head = first_head + gl.arange(0, HEADS, gl.SliceLayout(1, LAYOUT))
    dim = first_dim + gl.arange(0, DIMS, gl.SliceLayout(0, LAYOUT))
    head_at = gl.expand_dims(head.to(gl.int64) * strides[0], 1)
    dim_at = gl.expand_dims(dim.to(gl.int64) * strides[1], 0)
    mask = gl.expand_dims(head < heads, 1) & (gl.expand_dims(dim, 0) >= 0)
    return gl.load(query_ptr + (head_at + dim_at), mask=mask, other=0.0).to(gl.bfloat16)


@gluon.jit
def logits_of(dots, valid, scale_log2) -> gl.tensor:
    """Logits [heads, keys] in base 2 of a tile's dots; -inf of no key."""
    return gl.where(gl.expand_dims(valid, 0), dots * scale_log2, float("-inf"))


@gluon.jit
def softmax_step(logits, most) -> gl.tuple:
    """A tile's weights [heads, keys], the factor of all sums so far [heads], the new maxima."""
    new_most = gl.maximum(most, gl.convert_layout(gl.max(logits, 1), most.type.layout))
    base = gl.where(new_most == float("-inf"), 0.0, new_most)
    own_base = gl.convert_layout(base, gl.SliceLayout(1, logits.type.layout))
    return gl.exp2(logits - gl.expand_dims(own_base, 1)), gl.exp2(most - base), new_most


@gluon.jit
def add_weights(total, weights, factor) -> gl.tensor:
    """Sums of weights [heads], with those of one more tile [heads, keys]."""
    return total * factor + gl.convert_layout(gl.sum(weights, 1), total.type.layout)


@gluon.jit
def store_columns(row_ptr, sums, factor, real, FIRST: gl.constexpr) -> None:
    """Stores sums * factor, [heads, dims], to the heads' rows from dim FIRST on."""
    dim = gl.arange(0, sums.shape[1], gl.SliceLayout(0, sums.type.layout))
    at = gl.expand_dims(row_ptr, 1) + gl.expand_dims(dim, 0)
    mask = gl.expand_dims(real, 1) & (gl.expand_dims(dim, 0) >= 0)
    values = (sums * gl.expand_dims(factor, 1)).to(row_ptr.dtype.element_ty)
    gl.store(at + FIRST, values, mask=mask)


@gluon.jit
def store_weight_sums(workspace_ptr, part, places, most, total, real) -> None:
    """Leaves maxima and sums of weights [heads] for `merge_splits_kernel`."""
    gl.store(workspace_ptr + places[0] + part, most, mask=real)
    gl.store(workspace_ptr + places[1] + part, total, mask=real)
