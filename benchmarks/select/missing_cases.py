"""Decode steps where some of the wanted blocks are in pinned host memory, not in the window.

The aim beside ours is the same step with every block resident, and the time of the missing bytes
over the link.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.inputs import INDEX
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from benchmarks.select.decode_cases import BATCHES, Decode, hisa_keys
from benchmarks.select.hisa import TOPK, HisaSelection
from benchmarks.select.residency import Fetched, LookedUp, Residency
from benchmarks.select.rows import Rows
from benchmarks.select.window import PAGES_PER_BLOCK, Window, partial_window

_KEYS = 128
_PERCENTS = (10, 2, 30)
_LINK_BYTES_PER_SECOND = 50e9
_AIM = "aim: resident + bytes at 50 GB/s"

_Reside = Callable[[Rows, int, Window], Residency]


def missing_cases(pool: PinnedPool) -> Iterator[Case]:
    for percent in _PERCENTS:
        for batch in BATCHES:
            decode = Decode(batch, _KEYS)
            misses = max(1, round(decode.kept * percent / 100))
            name = f"{decode.name}, {percent} % missing ({misses} of {decode.kept})"
            yield Case(f"{name}, fetched first", partial(_missing, pool, decode, misses, _fetch))
            yield Case(f"{name}, read in place", partial(_missing, pool, decode, misses, _in_place))


def _fetch(rows: Rows, kept: int, window: Window) -> Residency:
    return Fetched(rows, kept, window)


def _in_place(rows: Rows, kept: int, window: Window) -> Residency:
    return LookedUp(rows, kept, window)


def _missing(pool: PinnedPool, decode: Decode, misses: int, reside: _Reside) -> Prepared:
    keys_read = hisa_keys(decode.blocks, decode.kept)
    sets = decode.draw(keys_read)
    missing_bytes = decode.batch * misses * PAGES_PER_BLOCK * INDEX.page_bytes

    def contender(misses: int, reside: _Reside, allowed_seconds: float = 0.0) -> Contender:
        selections, pages_each = [], decode.batch * misses * PAGES_PER_BLOCK
        for number, rows in enumerate(sets):
            window = partial_window(rows, pool, number * pages_each, decode.kept, misses)
            residency = reside(rows, decode.kept, window)
            selections.append(HisaSelection(rows, residency, TOPK, decode.kept))

        def reset() -> None:
            for one in selections:
                one.reset()

        timed = Timed([one.run for one in selections], reset)
        return Contender(selections[0].check, timed, allowed_seconds)

    def aim() -> Contender:
        return contender(0, _in_place, missing_bytes / _LINK_BYTES_PER_SECOND)

    work = replace(decode.work(keys_read), to_device_bytes=float(missing_bytes))
    return Prepared(work, contender(misses, reside), {_AIM: aim})
