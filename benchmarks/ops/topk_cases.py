"""Choose the best blocks and tokens, beside torch.topk, SGLang's fast_topk and DeepSelect."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks.ops.case import Case, Contender, Prepared
from benchmarks.ops.compare import check_equal, check_same_values
from benchmarks.ops.count import moved_work, topk_work
from benchmarks.ops.inputs import num_sets, positions, sample_rows
from benchmarks.ops.ours import triton_op
from benchmarks.ops.peers import Peers
from benchmarks.ops.timing import Timed
from hisparse_kernels.block_topm import block_topm_ref
from hisparse_kernels.prefix_positions import prefix_positions_ref
from hisparse_kernels.tail_share import tail_share_ref
from hisparse_kernels.topk import candidate_positions_ref, topk_ref
from hisparse_kernels.window_slots import WindowSlots

_TOPK, _KEPT = 2048, 64
_BLOCK_TOKENS = 128
_TAIL_SHARE = 0.05
_LONG = ((1, 131072), (8, 131072), (64, 131072), (4096, 65536), (4096, 131072))
_LONG_ROWS = 4096
_Choose = Callable[[torch.Tensor], torch.Tensor]


def topk_cases(peers: Peers) -> Iterator[Case]:
    for rows in (1, 64, 4096):
        for kind in ("normal", "ReLU"):
            name = f"topk {rows} x 8192, {kind} rows"
            yield Case(name, partial(_topk, peers, rows, 8192, kind))
    for rows, columns in _LONG:
        name = f"topk {rows} x {columns}, normal rows"
        yield Case(name, partial(_topk, peers, rows, columns, "normal"))
    for rows, blocks in ((1, 1024), (64, 1024), (4096, 512), (1, 8192)):
        name = f"block_topm {rows} x {blocks}, {_KEPT} kept"
        yield Case(name, partial(_block_topm, rows, blocks))
    for rows in (1, 64, 4096):
        name = f"candidate_positions {rows} x {_TOPK} of {_KEPT} blocks"
        yield Case(name, partial(_candidate_positions, rows))
        name = f"look_up_blocks {rows} x {_KEPT}"
        yield Case(name, partial(_look_up_blocks, rows))
        name = f"prefix_positions {rows} x {_TOPK}"
        yield Case(name, partial(_prefix_positions, rows))
        name = f"tail_share {rows} x {_TOPK} of {_KEPT} blocks"
        yield Case(name, partial(_tail_share, rows))


def _look_up_blocks(rows: int) -> Prepared:
    look_up_blocks = triton_op("look_up_blocks")
    table = torch.randperm(1024, device="cuda").int()
    base, seq = torch.zeros(1, dtype=torch.int64, device="cuda"), torch.zeros(rows, device="cuda")
    blocks, row_seq = positions(rows, _KEPT, 1024), seq.int()
    slots = WindowSlots(table, base, base, torch.empty_like(blocks))

    def call(ids: torch.Tensor) -> object:
        return look_up_blocks(ids, row_seq, slots)

    def check() -> None:
        call(blocks)
        check_equal("slots", slots.out, table[blocks.long()])

    work = moved_work(rows, 3 * 4 * _KEPT)
    return Prepared(work, Contender(check, _timed(call, [blocks])), {})


def _prefix_positions(rows: int) -> Prepared:
    prefix_positions = triton_op("prefix_positions")
    last = torch.arange(rows, dtype=torch.int32, device="cuda") % _TOPK
    found = torch.empty(rows, _TOPK, dtype=torch.int32, device="cuda")

    def call(row_pos: torch.Tensor) -> object:
        return prefix_positions(row_pos, _TOPK, out=found)

    def check() -> None:
        call(last)
        check_equal("positions", found, prefix_positions_ref(last, _TOPK))

    work = moved_work(rows, 4, 4 * _TOPK)
    return Prepared(work, Contender(check, _timed(call, [last])), {})


def _tail_share(rows: int) -> Prepared:
    tail_share = triton_op("tail_share")
    blocks = 1024
    newest = torch.full((rows,), blocks - 1, dtype=torch.int32, device="cuda")
    ids = block_topm_ref(_scores(rows, blocks, "normal"), newest, _KEPT)
    columns = positions(rows, _TOPK, _KEPT * _BLOCK_TOKENS)
    chosen = candidate_positions_ref(columns, ids, _BLOCK_TOKENS)
    work = moved_work(rows, 4 * _TOPK, 8 * _KEPT, 5)
    logits = [_scores(rows, blocks, "normal") for _ in range(num_sets(work.device_bytes))]
    found = torch.empty(rows, device="cuda"), torch.empty(rows, dtype=torch.bool, device="cuda")

    def call(scores: torch.Tensor) -> object:
        return tail_share(chosen, ids, scores, newest, _BLOCK_TOKENS, _TAIL_SHARE, out=found)

    def check() -> None:
        call(logits[0])
        wanted = tail_share_ref(chosen, ids, logits[0], newest, _BLOCK_TOKENS, _TAIL_SHARE)
        check_equal("shares", found[0], wanted[0])
        check_equal("rows that need more", found[1], wanted[1])

    return Prepared(work, Contender(check, _timed(call, logits)))


def _topk(peers: Peers, rows: int, columns: int, kind: str) -> Prepared:
    topk = triton_op("topk")
    logits = [_scores(rows, columns, kind) for _ in range(num_sets(4 * rows * columns))]
    chosen = torch.empty(rows, _TOPK, dtype=torch.int32, device="cuda")
    sample = sample_rows(rows, 64)

    def call(scores: torch.Tensor) -> object:
        return topk(scores, _TOPK, out=chosen)

    def check() -> None:
        call(logits[0])
        check_equal("columns", chosen[sample], topk_ref(logits[0][sample], _TOPK))

    def against(load: Callable[[], _Choose]) -> Contender:
        choose = load()

        def check_peer() -> None:
            call(logits[0])
            found = choose(logits[0])[sample]
            check_same_values("columns", logits[0][sample], found, chosen[sample])

        return Contender(check_peer, _timed(choose, logits))

    loaders: dict[str, Callable[[], _Choose]] = {
        "torch.topk": lambda: lambda scores: scores.topk(_TOPK, dim=1, sorted=False).indices,
        "SGLang fast_topk": lambda: peers.sglang().fast_topk(rows, columns, _TOPK),
        "DeepSelect": lambda: peers.sglang().deep_select(_TOPK),
    }
    peer_makers = {name: partial(against, load) for name, load in loaders.items()}
    work = topk_work(rows, columns, _TOPK)
    return Prepared(work, Contender(check, _timed(call, logits)), peer_makers)


def _block_topm(rows: int, blocks: int) -> Prepared:
    block_topm = triton_op("block_topm")
    logits = [_scores(rows, blocks, "normal") for _ in range(num_sets(4 * rows * blocks))]
    newest = torch.full((rows,), blocks - 1, dtype=torch.int32, device="cuda")
    kept = torch.empty(rows, _KEPT, dtype=torch.int32, device="cuda")
    sample = sample_rows(rows, 64)

    def call(scores: torch.Tensor) -> object:
        return block_topm(scores, newest, _KEPT, out=kept)

    def check() -> None:
        call(logits[0])
        check_equal("ids", kept[sample], block_topm_ref(logits[0][sample], newest[sample], _KEPT))

    def torch_topk() -> Contender:
        def choose(scores: torch.Tensor) -> object:
            return scores.topk(_KEPT, dim=1, sorted=False)

        return Contender(lambda: None, _timed(choose, logits))

    peer_makers = {"torch.topk, none forced": torch_topk}
    work = topk_work(rows, blocks, _KEPT)
    return Prepared(work, Contender(check, _timed(call, logits)), peer_makers)


def _candidate_positions(rows: int) -> Prepared:
    candidate_positions = triton_op("candidate_positions")
    work = moved_work(rows, 4 * _TOPK, 4 * _KEPT, 4 * _TOPK)
    chosen = [
        positions(rows, _TOPK, _KEPT * _BLOCK_TOKENS) for _ in range(num_sets(work.device_bytes))
    ]
    ids = positions(rows, _KEPT, 1024)
    found = torch.empty_like(chosen[0])

    def call(columns: torch.Tensor) -> object:
        return candidate_positions(columns, ids, _BLOCK_TOKENS, out=found)

    def check() -> None:
        call(chosen[0])
        check_equal("positions", found, candidate_positions_ref(chosen[0], ids, _BLOCK_TOKENS))

    return Prepared(work, Contender(check, _timed(call, chosen)))


def _timed(call: Callable[[torch.Tensor], object], inputs: list[torch.Tensor]) -> Timed:
    long = len(inputs[0]) >= _LONG_ROWS
    return Timed([partial(call, one) for one in inputs], long=long)


def _scores(rows: int, columns: int, kind: str) -> torch.Tensor:
    """Normal scores, or half of them 0 and equal, as sums of ReLUs often are."""
    scores = torch.randn(rows, columns, device="cuda")
    return scores if kind == "normal" else scores.relu_()
