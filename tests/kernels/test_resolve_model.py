from collections.abc import Iterable
from dataclasses import dataclass

import pytest
import torch

from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_kernels.gpu.resolve import release_items_triton, resolve_triton
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState, release_items, resolve

core = pytest.importorskip("hisparse_sidecar._core", reason="the core is not built")


def or_none(values: Iterable[int | None]) -> list[int]:
    return [-1 if value is None else value for value in values]


@dataclass
class DeviceSlots:
    """One sequence's slots behind 8 slots and 50 entries of others."""

    num_slots: int
    device: str
    is_reference: bool

    def __post_init__(self) -> None:
        full = lambda size: torch.full((size,), -1, device=self.device).int()  # noqa: E731
        one = lambda value: torch.tensor([value], device=self.device)  # noqa: E731
        slots = self.num_slots + 8
        self.state = SlotState(full(slots), full(slots), full(400))
        self.ranges = SlotRanges(one(8), one(self.num_slots), one(50))
        self.plan = MissPlan(full(128)[None], full(128)[None], full(1), full(1))

    def resolve(self, items: torch.Tensor, stamps: list[int]) -> torch.Tensor | None:
        """Slots of the sequence for [1, k] items; None = refused."""
        items, now = items.to(self.device), torch.tensor(stamps, device=self.device).int()
        row_seq, out = torch.zeros(1, device=self.device).int(), torch.empty_like(items)
        op = resolve if self.is_reference else resolve_triton
        try:
            op(items, row_seq, self.state, self.ranges, now, self.plan, out)
        except ValueError as error:
            if "may be evicted" in str(error):
                return None
            raise
        return out[0].cpu() - 8 if int(self.plan.miss_count[0]) >= 0 else None

    def release_from(self, first_item: int) -> None:
        op = release_items if self.is_reference else release_items_triton
        op(self.state, self.ranges, 0, first_item)

    def misses(self) -> tuple[list[int], list[int]]:
        count = int(self.plan.miss_count[0])
        return self.plan.miss_item[0, :count].tolist(), (self.plan.miss_dst[0, :count] - 8).tolist()


@pytest.fixture(
    params=["reference", "interpreter", pytest.param("gpu", marks=pytest.mark.gpu)], scope="module"
)
def backend(request: pytest.FixtureRequest) -> tuple[str, bool]:
    if request.param == "interpreter" and not interpreting():
        pytest.skip("Triton compiles here: the interpreter is for machines without a GPU")
    return "cuda" if request.param == "gpu" else "cpu", request.param == "reference"


@pytest.mark.parametrize("kind", ["HotBufferModel", "BlockWindowModel"])
@pytest.mark.parametrize(("num_slots", "seed"), [(1, 0), (16, 1), (64, 2), (65, 3)])
def test_device_slots_equal_the_cores_model_slot_for_slot(
    kind: str, num_slots: int, seed: int, backend: tuple[str, bool]
) -> None:
    torch.manual_seed(seed)
    model, slots = getattr(core, kind)(num_slots), DeviceSlots(num_slots, *backend)
    for step in range(1, 50):
        items = torch.randint(0, 300, (1, int(torch.randint(1, num_slots + 2, ())))).int()
        stamps = [2 * step + step % 2, 2 * step + 1]
        try:
            found = model.resolve(items[0].tolist(), *stamps)
        except core.HisparseError:
            assert slots.resolve(items, stamps) is None
            continue

        resolved = slots.resolve(items, stamps)

        assert resolved is not None
        assert resolved.tolist() == list(found.slots)
        assert int(slots.plan.item_count[0]) == len(found.hits) + len(found.misses)
        assert slots.misses() == (list(found.misses), list(found.victims))
        if step % 9 == 0:
            first = int(torch.randint(0, 300, ()))
            slots.release_from(first)
            model.release_from(first)
        items_now, stamps_now = slots.state.slot_item[8:], slots.state.slot_stamp[8:]
        assert items_now.tolist() == or_none(map(model.item_in, range(num_slots)))
        assert stamps_now.tolist() == or_none(map(model.stamp_of, range(num_slots)))
        model.check_integrity()
