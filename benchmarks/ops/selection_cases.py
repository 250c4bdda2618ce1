"""The whole selection of one layer by HISA, all index keys resident, beside DeepGEMM + DeepSelect.

The peer scores every token and takes the top-k. The recall of HISA is no matter of this suite: what
it leaves out is the point.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_same_values
from benchmarks.ops.count import INDEX_ROW_BYTES, logits_work
from benchmarks.ops.inputs import num_sets, page_codes, sample_rows
from benchmarks.ops.peers import Peers
from benchmarks.ops.selection import BLOCK_TOKENS, HEADS, KEPT, TOPK, Selection
from benchmarks.ops.timing import Timed
from hisparse_kernels.topk import topk_ref

_PREFILL_ROWS = 4096
_PEER = "DeepGEMM + DeepSelect"
_Scores = Callable[[], torch.Tensor]
_Choose = Callable[[torch.Tensor], torch.Tensor]


def selection_cases(peers: Peers) -> Iterator[Case]:
    for batch, keys in ((1, 128), (8, 128), (64, 128), (1, 1024), (8, 1024)):
        name = f"selection batch {batch}, L={keys}K, {HEADS} heads"
        yield Case(name, partial(_decode, peers, batch, keys * 1024))
    for keys in (64, 128):
        name = f"selection {_PREFILL_ROWS} rows, L={keys}K, {HEADS} heads"
        yield Case(name, partial(_prefill, peers, keys * 1024))


def _decode(peers: Peers, batch: int, keys: int) -> Prepared:
    pairs = batch * (keys // BLOCK_TOKENS + KEPT * BLOCK_TOKENS)
    row_seq = torch.arange(batch, dtype=torch.int32, device="cuda")
    row_pos = torch.full_like(row_seq, keys - 1)
    sets = [Selection(keys, row_seq, row_pos) for _ in range(num_sets(pairs * INDEX_ROW_BYTES))]

    def peer() -> Contender:
        lengths = torch.full_like(row_seq, keys)
        choose = peers.sglang().deep_select(TOPK)

        def scores_of(one: Selection) -> _Scores:
            score = peers.deep_gemm().paged(one.query, one.index_pages, one.weights, lengths, keys)
            return lambda: score(one.block_tables)[:, :keys]

        return _peer([scores_of(one) for one in sets], choose, row_pos, long=False)

    work = logits_work(pairs, batch, HEADS, pairs)
    ours = Contender(sets[0].check, Timed([one.run for one in sets]))
    return Prepared(work, ours, {_PEER: peer})


def _prefill(peers: Peers, keys: int) -> Prepared:
    row_pos = keys - _PREFILL_ROWS + torch.arange(_PREFILL_ROWS, dtype=torch.int32, device="cuda")
    selection = Selection(keys, torch.zeros_like(row_pos), row_pos)

    def peer() -> Contender:
        score, choose = peers.deep_gemm().prefill, peers.sglang().deep_select_until(TOPK)
        start, end = torch.zeros_like(row_pos), row_pos + 1
        rows = page_codes(selection.index_pages)
        arguments = selection.query, *rows, selection.weights, start, end

        def scores() -> torch.Tensor:
            return score(*arguments)[:, :keys]

        return _peer([scores], lambda found: choose(found, end), row_pos, long=True)

    pairs = _PREFILL_ROWS * (keys // BLOCK_TOKENS + KEPT * BLOCK_TOKENS)
    work = logits_work(pairs, _PREFILL_ROWS, HEADS, keys + keys // BLOCK_TOKENS)
    ours = Contender(selection.check, Timed([selection.run], long=True))
    return Prepared(work, ours, {_PEER: peer})


def _peer(
    scores: list[_Scores], choose: _Choose, row_pos: torch.Tensor, *, long: bool
) -> Contender:
    """Its scores are checked in cases of their own; here, that it chose the best of them."""

    def check() -> None:
        sample = sample_rows(len(row_pos))
        found = scores[0]()
        chosen, values = choose(found)[sample], found[sample]
        column = torch.arange(values.shape[1], device=values.device)
        values = values.masked_fill(column > row_pos[sample, None], -torch.inf)
        check_same_values("positions", values, chosen, topk_ref(values, TOPK))

    def call(score: _Scores) -> object:
        return choose(score())

    return Contender(check, Timed([partial(call, score) for score in scores], long=long))
