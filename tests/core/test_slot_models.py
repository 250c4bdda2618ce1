import random

import pytest

from hisparse_sidecar._core import BlockWindowModel, HotBufferModel, InvalidArgument

MODELS = pytest.mark.parametrize("model_class", [HotBufferModel, BlockWindowModel])


@MODELS
def test_misses_take_free_slots_in_order_of_their_items(model_class: type[HotBufferModel]) -> None:
    done = model_class(4).resolve([30, 10, 20], stamp=3, protect_since=3)
    assert (done.slots, done.hits) == ([2, 0, 1], [])
    assert (done.misses, done.victims, done.evicted) == ([10, 20, 30], [0, 1, 2], [-1, -1, -1])


@MODELS
def test_hits_keep_their_slots_and_are_never_victims(model_class: type[HotBufferModel]) -> None:
    model = model_class(3)
    model.resolve([1, 2, 3], 3, 3)
    done = model.resolve([9, 1, -1, 1, 8], 5, 5)
    assert (done.hits, done.misses) == ([1], [8, 9])
    assert (done.victims, done.evicted) == ([1, 2], [2, 3])
    assert done.slots == [2, 0, -1, 0, 1]
    assert [model.stamp_of(slot) for slot in range(3)] == [5, 5, 5]


def test_victims_come_by_stamp_and_then_by_slot() -> None:
    model = HotBufferModel(5)
    model.resolve([10, 11], 9, 9)
    model.resolve([12], 5, 9)
    model.resolve([13], 7, 9)
    done = model.resolve([1, 2, 3, 4, 5], 11, 11)
    assert done.victims == [4, 2, 3, 0, 1]
    assert done.evicted == [-1, 12, 13, 10, 11]


def test_a_step_keeps_what_it_appended_and_selected() -> None:
    model = HotBufferModel(4)
    model.resolve([0, 1, 2], stamp=3, protect_since=3)
    model.resolve([3], stamp=5, protect_since=5)
    assert model.resolve([1, 7], stamp=5, protect_since=5).victims == [0]
    with pytest.raises(InvalidArgument, match="4 slots: 2 misses need a victim each, 1 may be"):
        model.resolve([8, 9], stamp=5, protect_since=5)
    assert model.resolve([8], stamp=5, protect_since=5).evicted == [2]


def test_a_stream_recycles_one_slot_beside_protected_ones() -> None:
    window = BlockWindowModel(3)
    window.resolve([0, 9], stamp=3, protect_since=3)
    streamed = [window.resolve([block], stamp=2, protect_since=3) for block in range(1, 6)]
    assert [done.victims for done in streamed] == [[2]] * 5
    assert window.resolve([9], stamp=2, protect_since=3).hits == [9]
    assert window.stamp_of(window.slot_of(9)) == 3


def test_released_items_free_their_slots() -> None:
    model = HotBufferModel(4)
    model.resolve([5, 6, 7, 8], 3, 3)
    model.release_from(7)
    assert [model.item_in(slot) for slot in range(4)] == [5, 6, -1, -1]
    assert (model.slot_of(7), model.stamp_of(2)) == (-1, -1)
    assert model.resolve([1, 2], 3, 3).victims == [2, 3]
    model.release_from(0)
    assert [model.item_in(slot) for slot in range(4)] == [-1] * 4
    model.check_integrity()


def test_a_buffer_as_large_as_the_sequence_never_evicts() -> None:
    rng = random.Random(0)
    model = HotBufferModel(200)
    for step in range(1, 50):
        done = model.resolve(rng.sample(range(200), 40), 2 * step + 1, 2 * step + 1)
        assert set(done.evicted) <= {-1}
    model.check_integrity()


def test_the_model_equals_its_definition_on_random_calls() -> None:
    rng = random.Random(1)
    model, held = HotBufferModel(24), {}  # held: slot -> (item, stamp)
    for step in range(1, 300):
        stamp = 2 * step + 1
        items = [rng.randrange(-1, 60) for _ in range(rng.randrange(0, 20))]
        union = sorted(set(items) - {-1})
        where = {item: slot for slot, (item, _) in held.items()}
        free = [slot for slot in range(24) if held.get(slot, (-1,))[0] not in union]
        victims = sorted(free, key=lambda slot: (held.get(slot, (-1, -1))[1], slot))
        misses = [item for item in union if item not in where]
        where |= dict(zip(misses, victims, strict=False))
        held |= {where[item]: (item, stamp) for item in union}

        done = model.resolve(items, stamp, stamp)

        assert (done.misses, done.victims) == (misses, victims[: len(misses)])
        assert done.slots == [where.get(item, -1) for item in items]


def test_bad_numbers_are_refused_and_change_nothing() -> None:
    model = HotBufferModel(2)
    model.resolve([4], 3, 3)
    bad_calls = [
        (([-2], 3, 3), "item: found -2, needed -1 to 2147483647"),
        (([2**31], 3, 3), "item: found 2147483648, needed -2147483648 to 2147483647"),
        (([5], -1, 3), "stamp: found -1, needed 0 to 2147483647"),
        (([5], 3, -1), "protect_since: found -1, needed 0 to 2147483647"),
        (([5, 6, 7], 3, 3), "2 slots: 3 misses need a victim each, 1 may be evicted"),
    ]
    for arguments, message in bad_calls:
        with pytest.raises(InvalidArgument, match=message):
            model.resolve(*arguments)
    assert (model.slot_of(4), model.slot_of(5)) == (0, -1)
    with pytest.raises(InvalidArgument, match="slot: found 2, needed 0 to 1"):
        model.item_in(2)
    with pytest.raises(InvalidArgument, match="first_item: found -1, needed 0 to"):
        model.release_from(-1)
    with pytest.raises(InvalidArgument, match="num_slots: found 0, needed 1 to 16777216"):
        HotBufferModel(0)
    assert model.resolve([5], 3, 3).victims == [1]
