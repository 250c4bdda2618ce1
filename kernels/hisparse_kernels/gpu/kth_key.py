"""Find the k-th greatest of a program's keys: count above thresholds that close in on it.

A key is a uint32 that orders as the fp32 score does; 0 stands for an entry that may not be taken.
The first two thresholds are where the k-th of as many normal values with the keys' mean and
deviation would be, the next interpolate. Indexer scores, sums over heads, take some four counts;
every fourth count cuts the range of keys into three, so that no keys take many.
"""

import triton
import triton.language as tl

from hisparse_kernels.gpu.interpreter import interpreting

FORCED_KEY = tl.constexpr(0xFFFFFFFF)  # of no score but a NaN
_INFINITE_KEY = tl.constexpr(0xFF800000)
_MOST = tl.constexpr(3.4028234663852886e38)
_INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def ordered_keys(scores) -> tl.tensor:
    """uint32 keys in the order of fp32 scores, -0.0 as 0.0; 0 for -inf."""
    bits = scores.to(tl.uint32, bitcast=True)
    bits = tl.where(bits == 0x80000000, 0, bits)
    keys = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(scores == float("-inf"), 0, keys)


@triton.jit
def kth_key(keys, more, k, floor, FORCED: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The key that bounds the k greatest.

    At all times no fewer than k keys lie above `low` and no more than k above `high`, unless there
    are no more than k; it ends where exactly k lie above `low`, or nothing between the two.

    Args:
        keys: [n] uint32.
        more: [m] uint32, further keys, or None.
        k: how many to keep.
        floor: uint32, 0 or a key with no fewer than k keys above it.
        FORCED: whether there may be keys of FORCED_KEY.

    Returns:
        The bound, how many keys equal to it are among the k, how many keys are kept: k or all.
    """
    mean, deviation, above_low = _moments(keys, floor)
    if more is not None:
        above_low += tl.sum((more > floor).to(tl.int32))
    low, high, above_high = floor, tl.full([], _INFINITE_KEY, tl.uint32), above_low * 0
    if FORCED:
        above_high = tl.sum((keys == FORCED_KEY).to(tl.int32))
        if more is not None:
            above_high += tl.sum((more == FORCED_KEY).to(tl.int32))
    kept = tl.minimum(above_low, k)
    turn = tl.where(floor > 0, 3, 0)  # what beats a floor is no sample of normal values
    while (above_low > k) & (high - low > 1):
        if turn == 0:
            first, second = _normal_thresholds(mean, deviation, above_low, k)
        elif turn % 4 == 3:
            first, second = low + (high - low) // 3, high - (high - low) // 3
        else:
            first, second = _thresholds(low, high, above_low, above_high, k)
        low, above_low, high, above_high = _close_in(
            keys, more, low, above_low, high, above_high, first, second, k
        )
        # to keys that are there: of few and often equal ones, soon to the k-th
        if (turn % 4 == 3) | (low == 0) | (high == _INFINITE_KEY):
            low, high = _snapped(keys, more, low, high)
        turn += 1
    exact = above_low <= k
    return tl.where(exact, low, high), tl.where(exact, 0, k - above_high), kept


@triton.jit
def _moments(keys, floor):
    """Mean and deviation of the scores above a floor, and how many they are.

    All three in one reduction, for each waits for all warps; in the interpreter in three, for it
    takes one element at a time of any but the common reductions.
    """
    above = (keys > floor) & (keys != FORCED_KEY)
    scores = tl.where(above, _clamped(_score_of(keys), 1e16), 0.0)  # so that squares add up
    count = (keys > floor).to(tl.int32)
    if _INTERPRETED:
        total, squares, number = tl.sum(scores), tl.sum(scores * scores), tl.sum(count)
    else:
        total, squares, number = tl.reduce((scores, scores * scores, count), 0, _add_three)
    share = 1.0 / tl.maximum(number, 1).to(tl.float32)
    mean = total * share
    return mean, tl.sqrt(tl.maximum(squares * share - mean * mean, 0.0)), number


@triton.jit
def _add_three(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def _close_in(keys, more, low, above_low, high, above_high, first, second, k):
    """The range and its counts after the keys above two thresholds inside it are counted."""
    first = tl.minimum(tl.maximum(first, low + 1), high - 1)
    second = tl.minimum(tl.maximum(second, first), high - 1)
    both = tl.sum(_twice_above(keys, first, second))
    if more is not None:
        both += tl.sum(_twice_above(more, first, second))
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
def _twice_above(keys, first, second):
    """1 in the high half where a key is above `first`, and in the low half above `second`."""
    return tl.where(keys > second, 0x10001, tl.where(keys > first, 0x10000, 0)).to(tl.uint32)


@triton.jit
def _normal_thresholds(mean, deviation, count, k):
    """Keys below and above where the k-th greatest of `count` normal values would be."""
    share = k.to(tl.float32) / count.to(tl.float32)
    spread = 2.0 * tl.sqrt(share * (1.0 - share) / count.to(tl.float32))  # chance makes half of it
    first = mean + deviation * _upper_quantile(tl.minimum(share + spread, 1.0))
    second = mean + deviation * _upper_quantile(share - spread)
    return _key_of(first), _key_of(second)


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
    from_low, from_high = _clamped(_score_of(low), _MOST), _clamped(_score_of(high), _MOST)
    first = _key_of(from_low * (1.0 - less) + from_high * less)
    second = _key_of(from_low * (1.0 - more) + from_high * more)
    keys_between = (high - low).to(tl.float32)
    first = tl.minimum(first, low + (keys_between * less).to(tl.uint32))
    return first, tl.maximum(second, low + (keys_between * more).to(tl.uint32))


@triton.jit
def _snapped(keys, more, low, high):
    """The same range between keys that are there."""
    above = tl.min(tl.where(keys > low, keys, 0xFFFFFFFF))
    below = tl.max(tl.where(keys <= high, keys, 0))
    if more is not None:
        above = tl.minimum(above, tl.min(tl.where(more > low, more, 0xFFFFFFFF)))
        below = tl.maximum(below, tl.max(tl.where(more <= high, more, 0)))
    return above - 1, below


@triton.jit
def _score_of(key):
    bits = tl.where(key >= 0x80000000, key & 0x7FFFFFFF, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _key_of(score):
    bits = score.to(tl.uint32, bitcast=True)
    return tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _clamped(score, most):
    return tl.minimum(tl.maximum(score, -most), most)
