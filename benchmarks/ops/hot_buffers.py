"""Hot buffers of many requests over one host pool, and the steps that both engines run on them."""

from collections.abc import Callable
from dataclasses import fields

import torch

from benchmarks.ops.ours import triton_op
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState

HOT_SLOTS, TOPK = 4096, 2048


def host_pages(requests: int, pages_each: int, pool_pages: int) -> torch.Tensor:
    """[requests, pages_each] int32: distinct pages of the pool for each request, shuffled."""
    shuffled = [torch.randperm(pool_pages, device="cuda")[:pages_each] for _ in range(requests)]
    return torch.stack(shuffled).int()


def host_row_ids(page_table: torch.Tensor) -> torch.Tensor:
    """[requests, tokens] int64: the host row of every token position."""
    offset = torch.arange(PAGE_TOKENS, device=page_table.device)
    return (page_table.long()[:, :, None] * PAGE_TOKENS + offset).flatten(1)


class HotBuffers:
    """Ours: slot state, miss plan and rows of `requests` cold hot buffers.

    Attributes:
        state, ranges: of `resolve`; request r owns the slots from r * `HOT_SLOTS` on.
        plan: of the last step.
        hot_rows: [requests * HOT_SLOTS, row_bytes] uint8.
    """

    def __init__(self, host_rows: torch.Tensor, page_table: torch.Tensor) -> None:
        requests, pages_each = page_table.shape
        num_slots, tokens = requests * HOT_SLOTS, pages_each * PAGE_TOKENS
        number = torch.arange(requests, device="cuda")

        def ids(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, -1, dtype=dtype, device="cuda")

        self._launch, self._swap_in = triton_op("resolve"), triton_op("swap_in")
        self._host_rows, self._page_table = host_rows, page_table
        self._row_seq = number.int()
        self._slots = ids(requests, TOPK)
        self.state = SlotState(
            ids(num_slots), ids(num_slots), ids(requests * tokens, dtype=torch.int16)
        )
        self.ranges = SlotRanges(
            number * HOT_SLOTS, torch.full_like(number, HOT_SLOTS), number * tokens
        )
        self.plan = MissPlan(ids(requests, TOPK), ids(requests, TOPK), ids(requests), ids(requests))
        self.hot_rows = host_rows.new_empty(num_slots, host_rows.shape[1])

    def step(self, items: torch.Tensor, stamps: torch.Tensor) -> torch.Tensor:
        """Slots [requests, topk] of the items, whose rows are then in `hot_rows`."""
        self.resolve(self._launch, items, stamps, self._slots)
        self._swap_in(self._host_rows, self._page_table, self.plan, self.hot_rows)
        return self._slots

    def resolve(
        self,
        op: Callable[..., object],
        items: torch.Tensor,
        stamps: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Slots of the items, by the launcher of the op or by its reference, to `out`."""
        op(items, self._row_seq, self.state, self.ranges, stamps, self.plan, out)

    def saved_plan(self, misses: int) -> MissPlan:
        """A copy of the miss plan, of its first entries."""
        plan = self.plan
        return MissPlan(
            plan.miss_item[:, :misses].clone(),
            plan.miss_dst[:, :misses].clone(),
            plan.miss_count.clone(),
            plan.item_count.clone(),
        )

    def saved(self) -> SlotState:
        """A copy of the slot state."""
        return SlotState(**{one.name: getattr(self.state, one.name).clone() for one in _STATE})

    def restore(self, saved: SlotState) -> None:
        """Back to a copy of the slot state."""
        for one in _STATE:
            getattr(self.state, one.name).copy_(getattr(saved, one.name))


_STATE = fields(SlotState)


def stamps(number: int) -> torch.Tensor:
    """[2] int32: stamp and protection of one step."""
    return torch.tensor([number, number], dtype=torch.int32, device="cuda")


def selections(requests: int, tokens: int, misses: int, steps: int) -> list[torch.Tensor]:
    """Two selections that fill the hot buffers, then `steps` with `misses` new positions each.

    Returns:
        [requests, topk] int32 each, ascending positions below `tokens - 1`; a new position was in
        no selection before, so that it must miss under any policy.
    """
    needed = 2 * TOPK + steps * misses
    if needed >= tokens:
        raise ValueError(f"{needed} positions are to be drawn from {tokens - 1}")
    fresh = torch.rand(requests, tokens - 1, device="cuda").topk(needed, dim=1).indices.int()
    current = fresh[:, TOPK : 2 * TOPK].clone()
    found = [fresh[:, :TOPK], current]
    for step in range(steps):
        first = 2 * TOPK + step * misses
        columns = torch.arange(step * misses, (step + 1) * misses, device="cuda") % TOPK
        current = current.clone()
        current[:, columns] = fresh[:, first : first + misses]
        found.append(current)
    return [selection.sort(1).values.contiguous() for selection in found]
