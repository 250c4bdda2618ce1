from collections.abc import Iterable

import pytest
import torch

from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState, release_items, resolve

core = pytest.importorskip("hisparse_sidecar._core", reason="the core is not built")


def or_none(values: Iterable[int | None]) -> list[int]:
    return [-1 if value is None else value for value in values]


@pytest.mark.parametrize("kind", ["HotBufferModel", "BlockWindowModel"])
@pytest.mark.parametrize(("num_slots", "seed"), [(1, 0), (16, 1), (64, 2), (65, 3)])
def test_device_slots_equal_the_cores_model_slot_for_slot(
    kind: str, num_slots: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = getattr(core, kind)(num_slots)
    full = lambda size: torch.full((size,), -1).int()  # noqa: E731
    state = SlotState(full(num_slots + 8), full(num_slots + 8), full(400))
    ranges = SlotRanges(torch.tensor([8]), torch.tensor([num_slots]), torch.tensor([50]))
    plan = MissPlan(full(128)[None], full(128)[None], full(1), full(1))
    for step in range(1, 80):
        items = torch.randint(0, 300, (1, int(torch.randint(1, num_slots + 2, ())))).int()
        stamp, protect_since = 2 * step + step % 2, 2 * step + 1
        out = torch.empty_like(items)
        stamps = torch.tensor([stamp, protect_since]).int()
        args = items, torch.zeros(1).int(), state, ranges, stamps, plan, out
        try:
            found = model.resolve(items[0].tolist(), stamp, protect_since)
        except core.HisparseError:
            with pytest.raises(ValueError, match="may be evicted"):
                resolve(*args)
            continue

        resolve(*args)

        count = int(plan.miss_count[0])
        assert (out[0] - 8).tolist() == list(found.slots)
        assert int(plan.item_count[0]) == len(found.hits) + len(found.misses)
        assert plan.miss_item[0, :count].tolist() == list(found.misses)
        assert (plan.miss_dst[0, :count] - 8).tolist() == list(found.victims)
        if step % 9 == 0:
            first = int(torch.randint(0, 300, ()))
            release_items(state, ranges, 0, first)
            model.release_from(first)
        assert state.slot_item[8:].tolist() == or_none(map(model.item_in, range(num_slots)))
        assert state.slot_stamp[8:].tolist() == or_none(map(model.stamp_of, range(num_slots)))
        model.check_integrity()
