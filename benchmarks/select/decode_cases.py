"""Decode steps: HISA with every block resident, and flat where the context is short."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.count import INDEX_ROW_BYTES, selection_work
from benchmarks.ops.inputs import num_sets
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from benchmarks.ops.work import Work
from benchmarks.select.flat import FlatSelection, Score
from benchmarks.select.hisa import KEPT, TOPK, HisaSelection
from benchmarks.select.peer_chain import decode_peers, decode_scores
from benchmarks.select.random_rows import Kind, decode_rows
from benchmarks.select.residency import LookedUp
from benchmarks.select.rows import BLOCK_TOKENS, Rows
from benchmarks.select.window import full_window

BATCHES = (1, 8, 64)
FLAT_KEYS = (8, 4, 2, 1)  # in K: up to here HISA keeps every block


@dataclass(frozen=True)
class Decode:
    """A decode step of `next_n` rows for each of `batch` sequences of `keys` K tokens."""

    batch: int
    keys: int
    heads: int = 64
    next_n: int = 1
    kind: Kind = "normal"

    @property
    def name(self) -> str:
        """Name of the case."""
        next_n = f", next_n {self.next_n}" if self.next_n > 1 else ""
        kind = "" if self.kind == "normal" else f", {self.kind} rows"
        return f"decode batch {self.batch}, L={self.keys}K, {self.heads} heads{next_n}{kind}"

    @property
    def blocks(self) -> int:
        """Of each sequence."""
        return self.keys * 1024 // BLOCK_TOKENS

    @property
    def kept(self) -> int:
        """Blocks that each row keeps."""
        return min(KEPT, self.blocks)

    def draw(self, keys_read: int) -> list[Rows]:
        """Sets of inputs to go through, where each reads so many keys of each sequence."""
        count = num_sets(self.batch * keys_read * INDEX_ROW_BYTES)
        sizes = self.kind, self.batch, self.next_n, self.keys * 1024, self.heads
        return [decode_rows(*sizes) for _ in range(count)]

    def work(self, keys_read: int) -> Work:
        """Of a selection in which each row scores so many keys, the same ones in a sequence."""
        rows = self.batch * self.next_n
        return selection_work(rows * keys_read, rows, self.heads, self.batch * keys_read, TOPK)


def resident_case(peers: Peers, decode: Decode) -> Case:
    return Case(decode.name, partial(_resident, peers, decode))


def flat_cases(peers: Peers, keys: int) -> Iterator[Case]:
    """Ours, and DeepGEMM's logits with our top-k."""
    for batch in BATCHES:
        decode = Decode(batch, keys)
        yield Case(f"{decode.name}, flat", partial(_flat, peers, decode))
        name = f"{decode.name}, flat by DeepGEMM"
        yield Case(name, partial(_flat, peers, decode, by_deep_gemm=True))


def resident_selection(rows: Rows, topk: int, kept: int) -> HisaSelection:
    """Of a decode step, every block in a slot."""
    return HisaSelection(rows, LookedUp(rows, kept, full_window(rows)), topk, kept)


def hisa_keys(blocks: int, kept: int) -> int:
    """Keys that a row scores: pooled ones, and the tokens of what it keeps."""
    return blocks + kept * BLOCK_TOKENS


def _resident(peers: Peers, decode: Decode) -> Prepared:
    keys_read = hisa_keys(decode.blocks, decode.kept)
    sets = decode.draw(keys_read)
    selections = [resident_selection(rows, TOPK, decode.kept) for rows in sets]
    ours = Contender(selections[0].check, Timed([one.run for one in selections]))
    return Prepared(decode.work(keys_read), ours, decode_peers(peers, sets, TOPK))


def _flat(peers: Peers, decode: Decode, *, by_deep_gemm: bool = False) -> Prepared:
    keys = decode.keys * 1024
    sets = decode.draw(keys)

    def score(rows: Rows) -> Score | None:
        return decode_scores(peers, rows) if by_deep_gemm else None

    selections = [FlatSelection(rows, TOPK, score(rows)) for rows in sets]
    ours = Contender(selections[0].check, Timed([one.run for one in selections]))
    return Prepared(decode.work(keys), ours, decode_peers(peers, sets, TOPK))
