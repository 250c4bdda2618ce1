"""Master and owner die and come back amid traffic: no wrong byte, no call that hangs."""

import random
import time

import pytest

from hisparse_sidecar._core import DeadlinePassed, TierDown, TierFull
from hisparse_sidecar.remote import MooncakeOptions, MooncakeTier, connect
from hisparse_sidecar.remote.local_store import LocalMaster, LocalOwner
from tests.remote.pages import PAGE_BYTES, bytes_of, identity_of

NUM_PAGES, NUM_CALLS, NUM_DEATHS = 64, 200, 6
SEGMENT_BYTES = 64 << 20
DEADLINE_SECONDS, LONGEST_SECONDS = 0.5, 1.5  # a busy machine may wake the caller late
ANSWER_SECONDS = 10.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_deaths_amid_traffic_give_no_wrong_byte(master: LocalMaster, seed: int) -> None:
    draw = random.Random(seed)
    owner = LocalOwner(master.address, SEGMENT_BYTES)
    with connect(MooncakeOptions(master.address, max_page_bytes=PAGE_BYTES)) as tier:
        num_hits = 0
        for _ in range(NUM_DEATHS):
            await_answers(tier)
            num_hits += sum(call(tier, draw) for _ in range(NUM_CALLS))
            if draw.random() < 0.5:
                master.kill()
                await_calls(tier, draw)
                master.start()
            else:
                owner.kill()
                await_calls(tier, draw)
                owner = LocalOwner(master.address, SEGMENT_BYTES)
        await_answers(tier)
        usage = tier.usage
        assert num_hits > NUM_DEATHS * NUM_CALLS // 4
        assert usage.failures > 0
        assert usage.corrupt == 0
    owner.kill()


def await_calls(tier: MooncakeTier, draw: random.Random) -> None:
    """Traffic while something is dead."""
    for _ in range(10):
        call(tier, draw)


def await_answers(tier: MooncakeTier) -> None:
    """Puts pages of their own until one succeeds."""
    start = time.monotonic()
    while not put(tier, NUM_PAGES):
        assert time.monotonic() - start < ANSWER_SECONDS, "the store does not come back"
        time.sleep(0.05)


def call(tier: MooncakeTier, draw: random.Random) -> bool:
    """One call on one page; whether it was a hit. A miss is put."""
    page, start = draw.randrange(NUM_PAGES), time.monotonic()
    into = bytearray(PAGE_BYTES)
    is_hit = False
    try:
        is_hit = tier.get(identity_of(page), into, deadline_seconds=DEADLINE_SECONDS)
    except (TierDown, DeadlinePassed):
        pass
    else:
        assert not is_hit or into == bytes_of(page)
    assert time.monotonic() - start < LONGEST_SECONDS
    if not is_hit:
        put(tier, page)
    return is_hit


def put(tier: MooncakeTier, page: int) -> bool:
    start = time.monotonic()
    try:
        content = bytes_of(page)
        tier.put(identity_of(page), content, num_tokens=64, deadline_seconds=DEADLINE_SECONDS)
    except (TierDown, TierFull, DeadlinePassed):
        return False
    finally:
        assert time.monotonic() - start < LONGEST_SECONDS
    return True
