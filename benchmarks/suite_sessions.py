"""Suite `sessions`: what a page, an open sequence, a lookup and the plan of a step cost.

In Rust: memory by counted allocations, `rust/core/benches/sessions.rs` says of what; the plan is
room for the step's rows and the tables of where everything lies. Through the binding: the
same calls from Python. `begin_step` is all of it, with the tensors of the step.
"""

import time
import tracemalloc
from collections.abc import Iterator

from benchmarks.cargo_runs import Line, bench_lines
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import DeviceCapacity, HostLayout, HostRegion, Manager
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch, Timing, summarize
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig
from hisparse_sidecar.sidecar import Sidecar

_PLANNED, _OPENED = 256, 10_000
_PAGES_EACH, _TOKENS_EACH = 16, 16 * PAGE_TOKENS
_FLAT = SelectionConfig("flat")
_SESSIONS = {"sessions": "with lease and owner", "prompts": "with known tokens"}


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    for line in bench_lines("sessions"):
        yield from to_measurements(line)
    case = f"{_PLANNED} sequences"
    yield from _times(f"plan of {case}, through the binding", _time_binding(stopwatch))
    yield from _times(f"begin_step of {case}", _time_begin(stopwatch))
    yield Measurement(
        f"{_OPENED} sequences open in a sidecar, beside the core",
        "B each",
        _opened_bytes(),
        "lower",
    )


def to_measurements(line: Line) -> Iterator[Measurement]:
    """What one line of the benchmark `sessions` says."""
    if line["case"] == "metadata":
        case = f"directory of {line['pages']} pages, {line['order']}"
        yield Measurement(case, "metadata B a page", line["bytes"], "lower")
    elif line["case"] in _SESSIONS:
        case = f"{line['sessions']} sequences {_SESSIONS[line['case']]}, {_PAGES_EACH} pages each"
        yield Measurement(case, "B each", line["bytes"], "lower")
    else:
        timing = summarize([us / 1e6 for us in line["microseconds"]])
        yield from _times(_timed_case(line), timing)


def _timed_case(line: Line) -> str:
    if line["case"] == "lookup":
        return f"lookup of one of {line['sessions']} prompts of {_PAGES_EACH} pages, in Rust"
    return f"plan of {line['sequences']} sequences, in Rust"


def _times(case: str, timing: Timing) -> Iterator[Measurement]:
    yield Measurement(case, "median us", timing.median_seconds * 1e6, "lower")
    yield Measurement(case, "p99 us", timing.p99_seconds * 1e6, "lower")


def _time_binding(stopwatch: Stopwatch) -> Timing:
    manager = _manager()
    sequences = [
        manager.open_sequence(_TOKENS_EACH, 0, slots=1, window_slots=1) for _ in range(_PLANNED)
    ]
    for number, sequence in enumerate(sequences):
        manager.append(sequence, 1 + number * 37 % (_TOKENS_EACH // 2))

    rows = [(sequence, 1) for sequence in sequences]

    def plan() -> None:
        manager.append_rows(rows)
        manager.plan_step(rows, len(rows))

    return stopwatch.time(plan)


def _manager() -> Manager:
    layout = HostLayout(1, 1, 8, 8, _PLANNED * _PAGES_EACH)
    capacity = DeviceCapacity(
        slots=_PLANNED,
        window_slots=_PLANNED,
        table_tokens=_PLANNED * _TOKENS_EACH,
        table_blocks=_PLANNED * _PAGES_EACH,
        pooled_keys=_PLANNED * PAGE_TOKENS,
        sequences=_PLANNED,
    )
    return Manager(HostRegion(layout.num_bytes), layout, capacity, block_tokens=PAGE_TOKENS)


def _time_begin(stopwatch: Stopwatch) -> Timing:
    with Sidecar(_config(_PLANNED, 2 * PAGE_TOKENS)) as sidecar:
        rows = [(sidecar.open(1, PAGE_TOKENS), 1) for _ in range(_PLANNED)]
        seconds = []
        for _ in range(stopwatch.num_warm_ups + stopwatch.num_runs):
            start = time.perf_counter()
            sidecar.begin_step(rows, "decode")
            seconds.append(time.perf_counter() - start)
            sidecar.abort_step()
    return summarize(seconds[stopwatch.num_warm_ups :])


def _opened_bytes() -> float:
    """Python's bytes of an open sequence; what the core allocates is not among them."""
    with Sidecar(_config(_OPENED, PAGE_TOKENS)) as sidecar:
        tracemalloc.start()
        for _ in range(_OPENED):
            sidecar.open(1, PAGE_TOKENS - 1)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return held / _OPENED


def _config(sequences: int, tokens: int) -> SidecarConfig:
    return SidecarConfig(
        model=ModelShape(1, (0,), 1, 1, 1.0),
        host_pages=sequences * tokens // PAGE_TOKENS,
        max_sequences=sequences,
        hot_slots=1,
        window_blocks=1,
        block_tokens=PAGE_TOKENS,
        selection=_FLAT,
    )


SUITE = Suite(
    name="sessions",
    summary="bytes of a page and of an open sequence; the plan of a step of 256 sequences (us)",
    device="cpu",
    measure=_measure,
)
