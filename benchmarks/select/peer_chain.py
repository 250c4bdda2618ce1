"""The peers' chain: DeepGEMM scores every token, a kernel of SGLang takes the top-k."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.ops.case import Contender
from benchmarks.ops.inputs import page_codes, sample_rows
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from benchmarks.select.check_chosen import check_chosen
from benchmarks.select.rows import Rows

_Scores = Callable[[], torch.Tensor]
_Choose = Callable[[torch.Tensor], torch.Tensor]


def decode_scores(peers: Peers, rows: Rows, *, apart: bool = False) -> _Scores:
    """Logits [rows, keys] of a decode step by DeepGEMM; beyond a row's own anything.

    Rows of one sequence are scored together, or `apart` as if each had a sequence of its own.
    """
    next_n = 1 if apart else rows.num_rows // rows.num_sequences
    table = rows.page_table[rows.row_seq.long()] if apart else rows.page_table
    arguments = rows.query, rows.index_pages, rows.weights, rows.row_pos + 1, rows.keys, next_n
    score = peers.deep_gemm().paged(*arguments)
    return lambda: score(table)[:, : rows.keys]


def decode_peers(
    peers: Peers, sets: list[Rows], topk: int
) -> Mapping[str, Callable[[], Contender]]:
    """Of a decode step. DeepSelect takes no row shorter than its top-k, fast_topk does."""
    rows = sets[0]

    def make(*, apart: bool) -> Contender:
        scores = [decode_scores(peers, one, apart=apart) for one in sets]
        return _chain(rows, topk, scores, _decode_choice(peers, rows, topk), long=False)

    top = "fast_topk" if rows.keys <= topk else "DeepSelect"
    found = {f"DeepGEMM + {top}": partial(make, apart=False)}
    if rows.num_rows > rows.num_sequences:  # not every version takes every next_n
        found[f"DeepGEMM, rows apart + {top}"] = partial(make, apart=True)
    return found


def _decode_choice(peers: Peers, rows: Rows, topk: int) -> _Choose:
    sglang = peers.sglang()
    if rows.keys <= topk:
        return sglang.fast_topk(rows.num_rows, rows.keys, topk)
    if rows.num_rows == rows.num_sequences:
        return sglang.deep_select(topk)
    choose, end = sglang.deep_select_until(topk), rows.row_pos + 1
    return lambda scores: choose(scores, end)


def prefill_peers(peers: Peers, rows: Rows, topk: int) -> Mapping[str, Callable[[], Contender]]:
    """Of rows of one sequence."""

    def make() -> Contender:
        score, choose = peers.deep_gemm().prefill, peers.sglang().deep_select_until(topk)
        start, end = torch.zeros_like(rows.row_pos), rows.row_pos + 1
        stored = page_codes(rows.index_pages)
        arguments = rows.query, *stored, rows.weights, start, end

        def scores() -> torch.Tensor:
            return score(*arguments)[:, : rows.keys]

        return _chain(rows, topk, [scores], lambda found: choose(found, end), long=True)

    return {"DeepGEMM + DeepSelect": make}


def _chain(
    rows: Rows, topk: int, scores: list[_Scores], choose: _Choose, *, long: bool
) -> Contender:
    def call(score: _Scores) -> torch.Tensor:
        return choose(score())

    def check() -> None:
        some = sample_rows(rows.num_rows)
        found = call(scores[0])[some]
        check_chosen("positions", rows.token_logits_ref(some), found, topk)

    return Contender(check, Timed([partial(call, score) for score in scores], long=long))
