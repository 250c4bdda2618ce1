"""Sum relu(q . mean) over a row's full groups of pooled blocks, chunk by chunk: part of MISA.

A program forms the means of a chunk of groups once and multiplies the queries of a run of rows with
them. A mean is three bf16 values, so the products are as exact as in fp32.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.row_runs import run_of_rows


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "max_pages", "num_chunks"])
def sum_groups_kernel(
    query_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    complete_ptr,
    sums_ptr,
    num_rows,
    rows_per_program,
    max_pages,
    num_chunks,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    MOST_ROWS: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
    UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """Sums [rows, chunks, heads] over a chunk's full groups; none where a row has no group."""
    chunk = tl.program_id(0)
    group = chunk * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)
    dim = tl.arange(0, 128)
    begin = tl.program_id(1) * rows_per_program
    last = tl.minimum(begin + rows_per_program, num_rows)
    while begin < last:
        seq, end, most = run_of_rows(seq_ptr, complete_ptr, begin, last, MOST_ROWS)
        num_groups = most // GROUP_BLOCKS
        if num_groups > chunk * CHUNK_GROUPS:
            pages_ptr = pooled_entries(table_ptr, seq, max_pages, BY_ROW)
            means = _group_means(
                codes_ptr,
                scales_ptr,
                pages_ptr,
                group,
                num_groups,
                dim,
                GROUP_BLOCKS,
                UNROLLED,
                HAS_SCALE,
                BY_ROW,
            )
            high, middle, low = _three_pieces(means)
            for i in range(tl.cdiv(end - begin, TILE_ROWS)):
                row, head = _queries_of_tile(begin + i * TILE_ROWS, TILE_ROWS, PADDED_HEADS)
                real = (row < end) & (head < HEADS)
                values_ptr = query_ptr + (row.to(tl.int64) * HEADS + head) * 128
                query = tl.load(values_ptr[:, None] + dim, mask=real[:, None], other=0.0)
                if WIDEN:
                    dots = tl.dot(query.to(tl.float32), tl.trans(means))
                else:  # every e4m3 value is a bf16 value; the least products come first
                    query = query.to(tl.bfloat16)
                    dots = tl.dot(query, tl.trans(low))
                    dots = tl.dot(query, tl.trans(middle), dots)
                    dots = tl.dot(query, tl.trans(high), dots)
                _store_sums(
                    sums_ptr,
                    complete_ptr,
                    dots,
                    row,
                    head,
                    real,
                    chunk,
                    num_chunks,
                    HEADS,
                    GROUP_BLOCKS,
                    CHUNK_GROUPS,
                )
        begin = end


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "max_pages", "num_chunks"])
def sum_groups_fp32_kernel(
    query_ptr,
    codes_ptr,
    scales_ptr,
    table_ptr,
    seq_ptr,
    complete_ptr,
    sums_ptr,
    num_rows,
    rows_per_program,
    max_pages,
    num_chunks,
    HEADS: tl.constexpr,
    PADDED_HEADS: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    MOST_ROWS: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
    UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """`sum_groups_kernel` for fp32 queries, whose products stay in fp32: for oracles, not fast."""
    chunk = tl.program_id(0)
    group = chunk * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)
    begin = tl.program_id(1) * rows_per_program
    last = tl.minimum(begin + rows_per_program, num_rows)
    while begin < last:
        seq, end, most = run_of_rows(seq_ptr, complete_ptr, begin, last, MOST_ROWS)
        num_groups = most // GROUP_BLOCKS
        pages_ptr = pooled_entries(table_ptr, tl.maximum(seq, 0), max_pages, BY_ROW)
        num_tiles = tl.cdiv(end - begin, TILE_ROWS)
        for i in range(tl.where(num_groups > chunk * CHUNK_GROUPS, num_tiles, 0)):
            row, head = _queries_of_tile(begin + i * TILE_ROWS, TILE_ROWS, PADDED_HEADS)
            real = (row < end) & (head < HEADS)
            values_ptr = query_ptr + (row.to(tl.int64) * HEADS + head) * 128
            dots = tl.zeros([TILE_ROWS * PADDED_HEADS, CHUNK_GROUPS], dtype=tl.float32)
            for start in range(0, 128, 16):
                dim = start + tl.arange(0, 16)
                query = tl.load(values_ptr[:, None] + dim, mask=real[:, None], other=0.0)
                means = _group_means(
                    codes_ptr,
                    scales_ptr,
                    pages_ptr,
                    group,
                    num_groups,
                    dim,
                    GROUP_BLOCKS,
                    False,
                    HAS_SCALE,
                    BY_ROW,
                )
                dots = tl.dot(query, tl.trans(means), dots, input_precision="ieee")
            _store_sums(
                sums_ptr,
                complete_ptr,
                dots,
                row,
                head,
                real,
                chunk,
                num_chunks,
                HEADS,
                GROUP_BLOCKS,
                CHUNK_GROUPS,
            )
        begin = end


@triton.jit
def _queries_of_tile(first_row, TILE_ROWS: tl.constexpr, PADDED_HEADS: tl.constexpr):
    """Row and head of each row of a product."""
    query = tl.arange(0, TILE_ROWS * PADDED_HEADS)
    return first_row + query // PADDED_HEADS, query % PADDED_HEADS


@triton.jit
def _store_sums(
    sums_ptr,
    complete_ptr,
    dots,
    row,
    head,
    real,
    chunk,
    num_chunks,
    HEADS: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    CHUNK_GROUPS: tl.constexpr,
):
    """Sum of relu(dots) over each row's own groups of the chunk."""
    num_groups = tl.load(complete_ptr + row, mask=real, other=0) // GROUP_BLOCKS
    group = chunk * CHUNK_GROUPS + tl.arange(0, CHUNK_GROUPS)
    dots = tl.where(group < num_groups[:, None], tl.maximum(dots, 0.0), 0.0)
    place = (row.to(tl.int64) * num_chunks + chunk) * HEADS + head
    tl.store(
        sums_ptr + place, tl.sum(dots, axis=1), mask=real & (num_groups > chunk * CHUNK_GROUPS)
    )


@triton.jit
def _three_pieces(values) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """bf16 tensors whose sum is the fp32 `values`: 24 bits are three times eight."""
    high = values.to(tl.bfloat16)
    rest = values - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _group_means(
    codes_ptr,
    scales_ptr,
    pages_ptr,
    group,
    num_groups,
    dim,
    GROUP_BLOCKS: tl.constexpr,
    UNROLLED: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
):
    """Some dimensions of full groups' means: [groups, dims] fp32; 0 for a group beyond the last."""
    held = group < num_groups
    block = group * GROUP_BLOCKS
    sums = tl.zeros([group.shape[0], dim.shape[0]], dtype=tl.float32)
    if UNROLLED:  # all blocks are on their way at once
        for i in tl.static_range(GROUP_BLOCKS):
            sums += pooled_keys(
                codes_ptr, scales_ptr, pages_ptr, block + i, held, dim, HAS_SCALE, BY_ROW
            )
    else:
        for i in range(GROUP_BLOCKS):
            sums += pooled_keys(
                codes_ptr, scales_ptr, pages_ptr, block + i, held, dim, HAS_SCALE, BY_ROW
            )
    if GROUP_BLOCKS & (GROUP_BLOCKS - 1):
        means = tl.div_rn(sums, tl.full(sums.shape, GROUP_BLOCKS, dtype=tl.float32))
    else:
        means = sums * (1.0 / GROUP_BLOCKS)
    return means


@triton.jit
def pooled_entries(table_ptr, seq, max_pages, BY_ROW: tl.constexpr) -> tl.tensor:
    """A sequence's entries of a table of pooled pages or, BY_ROW, of pooled rows."""
    entries = max_pages * 64 if BY_ROW else max_pages
    return table_ptr + seq.to(tl.int64) * entries


@triton.jit
def pooled_keys(
    codes_ptr,
    scales_ptr,
    entries_ptr,
    block,
    held,
    dim,
    HAS_SCALE: tl.constexpr,
    BY_ROW: tl.constexpr,
) -> tl.tensor:
    """Some dimensions of pooled keys: [blocks, dims] fp32; 0 where none is held."""
    if BY_ROW:
        row = tl.load(entries_ptr + block, mask=held, other=0).to(tl.int64)
        page, place = row // 64, row % 64
    else:
        page = tl.load(entries_ptr + block // 64, mask=held, other=0).to(tl.int64)
        place = block % 64
    page_values: tl.constexpr = 64 * 132 if HAS_SCALE else 64 * 128
    values_ptr = codes_ptr + page * page_values + place * 128
    keys = tl.load(values_ptr[:, None] + dim, mask=held[:, None], other=0.0).to(tl.float32)
    if HAS_SCALE:
        scale_ptr = scales_ptr + page * (64 * 33) + 64 * 32 + place
        keys *= tl.load(scale_ptr, mask=held, other=0.0)[:, None]
    return keys
