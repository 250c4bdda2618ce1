"""Prefill chunks: the last rows of one prompt, whose index keys are all on the device."""

from functools import partial

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.count import prefill_pairs, selection_work
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from benchmarks.select.decode_cases import hisa_keys
from benchmarks.select.hisa import KEPT, TOPK, HisaSelection
from benchmarks.select.peer_chain import prefill_peers
from benchmarks.select.random_rows import Kind, prefill_rows
from benchmarks.select.residency import InOrder
from benchmarks.select.rows import Rows

HEADS = 64
PREFILL_ROWS = 4096


def prefill_case(peers: Peers, keys: int, rows: int = PREFILL_ROWS, kind: Kind = "normal") -> Case:
    """The last `rows` of a prompt of `keys` K tokens."""
    suffix = "" if kind == "normal" else f", {kind} rows"
    name = f"prefill {rows} rows, L={keys}K, {HEADS} heads{suffix}"
    return Case(name, partial(_prefill, peers, kind, rows, keys * 1024))


def prefill_work(rows: Rows) -> Work:
    """Of HISA; where it keeps every block, of all keys that each row may see."""
    if rows.blocks <= KEPT:
        pairs = prefill_pairs(rows.num_rows, rows.keys)
    else:
        pairs = rows.num_rows * hisa_keys(rows.blocks, KEPT)
    keys_read = rows.keys + rows.blocks
    return selection_work(pairs, rows.num_rows, rows.heads, keys_read, TOPK)


def _prefill(peers: Peers, kind: Kind, count: int, keys: int) -> Prepared:
    rows = prefill_rows(kind, count, keys, HEADS)
    selection = HisaSelection(rows, InOrder(rows), TOPK, KEPT)
    ours = Contender(selection.check, Timed([selection.run], long=True))
    return Prepared(prefill_work(rows), ours, prefill_peers(peers, rows, TOPK))
