"""Keep the k best entries of a row, exactly, in one program: radix select on ordered keys.

A key is a uint32 that orders as the fp32 score does; 0 stands for an entry that may not be taken.
Up to MOST_IN_REGISTERS entries are read once; longer rows go by in blocks, once for each pass.
"""

import triton
import triton.language as tl

MOST_IN_REGISTERS = 8192


def row_options(num_columns: int) -> dict[str, object]:
    """Compile-time values for rows of that many columns."""
    block = min(max(triton.next_power_of_2(num_columns), 256), MOST_IN_REGISTERS)
    return {
        "BLOCK": block,
        "ONE_BLOCK": num_columns <= block,
        "num_warps": min(max(block // 512, 4), 16),
        "enable_fp_fusion": False,
    }


@triton.jit
def ordered_keys(scores) -> tl.tensor:
    """uint32 keys in the order of fp32 scores, -0.0 as 0.0; 0 for -inf."""
    bits = scores.to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits)
    keys = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(scores == float("-inf"), 0, keys)


@triton.jit
def best_columns(
    row_ptr,
    stride,
    num_columns,
    newest,
    k,
    out_ptr,
    FORCED: tl.constexpr,
    BLOCK: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
) -> None:
    """Writes the columns of the k best scores, ascending, then -1: see `topk`, `block_topm`.

    With FORCED the first and the `newest` column beat all others, and any other can be taken.
    """
    if ONE_BLOCK:
        column = tl.arange(0, BLOCK)
        keys = _load_keys(row_ptr, stride, column, num_columns, newest, FORCED)
        best_of_keys(keys, column, k, out_ptr)
    else:
        least, greatest, count = _empty_range()
        for start in range(0, num_columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            keys = _load_keys(row_ptr, stride, column, num_columns, newest, FORCED)
            least, greatest, count = _widen_range(keys, least, greatest, count)
        shift, zeros = _shift_of(least, greatest)
        need, at = tl.minimum(k, count), count
        prefix, mask, position = _start(count)
        while (at > need) & (position + 8 > zeros):
            counts = tl.zeros([256], dtype=tl.int32)
            for start in range(0, num_columns, BLOCK):
                column = start + tl.arange(0, BLOCK)
                keys = _load_keys(row_ptr, stride, column, num_columns, newest, FORCED)
                counts += _digit_counts(keys, least, shift, prefix, mask, position)
            prefix, mask, need, at = _narrow(counts, prefix, mask, position, need)
            position -= 8
        above_seen, tied_seen = count * 0, count * 0
        for start in range(0, num_columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            keys = _load_keys(row_ptr, stride, column, num_columns, newest, FORCED)
            above_seen, tied_seen = _emit(
                keys, column, least, shift, prefix, mask, need, above_seen, tied_seen, out_ptr
            )
        _pad(tl.minimum(k, count), k, out_ptr, BLOCK)


@triton.jit
def best_of_keys(keys, column, k, out_ptr) -> None:
    """Writes the columns of the k greatest keys above 0, ascending, then -1; ties: the lowest."""
    least, greatest, count = _empty_range()
    least, greatest, count = _widen_range(keys, least, greatest, count)
    shift, zeros = _shift_of(least, greatest)
    need, at = tl.minimum(k, count), count
    prefix, mask, position = _start(count)
    while (at > need) & (position + 8 > zeros):
        counts = _digit_counts(keys, least, shift, prefix, mask, position)
        prefix, mask, need, at = _narrow(counts, prefix, mask, position, need)
        position -= 8
    _emit(keys, column, least, shift, prefix, mask, need, count * 0, count * 0, out_ptr)
    _pad(tl.minimum(k, count), k, out_ptr, keys.shape[0])


@triton.jit
def _load_keys(row_ptr, stride, column, num_columns, newest, FORCED: tl.constexpr):
    inside = column < num_columns
    scores = tl.load(row_ptr + column.to(tl.int64) * stride, mask=inside, other=float("-inf"))
    if FORCED:  # finite, so that a legal column always beats an illegal one, never a forced one
        most = 3.4028234663852886e38
        scores = tl.where(scores == scores, scores, -most)
        scores = tl.where(scores > most, most, tl.where(scores < -most, -most, scores))
        forced = (column == 0) | (column == newest)
        keys = tl.where(forced, 0xFFFFFFFF, ordered_keys(scores))
        keys = tl.where(inside, keys, 0)
    else:
        keys = ordered_keys(scores)
    return keys


@triton.jit
def _empty_range():
    """Least and greatest key seen, and how many: none yet."""
    zero = tl.program_id(0) * 0
    greatest = zero.to(tl.uint32)
    return greatest ^ 0xFFFFFFFF, greatest, zero


@triton.jit
def _widen_range(keys, least, greatest, count):
    least = tl.minimum(least, tl.min(tl.where(keys == 0, 0xFFFFFFFF, keys)))
    greatest = tl.maximum(greatest, tl.max(keys))
    return least, greatest, count + tl.sum((keys != 0).to(tl.int32))


@triton.jit
def _shift_of(least, greatest):
    """How far keys - least may move up, so that the first digits tell most apart.

    Returns:
        The shift, and how many low bits are then 0 in every key.
    """
    span = tl.maximum(greatest, least) - least
    # floor(log2(span)), or one more where the conversion rounds up to a power of two
    bits = (span.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    shift = tl.minimum(tl.maximum(31 - bits, 0), 31)
    return shift.to(tl.uint32), tl.where(span == 0, 32, shift)


@triton.jit
def _start(count):
    """Bits of the k-th key that are known, which they are, and where the next digit stands."""
    none = (count * 0).to(tl.uint32)
    return none, none, count * 0 + 24


@triton.jit
def _digit_counts(keys, least, shift, prefix, mask, position):
    """How many of the keys that agree with the known bits have each value of the next digit."""
    moved = (keys - least) << shift
    digit = ((moved >> position.to(tl.uint32)) & 255).to(tl.int32)
    return tl.histogram(digit, 256, mask=(keys != 0) & ((moved & mask) == prefix))


@triton.jit
def _narrow(counts, prefix, mask, position, need):
    """Fixes one digit: the known bits, how many are still to find, and among how many."""
    value = tl.arange(0, 256)
    at_least = tl.cumsum(counts, 0, reverse=True)
    digit = tl.sum((at_least >= need).to(tl.int32)) - 1
    above = tl.sum(tl.where(value > digit, counts, 0))
    at = tl.sum(tl.where(value == digit, counts, 0))
    place = position.to(tl.uint32)
    prefix |= digit.to(tl.uint32) << place
    mask |= (need * 0 + 255).to(tl.uint32) << place
    return prefix, mask, need - above, at


@triton.jit
def _emit(keys, column, least, shift, prefix, mask, need, above_seen, tied_seen, out_ptr):
    """Writes the columns of one block that are taken; how many were above, and tied, so far."""
    known = ((keys - least) << shift) & mask
    above = (keys != 0) & (known > prefix)
    tied = (keys != 0) & (known == prefix)
    # both counts in one scan: a block has fewer than 2**16 columns
    both = (above.to(tl.int32) << 16) + tied.to(tl.int32)
    before = tl.cumsum(both, 0) - both
    above_before = above_seen + (before >> 16)
    tied_before = tied_seen + (before & 0xFFFF)
    taken = above | (tied & (tied_before < need))
    tl.store(out_ptr + above_before + tl.minimum(tied_before, need), column, mask=taken)
    total = tl.sum(both)
    return above_seen + (total >> 16), tied_seen + (total & 0xFFFF)


@triton.jit
def _pad(taken, k, out_ptr, BLOCK: tl.constexpr):
    """-1 from `taken` on."""
    for start in range(taken, k, BLOCK):
        place = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + place, tl.full([BLOCK], -1, dtype=tl.int32), mask=place < k)
