"""The two ops of a selection, each alone: which of them the time goes to."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.count import selection_work
from benchmarks.ops.timing import Timed
from benchmarks.select.decode_cases import BATCHES, Decode, hisa_keys, resident_selection
from benchmarks.select.hisa import KEPT, TOPK, HisaSelection
from benchmarks.select.prefill_cases import HEADS, PREFILL_ROWS
from benchmarks.select.random_rows import prefill_rows
from benchmarks.select.residency import InOrder
from benchmarks.select.rows import BLOCK_TOKENS, Rows

_Half = Callable[[HisaSelection], Callable[[], None]]


def part_cases() -> Iterator[Case]:
    for batch, keys in (*((batch, 128) for batch in BATCHES), (1, 1024)):
        decode = Decode(batch, keys)
        size = f"batch {batch}, L={keys}K, {decode.heads} heads"
        yield Case(f"select_blocks {size}", partial(_decode_blocks, decode))
        yield Case(f"select_tokens {size}", partial(_decode_tokens, decode))
    size = f"{PREFILL_ROWS} rows, L=128K, {HEADS} heads"
    yield Case(f"select_blocks {size}", partial(_prefill_blocks, 128 * 1024))
    yield Case(f"select_tokens {size}", partial(_prefill_tokens, 128 * 1024))


def _decode_blocks(decode: Decode) -> Prepared:
    rows = decode.batch
    work = selection_work(
        rows * decode.blocks, rows, decode.heads, rows * decode.blocks, decode.kept
    )
    return Prepared(work, _decode(decode, lambda one: one.keep_blocks))


def _decode_tokens(decode: Decode) -> Prepared:
    work = decode.work(decode.kept * BLOCK_TOKENS)
    return Prepared(work, _decode(decode, lambda one: one.choose_tokens))


def _decode(decode: Decode, half: _Half) -> Contender:
    sets = decode.draw(hisa_keys(decode.blocks, decode.kept))
    return _contender([resident_selection(rows, TOPK, decode.kept) for rows in sets], half)


def _prefill_blocks(keys: int) -> Prepared:
    rows = prefill_rows("normal", PREFILL_ROWS, keys, HEADS)
    pairs = rows.num_rows * rows.blocks
    work = selection_work(pairs, rows.num_rows, HEADS, rows.blocks, KEPT)
    return Prepared(work, _prefill(rows, lambda one: one.keep_blocks))


def _prefill_tokens(keys: int) -> Prepared:
    rows = prefill_rows("normal", PREFILL_ROWS, keys, HEADS)
    pairs = rows.num_rows * KEPT * BLOCK_TOKENS
    work = selection_work(pairs, rows.num_rows, HEADS, keys, TOPK)
    return Prepared(work, _prefill(rows, lambda one: one.choose_tokens))


def _prefill(rows: Rows, half: _Half) -> Contender:
    return _contender([HisaSelection(rows, InOrder(rows), TOPK, KEPT)], half, long=True)


def _contender(selections: list[HisaSelection], half: _Half, *, long: bool = False) -> Contender:
    """Timed on what a whole selection left behind: block ids of its own."""

    def check() -> None:
        for one in selections:
            one.run()
        selections[0].check()

    return Contender(check, Timed([half(one) for one in selections], long=long))
