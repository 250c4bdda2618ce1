"""Rows of the trained model: the same selections, and what HISA loses of flat's choice there.

The model has 32 index heads and 16K tokens, and chooses 512 of them. The timed cases choose 2048,
as the others do; one more chooses 512 of a quarter as many blocks.
"""

from collections.abc import Iterator, Mapping
from functools import partial

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.count import INDEX_ROW_BYTES, selection_work
from benchmarks.ops.inputs import num_sets
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from benchmarks.select.decode_cases import hisa_keys, resident_selection
from benchmarks.select.hisa import KEPT, TOPK, HisaSelection
from benchmarks.select.peer_chain import decode_peers, prefill_peers
from benchmarks.select.prefill_cases import PREFILL_ROWS, prefill_work
from benchmarks.select.real_rows import TOKENS, RealRows
from benchmarks.select.recall import needle_recall, recall_by_layer, recall_of_flat
from benchmarks.select.residency import InOrder

_FEW_KEPT, _FEW = 16, 512
_HEADS, _SEQUENCES = 32, 8


def real_cases(peers: Peers, real: RealRows) -> Iterator[Case]:
    size = f"L={TOKENS // 1024}K, {_HEADS} heads, rows of tiny-dsa"
    decode = f"decode batch {_SEQUENCES}, {size}"
    yield Case(decode, partial(_decode, peers, real, TOPK, KEPT))
    name = f"{decode}, {_FEW} of {_FEW_KEPT} blocks"
    yield Case(name, partial(_decode, None, real, _FEW, _FEW_KEPT))
    yield Case(f"prefill {PREFILL_ROWS} rows, {size}", partial(_prefill, peers, real))


def _decode(peers: Peers | None, real: RealRows, topk: int, kept: int) -> Prepared:
    rows = real.decode()
    keys_read = hisa_keys(rows.blocks, kept)
    read_bytes = rows.num_rows * keys_read * INDEX_ROW_BYTES
    sets = [rows] + [rows.copy() for _ in range(num_sets(read_bytes) - 1)]
    selections = [resident_selection(one, topk, kept) for one in sets]

    def facts() -> Mapping[str, float]:
        selections[0].run()
        found = selections[0].positions
        by_layer = recall_by_layer(rows, found, real.layers)
        return {**by_layer, **needle_recall(rows, found, real.needles)}

    pairs = rows.num_rows * keys_read
    work = selection_work(pairs, rows.num_rows, rows.heads, pairs, topk)
    ours = Contender(selections[0].check, Timed([one.run for one in selections]))
    others = decode_peers(peers, sets, topk) if peers is not None else {}
    return Prepared(work, ours, others, facts)


def _prefill(peers: Peers, real: RealRows) -> Prepared:
    rows = real.prefill(PREFILL_ROWS)
    selection = HisaSelection(rows, InOrder(rows), TOPK, KEPT)

    def facts() -> Mapping[str, float]:
        selection.run()
        return {"recall of flat": float(recall_of_flat(rows, selection.positions).mean())}

    ours = Contender(selection.check, Timed([selection.run], long=True))
    return Prepared(prefill_work(rows), ours, prefill_peers(peers, rows, TOPK), facts)
