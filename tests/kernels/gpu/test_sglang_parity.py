"""SGLang's swap-in and ours over the same thousand steps: the same hits, the same rows delivered.

Three differences are legal, and the steps leave them no room:

- SGLang holds a sequence's newest token in a slot beside its LRU slots, as neither hit nor miss;
  ours resolves it like any other. So ours has as many slots as SGLang's LRU, and is not asked for
  the newest token. When the next one comes, it becomes an ordinary token, resident in neither.
- Both evict what was used longest ago, by steps. Of what was used last in one and the same step
  SGLang evicts misses before hits, ours the lowest slots. So the items of the oldest step that is
  still resident in part are not selected: either may hold any of them.
- The plans may list the misses in different orders.
"""

from collections.abc import Callable

import pytest
import torch

from benchmarks.ops.case import PeerAbsentError
from benchmarks.ops.hot_buffers import (
    HOT_SLOTS,
    TOPK,
    HotBuffers,
    host_pages,
    host_row_ids,
    stamps,
)
from benchmarks.ops.peer_sglang import SglangHotBuffers
from benchmarks.ops.peers import LOADERS, Peers
from benchmarks.ops.pinned import PinnedPool
from hisparse_kernels.layouts import PAGE_TOKENS

# a warning of theirs is no error of ours
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

NUM_SEQS, NUM_TOKENS, ROW_BYTES, NUM_STEPS = 8, 64 * 1024, 656, 1000
FIRST_LENGTH = NUM_TOKENS - 500
CHANGED = TOPK // 10  # of a selection, from step to step
POOL_PAGES = 2048

MakeBuffers = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], SglangHotBuffers]


class Life:
    """Lengths and selections of all sequences, step by step.

    Attributes:
        lengths: [seqs] int32; the newest token is the last.
        current: [seqs, TOPK - 1] int64, positions selected beside the newest, ascending.
        num_returns: how many hits were not selected in the step before.
    """

    def __init__(self, device: str) -> None:
        self.lengths = torch.full((NUM_SEQS,), FIRST_LENGTH, dtype=torch.int32, device=device)
        drawn = torch.rand(NUM_SEQS, FIRST_LENGTH - 1, device=device)
        self.current = drawn.topk(TOPK - 1, dim=1).indices.sort(1).values
        self.num_returns = torch.zeros((), dtype=torch.int64, device=device)
        self._last_use = torch.full((NUM_SEQS, NUM_TOKENS), -1, dtype=torch.int32, device=device)
        self._positions = torch.arange(NUM_TOKENS, device=device)

    def advance(self, step: int) -> None:
        """Some sequences grow by a token; a tenth of every selection is another."""
        self.lengths += torch.rand(NUM_SEQS, device=self.lengths.device) < 1 / 8
        # slots are full of what was used last, down to some of what was used at `edge`
        edge = self._last_use.topk(HOT_SLOTS, dim=1).values[:, -1:]
        resident = self._last_use > edge
        barred = ((self._last_use == edge) & (edge >= 0)) | self._is_newest_or_later()
        barred.scatter_(1, self.current, True)
        # what is resident, or was the newest lately, is drawn more often than by its number
        weight = torch.where(resident | (self._positions >= FIRST_LENGTH), 20.0, 1.0)
        drawn = torch.rand(weight.shape, device=weight.device) ** (1 / weight)
        fresh = drawn.masked_fill(barred, -1.0).topk(CHANGED, dim=1).indices
        self.num_returns += resident.gather(1, fresh).sum()
        gone = torch.rand(self.current.shape, device=fresh.device).topk(CHANGED, dim=1).indices
        self.current = self.current.scatter(1, gone, fresh).sort(1).values
        self._last_use.scatter_(1, self.current, step)

    def newest(self) -> torch.Tensor:
        """[seqs, 1] int64."""
        return self.lengths[:, None].long() - 1

    def _is_newest_or_later(self) -> torch.Tensor:
        return self._positions >= self.newest()


class Pair:
    """Cold buffers of both over one host pool, and a copy of that on the device."""

    def __init__(self, make_theirs: MakeBuffers, lengths: torch.Tensor) -> None:
        self._host_rows = PinnedPool(POOL_PAGES * PAGE_TOKENS * ROW_BYTES).rows(ROW_BYTES)
        self._rows = self._host_rows.clone()
        page_table = host_pages(NUM_SEQS, NUM_TOKENS // PAGE_TOKENS, POOL_PAGES)
        self._row_ids = host_row_ids(page_table)
        self.ours = HotBuffers(self._host_rows, page_table)
        self.theirs = make_theirs(self._host_rows, self._row_ids, lengths)

    def assert_same_step(self, life: Life, step: int) -> None:
        newest = life.newest()
        theirs = self.theirs.step(torch.cat([life.current, newest], 1).int(), record=True)
        asked = torch.cat([life.current, torch.full_like(newest, -1)], 1).int()
        ours = self.ours.step(asked, stamps(step))

        counts = self.ours.plan.miss_count
        assert counts.tolist() == self.theirs.miss_count.tolist(), f"misses of step {step}"
        assert self.ours.plan.item_count.tolist() == [TOPK - 1] * NUM_SEQS, f"items of step {step}"
        assert torch.equal(self._missed_rows(), listed(self.theirs.miss_rows, counts)), (
            f"missed rows of step {step}"
        )
        wanted = self._rows[self._row_ids.gather(1, life.current)]
        delivered = self.ours.hot_rows[ours[:, :-1].long()]
        assert torch.equal(delivered, wanted), f"rows that ours delivered in step {step}"
        delivered = self.theirs.device_rows[theirs[:, :-1].long()]
        assert torch.equal(delivered, wanted), f"rows that SGLang delivered in step {step}"
        own_slot = self.theirs.locations[:, HOT_SLOTS]
        assert torch.equal(theirs[:, -1], own_slot), f"slot of the newest token of step {step}"

    def _missed_rows(self) -> torch.Tensor:
        items = self.ours.plan.miss_item.clamp(0, NUM_TOKENS - 1).long()
        return listed(self._row_ids.gather(1, items), self.ours.plan.miss_count)


def listed(rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Host rows that a plan lists, in ascending order, behind -1."""
    column = torch.arange(rows.shape[1], device=rows.device)
    return rows.masked_fill(column >= counts[:, None], -1).sort(1).values


@pytest.fixture
def make_theirs() -> MakeBuffers:
    """Cold buffers of SGLang; skips where its kernel does not load or compile."""
    try:
        make = Peers({"SGLang": LOADERS["SGLang"]}).sglang().swap_in(TOPK, HOT_SLOTS, ROW_BYTES)
        rows = torch.zeros(HOT_SLOTS, ROW_BYTES, dtype=torch.uint8, device="cuda")
        row_ids = torch.zeros(1, NUM_TOKENS, dtype=torch.int64, device="cuda")
        items = torch.arange(TOPK, dtype=torch.int32, device="cuda")[None]
        length = torch.full((1,), NUM_TOKENS, dtype=torch.int32, device="cuda")
        make(rows, row_ids, length).step(items, record=True)  # compiles
    except (PeerAbsentError, OSError, RuntimeError) as error:
        pytest.skip(f"SGLang's swap-in does not load here: {error}")
    return make


def test_sglang_has_the_same_hits_and_delivers_the_same_rows(make_theirs: MakeBuffers) -> None:
    torch.manual_seed(0)
    life = Life("cuda")
    pair = Pair(make_theirs, life.lengths)

    for step in range(1, NUM_STEPS + 1):
        life.advance(step)
        pair.assert_same_step(life, step)

    # the steps have let each policy err: items came back that were still resident
    assert life.num_returns > NUM_STEPS * NUM_SEQS * CHANGED // 20
    assert life.lengths.min() > FIRST_LENGTH
