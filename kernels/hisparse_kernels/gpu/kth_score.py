"""Find the k-th greatest of a program's scores: count above thresholds that close in on it.

A score of -inf, and a NaN, may not be taken. The first two thresholds are where the k-th of as many
normal values with the scores' mean and deviation would be, the next interpolate. Indexer scores,
sums over heads, take some four counts; every fourth count from the sixth on cuts the range of
scores into three, so that no scores take many. The range is kept as keys: uint32 in the order of
fp32.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting

_NOTHING_KEY = tl.constexpr(0x007FFFFF)  # of -inf
_INFINITE_KEY = tl.constexpr(0xFF800000)
_BELOW_ZERO_KEY = tl.constexpr(0x7FFFFFFF)
_MOST = tl.constexpr(3.4028234663852886e38)
_LEAST_STEEP = tl.constexpr(1.9721522630525295e-31)  # 2**-102
_FIRST_IN_THREE = tl.constexpr(5)
_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def kth_score(scores, more, k, floor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The score that bounds the k greatest.

    At all times no fewer than k scores lie above `low` and no more than k above `high`, unless
    there are no more than k; it ends where exactly k lie above `low`, or nothing between the two.

    Args:
        scores: [rows, columns] fp32, no more than 16 rows.
        more: [m] fp32, further scores, or None.
        k: how many to keep.
        floor: fp32, -inf or a score with no fewer than k scores above it; None = -inf.

    Returns:
        The bound, how many scores equal to it are among the k, how many scores are kept: k or all.
    """
    mean, deviation, above_low = _moments(scores, floor)
    if more is not None:
        above_low += tl.sum((more > score_of(_key_of_floor(floor))).to(tl.int32))
    low, high = _key_of_floor(floor), tl.full([], _INFINITE_KEY, tl.uint32)
    above_high = above_low * 0
    kept = tl.minimum(above_low, k)
    # what beats a floor is no sample of normal values
    turn = tl.where(low == _NOTHING_KEY, 0, _FIRST_IN_THREE)
    while (above_low > k) & (high - low > 1):
        if turn == 0:
            first, second = _normal_thresholds(mean, deviation, above_low, k)
        elif _cuts_in_three(turn):
            first, second = low + (high - low) // 3, high - (high - low) // 3
        else:
            first, second = _thresholds(low, high, above_low, above_high, k)
        low, above_low, high, above_high = _close_in(
            scores, more, low, above_low, high, above_high, first, second, k
        )
        # to scores that are there: of few and often equal ones, soon to the k-th
        if _cuts_in_three(turn) | (low == _NOTHING_KEY) | (high == _INFINITE_KEY):
            low, high = _snapped(scores, more, low, high)
        turn += 1
    exact = above_low <= k
    bound = score_of(tl.where(exact, low, high))
    return bound, tl.where(exact, 0, k - above_high), kept


@triton.jit
def _key_of_floor(floor):
    return tl.full([], _NOTHING_KEY, tl.uint32) if floor is None else key_of(floor)


@triton.jit
def _cuts_in_three(turn):
    return (turn >= _FIRST_IN_THREE) & (turn % 4 == _FIRST_IN_THREE % 4)


@triton.jit
def score_of(key) -> tl.tensor:
    """The fp32 of a uint32 key; of the key of -0.0, which no score has, what is next below it."""
    key = tl.where(key == _BELOW_ZERO_KEY, _BELOW_ZERO_KEY - 1, key)
    bits = tl.where(key >= 0x80000000, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def key_of(score) -> tl.tensor:
    """uint32 in the order of fp32 scores, -0.0 as 0.0."""
    bits = (score + 0.0).to(tl.float32).to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _moments(scores, floor):
    """Mean and deviation of the scores above a floor, and how many they are.

    All three in one reduction, for each waits for all warps; in the interpreter in three, for it
    takes one element at a time of any but the common reductions.
    """
    usual = tl.abs(scores) <= 1e16  # their squares add up
    if floor is None:
        count = _taken_once(scores)
    else:
        count = tl.where(scores > floor, 1.0, 0.0)
        usual &= scores > floor
    usual = tl.where(usual, scores, 0.0)
    if _INTERPRETED:
        total, squares, number = tl.sum(usual), tl.sum(usual * usual), tl.sum(count)
    else:
        sums = tl.reduce((usual, usual * usual, count), 0, _add_three)  # a thread's own
        total, squares, number = tl.reduce(sums, None, _add_three)
    share = 1.0 / tl.maximum(number, 1.0)
    mean = total * share
    deviation = tl.sqrt(tl.maximum(squares * share - mean * mean, 0.0))
    return mean, deviation, number.to(tl.int32)


@triton.jit
def _taken_once(scores):
    """1.0 where a score may be taken, 0.0 for -inf and NaN; see `_twice_above`."""
    if _INTERPRETED:
        count = tl.where(scores > float("-inf"), 1.0, 0.0)
    else:
        count = _saturated(scores, tl.full([], 2.0**-10, tl.float32), 2.0**120)
    return count


@triton.jit
def _add_three(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def _close_in(scores, more, low, above_low, high, above_high, first, second, k):
    """The range and its counts after the scores above two thresholds inside it are counted."""
    first = tl.minimum(tl.maximum(first, low + 1), high - 1)
    second = tl.minimum(tl.maximum(second, first), high - 1)
    both = _twice_above(scores, score_of(first), score_of(second))
    if more is not None:
        both += tl.sum(_compared(more, score_of(first), score_of(second)))
    above_first, above_second = (both >> 16).to(tl.int32), (both & 0xFFFF).to(tl.int32)
    first_raises, second_raises = above_first >= k, above_second >= k
    low = tl.where(second_raises, second, tl.where(first_raises, first, low))
    above_low = tl.where(
        second_raises, above_second, tl.where(first_raises, above_first, above_low)
    )
    high = tl.where(first_raises, tl.where(second_raises, high, second), first)
    above_high = tl.where(
        first_raises, tl.where(second_raises, above_high, above_second), above_first
    )
    return low, above_low, high, above_high


@triton.jit
def _twice_above(scores, first, second):
    """How many scores are above `first`, in the high half, and above `second`, in the low half.

    A comparison takes a GPU twice as long as a product: (score - threshold) * 2**n, saturated to 0
    and 1, is exact but for thresholds next to 0.
    """
    if _INTERPRETED:  # noqa: SIM114 (the one is for the compiler, the other for the program)
        both = tl.sum(_compared(scores, first, second))
    elif tl.minimum(tl.abs(first), tl.abs(second)) < _LEAST_STEEP:
        both = tl.sum(_compared(scores, first, second))
    else:
        both = tl.fma(_stepped(scores, first), 65536.0, _stepped(scores, second))
        sums = tl.sum(both, axis=0)  # a thread's own
        both = tl.sum(sums.to(tl.uint32))
    return both


@triton.jit
def _compared(scores, first, second):
    """1 in the high half where a score is above `first`, and in the low half above `second`."""
    return tl.where(scores > second, 0x10001, tl.where(scores > first, 0x10000, 0)).to(tl.uint32)


@triton.jit
def _stepped(scores, threshold):
    """1.0 where a score is above the threshold, 0.0 elsewhere, and for NaN."""
    exponent = (threshold.to(tl.uint32, bitcast=True) >> 23) & 0xFF
    # so that any difference becomes 1 and more, and the threshold does not overflow
    steep = (tl.minimum(380 - exponent, 254) << 23).to(tl.float32, bitcast=True)
    return _saturated(scores, steep, -threshold * steep)


@triton.jit
def _saturated(scores, steep, offset):
    """Score * steep + offset, rounded once, 0.0 and 1.0 at least and most; 0.0 for NaN."""
    return tl.inline_asm_elementwise(
        "fma.rn.sat.f32 $0, $1, $2, $3;",
        "=f,f,f,f",
        [scores, steep, offset],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _normal_thresholds(mean, deviation, count, k):
    """Keys below and above where the k-th greatest of `count` normal values would be."""
    share = k.to(tl.float32) / count.to(tl.float32)
    spread = 2.0 * tl.sqrt(share * (1.0 - share) / count.to(tl.float32))  # chance makes half of it
    first = mean + deviation * _upper_quantile(tl.minimum(share + spread, 1.0))
    second = mean + deviation * _upper_quantile(share - spread)
    return key_of(first), key_of(second)


@triton.jit
def _upper_quantile(share):
    """The normal value with that share above it, to 5e-4 (Abramowitz and Stegun 26.2.23)."""
    tail = tl.maximum(tl.minimum(share, 1.0 - share), 1e-6)
    t = tl.sqrt(-2.0 * tl.log(tail))
    over = 2.515517 + t * (0.802853 + t * 0.010328)
    under = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    value = t - over / under
    return tl.where(share < 0.5, value, -value)


@triton.jit
def _thresholds(low, high, above_low, above_high, k):
    """Keys below and above where the k-th should be between low and high.

    The place is interpolated twice, as if scores lay evenly and as if keys did, which are nearly
    logarithms of scores; and moved apart by what chance does to it: a root of how many lie between.
    """
    between = (above_low - above_high).to(tl.float32)
    root = tl.rsqrt(between)
    share = ((above_low - k).to(tl.float32) + 0.5) * root * root
    less = tl.maximum(share - 0.25 * root, 0.0)
    more = tl.minimum(share + 0.25 * root, 1.0)
    # parts of both ends, for the whole way may overflow
    from_low, from_high = _finite(score_of(low)), _finite(score_of(high))
    first = key_of(from_low * (1.0 - less) + from_high * less)
    second = key_of(from_low * (1.0 - more) + from_high * more)
    keys_between = (high - low).to(tl.float32)
    first = tl.minimum(first, low + (keys_between * less).to(tl.uint32))
    return first, tl.maximum(second, low + (keys_between * more).to(tl.uint32))


@triton.jit
def _snapped(scores, more, low, high):
    """The same range between scores that are there."""
    low_score, high_score = score_of(low), score_of(high)
    above = tl.min(tl.where(scores > low_score, scores, float("inf")))
    below = tl.max(tl.where(scores <= high_score, scores, float("-inf")))
    if more is not None:
        above = tl.minimum(above, tl.min(tl.where(more > low_score, more, float("inf"))))
        below = tl.maximum(below, tl.max(tl.where(more <= high_score, more, float("-inf"))))
    return key_of(above) - 1, key_of(below)


@triton.jit
def _finite(score):
    return tl.minimum(tl.maximum(score, -_MOST), _MOST)
