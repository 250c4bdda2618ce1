"""Suite `round_trip`: pages from the device to the host pool, to files and back, byte for byte.

Layers of DeepSeek-V3.2's shapes. A sequence rests; while another one decodes, its pages go to
files; it comes back, and every byte of its pages and every bit of its next step is compared with
those before. Two more hold every code of a byte, on one page and on one row.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.trips import Traveller, Trips
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch


@dataclass(frozen=True)
class Size:
    """How much travels.

    Attributes:
        num_layers: layers, each an anchor.
        num_tokens: of the sequence that travels; not a whole number of pages.
        total_bytes: of all trips, down and up.
        device: where steps run.
    """

    num_layers: int
    num_tokens: int
    total_bytes: int
    device: str


_FULL = Size(num_layers=61, num_tokens=333 * 64 + 17, total_bytes=100 << 30, device="cuda")


def measure_trips(size: Size) -> Iterator[Measurement]:
    """Rates, and what differed: 0 of everything, or the suite fails."""
    with tempfile.TemporaryDirectory() as directory, Trips(size, directory) as trips:
        traveller = Traveller(trips)
        down_seconds, up_seconds, moved, wrong = 0.0, 0.0, 0, 0
        num_trips = 0
        while moved < size.total_bytes:
            begin = time.perf_counter()
            trips.send_down(traveller)
            down_seconds += time.perf_counter() - begin
            begin = time.perf_counter()
            trips.bring_up(traveller)
            up_seconds += time.perf_counter() - begin
            wrong += trips.count_wrong(traveller)
            moved, num_trips = moved + 2 * traveller.num_bytes, num_trips + 1
        case = f"{size.num_layers} layers, {size.num_tokens} tokens"
        half = moved / 2e9
        yield Measurement(case, "GB moved", moved / 1e9, "higher")
        yield Measurement(case, "wrong bytes", float(wrong), "lower")
        yield Measurement(case, "steps that differ", float(traveller.num_wrong_steps), "lower")
        yield Measurement(case, "GB/s down, beside decoding", half / down_seconds, "higher")
        yield Measurement(case, "GB/s up", half / up_seconds, "higher")
        yield Measurement(case, "round trips", float(num_trips), "higher")
        yield Measurement(case, "decode steps meanwhile", float(trips.num_steps), "higher")
        if wrong or traveller.num_wrong_steps:
            raise AssertionError(f"{wrong} bytes, {traveller.num_wrong_steps} steps differ")


def _measure(_: Stopwatch) -> Iterator[Measurement]:
    torch.manual_seed(0)
    yield from measure_trips(_FULL)


SUITE = Suite(
    name="round_trip",
    summary="100 GB of pages to files and back while another sequence decodes, byte for byte",
    device="cuda",
    measure=_measure,
)
