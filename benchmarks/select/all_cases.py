"""Every case of the suite, what matters most first: a run that is cut short has those."""

from collections.abc import Iterator

from benchmarks.ops.case import Case
from benchmarks.ops.peers import Peers
from benchmarks.ops.pinned import PinnedPool
from benchmarks.select.decode_cases import BATCHES, FLAT_KEYS, Decode, flat_cases, resident_case
from benchmarks.select.missing_cases import missing_cases
from benchmarks.select.part_cases import part_cases
from benchmarks.select.prefill_cases import prefill_case
from benchmarks.select.real_cases import real_cases
from benchmarks.select.real_rows import RealRows

_AIMED = [Decode(*step) for step in ((1, 128), (8, 128), (64, 128), (1, 1024), (8, 1024))]
_OTHER_STEPS = [
    *(Decode(batch, 128, kind="ReLU-skewed") for batch in BATCHES),
    *(Decode(8, 128, next_n=next_n) for next_n in (2, 4)),
    *(Decode(batch, 128, heads=32) for batch in BATCHES),
    Decode(256, 128),
]
_SWEPT_KEYS = (64, 32, 16, 256, 512, 1024, 8, 4, 2, 1)
_SWEEP = [
    step for keys in _SWEPT_KEYS for batch in BATCHES if (step := Decode(batch, keys)) not in _AIMED
]


def all_cases(peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    """What has an aim, then other kinds of rows and shapes, then every length."""
    yield from _aimed(peers, pool)
    yield from part_cases()
    yield from real_cases(peers, RealRows())
    yield from (resident_case(peers, decode) for decode in _OTHER_STEPS)
    yield prefill_case(peers, 64, kind="ReLU-skewed")
    for keys, rows in ((1024, 4096), (1024, 512), (16, 4096), (8, 4096)):
        yield prefill_case(peers, keys, rows)
    yield from (resident_case(peers, decode) for decode in _SWEEP)
    for keys in FLAT_KEYS[1:]:
        yield from flat_cases(peers, keys)


def _aimed(peers: Peers, pool: PinnedPool) -> Iterator[Case]:
    yield from (resident_case(peers, decode) for decode in _AIMED)
    yield from (prefill_case(peers, keys) for keys in (32, 64, 128))
    yield from flat_cases(peers, FLAT_KEYS[0])
    yield from missing_cases(pool)
