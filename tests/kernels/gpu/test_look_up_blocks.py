"""`look_up_blocks` against its reference; lists longer than a program takes at once."""

import pytest
import torch

from accuracy import assert_bits_equal
from cases import on
from hisparse_kernels.gpu.look_up_blocks import look_up_blocks_triton
from hisparse_kernels.look_up_blocks import look_up_blocks_ref
from hisparse_kernels.window_slots import WindowSlots


@pytest.mark.parametrize("kept", [1, 64, 1500])
@pytest.mark.parametrize("entries", [torch.int16, torch.int32])
def test_slots_are_the_references(kept: int, entries: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    table = torch.where(torch.rand(6000) < 0.3, -1, torch.randint(0, 3000, (6000,))).to(entries)
    base, first = torch.tensor([0, 4000]), torch.tensor([7, 2**31 - 4000])
    row_seq = torch.tensor([0, 1, -1, 1]).int()
    blocks = torch.randint(-1, 2000, (4, kept)).int()
    out = torch.full((4, kept), 12345, dtype=torch.int32)
    wanted = look_up_blocks_ref(blocks, row_seq, WindowSlots(table, base, first, out.clone()))

    slots = WindowSlots(*on(device, table, base, first, out))
    assert look_up_blocks_triton(*on(device, blocks, row_seq), slots) is slots.out

    assert_bits_equal(slots.out.cpu(), wanted)
    assert (wanted[2] == -1).all()
    assert kept == 1 or (wanted >= 2**31 - 4000).any()


def test_a_number_that_no_slot_has_is_none(device: str) -> None:
    table, base = torch.tensor([3, 9, 4, -1, 7]).int(), torch.tensor([0])
    blocks, row_seq = torch.arange(5)[None].int(), torch.tensor([0]).int()
    places = table, base, torch.tensor([2]), torch.empty_like(blocks)
    wanted = look_up_blocks_ref(blocks, row_seq, WindowSlots(*places, num_slots=9)).clone()

    slots = WindowSlots(*on(device, *places), num_slots=9)
    found = look_up_blocks_triton(*on(device, blocks, row_seq), slots)

    assert found.tolist() == wanted.tolist() == [[5, -1, 6, -1, -1]]


def test_no_blocks_have_no_slots(device: str) -> None:
    nothing = torch.empty(3, 0, dtype=torch.int32, device=device)
    base = torch.zeros(1, dtype=torch.int64, device=device)
    slots = WindowSlots(torch.zeros(4, dtype=torch.int32, device=device), base, base, nothing)

    assert look_up_blocks_triton(nothing, nothing.new_zeros(3), slots).shape == (3, 0)
