"""The peers' parts of a step, each on inputs of its own, their sum, and dense attention."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.ops import attention_cases, swap_cases
from benchmarks.ops.case import Contender, Prepared
from benchmarks.ops.compare import ATTENTION, LSE, check_near
from benchmarks.ops.inputs import BF16_ROWS, FP8_ROWS, kv_rows, page_tables
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.ops.timing import Timed
from benchmarks.select.decode_cases import Decode
from benchmarks.select.peer_chain import decode_peers
from benchmarks.step import world
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.sparse_mla import sparse_mla_ref

PARTS = {
    "select": "DeepGEMM + DeepSelect",
    "resolve + swap_in": "SGLang",
    "attend": "FlashMLA",
}
SUM = " + ".join(PARTS.values())
DENSE = "FlashMLA, dense"


class PeerParts:
    """Contenders of the peers; what several cases need is made once."""

    def __init__(self, peers: Peers, pool: PinnedPool) -> None:
        self._peers, self._pool = peers, pool
        self._made: dict[tuple[object, ...], Contender] = {}

    def part(self, stage: str, batch: int, misses: int, heads: int) -> Contender:
        """Of one stage."""
        makers: dict[str, tuple[Callable[..., Contender], tuple[int, ...]]] = {
            "select": (self._select, (batch,)),
            "resolve + swap_in": (self._swap, (batch, misses)),
            "attend": (self._attend, (batch, heads)),
        }
        make, sizes = makers[stage]
        key = (stage, *sizes)
        if key not in self._made:
            self._made[key] = make(*sizes)
        return self._made[key]

    def together(self, batch: int, misses: int, heads: int) -> Contender:
        """All parts, each timed alone; nothing of the peers' appends or spills is in it."""
        parts = [self.part(stage, batch, misses, heads) for stage in PARTS]

        def check() -> None:
            for part in parts:
                part.check()

        first, *rest = (part.timed for part in parts)
        return Contender(check, first, also=tuple(rest))

    def dense(self, batch: int, heads: int) -> Contender:
        """FlashMLA over the whole context, in bf16: without a selection and without a host."""
        pages_each = world.CONTEXT // PAGE_TOKENS
        rows = kv_rows(batch * world.CONTEXT, BF16_ROWS)
        (table,) = page_tables(1, batch, pages_each)
        query = torch.randn(batch, heads, world.QUERY_DIM, device="cuda", dtype=torch.bfloat16)
        lengths = torch.full((batch,), world.CONTEXT, dtype=torch.int32, device="cuda")
        values = rows.view(torch.bfloat16)
        attend = self._peers.flash_mla().dense(values, table, lengths, world.SCALE)

        def check() -> None:
            found = attend(query)
            offset = torch.arange(PAGE_TOKENS, dtype=torch.int32, device="cuda")
            ids = (table[:1, :, None] * PAGE_TOKENS + offset).flatten(1)
            expected = sparse_mla_ref(query[:1], rows, ids, BF16_ROWS, world.SCALE)
            check_near("out", found[0][:1], expected[0], ATTENTION)
            check_near("lse", found[1][:1], expected[1], LSE)

        return Contender(check, Timed([partial(attend, query)]))

    def _select(self, batch: int) -> Contender:
        decode = Decode(batch, world.CONTEXT // 1024, heads=world.INDEX_HEADS)
        sets = decode.draw(world.CONTEXT)
        return decode_peers(self._peers, sets, world.TOPK)[PARTS["select"]]()

    def _swap(self, batch: int, misses: int) -> Contender:
        return _peer_of(swap_cases.prepare_steps(self._peers, self._pool, batch, misses))

    def _attend(self, batch: int, heads: int) -> Contender:
        return _peer_of(attention_cases.prepare_decode(self._peers, batch, heads, FP8_ROWS))


def _peer_of(prepared: Prepared) -> Contender:
    """The only peer of a case."""
    (make,) = prepared.peers.values()
    return make()
