"""Running the suite `ops`: which cases there are, what rows they become, and what stops them."""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import pytest

from benchmarks.ops import run_suite as run_file
from benchmarks.ops.case import Case, Contender, PeerAbsentError, Prepared, measure_case
from benchmarks.ops.compare import WrongResultError
from benchmarks.ops.ours import triton_op
from benchmarks.ops.peers import Peers
from benchmarks.ops.run_cases import all_cases
from benchmarks.ops.run_suite import run_suite
from benchmarks.ops.timing import GpuTimer, Timed
from benchmarks.ops.work import Ceilings, Work
from benchmarks.select.all_cases import all_cases as select_cases
from hisparse_kernels.backends import Ops
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.timing import Stopwatch
from tests.benchmarks.stand_ins import HostPool, NoPeers

CEILINGS = Ceilings(fp8=1e12, bf16=5e11, device=1e9, to_device=1e8, to_host=1e8)
OPS = [field.name for field in fields(Ops)]
NAMES = [case.name for case in all_cases(NoPeers(), HostPool())]  # type: ignore[arg-type]
SELECT_NAMES = [case.name for case in select_cases(NoPeers(), HostPool())]  # type: ignore[arg-type]


class Clock(GpuTimer):
    """Takes the time from the contender, which was made with it."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def repeat(self, timed: Timed) -> list[float]:
        return [float(call()) for call in timed.calls]  # type: ignore[arg-type]


def takes(*seconds: float, check: Callable[[], None] = lambda: None) -> Contender:
    return Contender(check, Timed([partial(float, one) for one in seconds]))


def fails(error: Exception) -> Callable[[], None]:
    def check() -> None:
        raise error

    return check


def measured(ours: Contender, **peers: Callable[[], Contender]) -> list[tuple[object, ...]]:
    """(metric, ours, peer, peer_value) of each row of a case of 1 MB."""
    case = Case("copy", lambda: Prepared(Work(device_bytes=1e6), ours, peers))
    rows = list(measure_case(case, Clock(), CEILINGS))
    assert {row.case for row in rows} <= {"copy"}
    return [(row.metric, row.ours, row.peer, row.peer_value) for row in rows]


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_case_and_a_launcher(op: str) -> None:
    parts = [part.split()[0] for name in NAMES + SELECT_NAMES for part in name.split(" + ")]
    assert op in parts
    assert callable(triton_op(op))


def test_no_two_cases_have_one_name() -> None:
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    "name",
    [
        "index_logits 4096 rows, L=64K, 32 heads",
        "resolve + swap_in batch 128, 10 % misses, L=64K",
        "sparse_mla 4096 rows, L=64K, bf16, 128 heads, random lists",
        "sparse_mla batch 128, L=64K, fp8_ds_mla, 128 heads",
    ],
)
def test_the_shapes_of_the_design_are_among_the_cases(name: str) -> None:
    assert name in NAMES


def test_without_a_peer_ours_stands_alone() -> None:
    rows = measured(takes(2e-3))
    assert rows == [
        ("median us", pytest.approx(2000.0), "", None),
        ("GB/s", pytest.approx(0.5), "", None),
        ("share of the ceiling", pytest.approx(0.5), "", None),
    ]


def test_each_peer_gets_rows_beside_ours() -> None:
    rows = measured(takes(2e-3), fast=lambda: takes(1e-3), slow=lambda: takes(4e-3))
    medians = [row for row in rows if row[0] == "median us"]
    assert medians == [
        ("median us", pytest.approx(2000.0), "fast", pytest.approx(1000.0)),
        ("median us", pytest.approx(2000.0), "slow", pytest.approx(4000.0)),
    ]
    assert len(rows) == 6


def test_a_wrong_result_of_ours_is_a_row_and_nothing_is_timed() -> None:
    wrong = takes(1e-3, check=fails(WrongResultError("rows: 3 of 9 differ")))
    rows = measured(wrong, fast=lambda: takes(1e-3))
    assert rows == [("error: WrongResultError: rows: 3 of 9 differ", 0.0, "", None)]


def test_a_case_that_cannot_be_made_is_a_row() -> None:
    def prepare() -> Prepared:
        raise RuntimeError("out of\n memory " + 200 * "x")

    (row,) = measure_case(Case("huge", prepare), Clock(), CEILINGS)
    assert (row.case, row.ours) == ("huge", 0.0)
    assert row.metric.startswith("error: RuntimeError: out of memory xxx")
    assert len(row.metric) < 200


def test_a_wrong_peer_is_a_row_and_the_next_one_is_timed() -> None:
    wrong = takes(1e-3, check=fails(WrongResultError("far")))
    rows = measured(takes(2e-3), bad=lambda: wrong, good=lambda: takes(1e-3))
    assert rows[0] == ("error of bad: WrongResultError: far", 0.0, "", None)
    assert [row[2] for row in rows[1:]] == ["good"] * 3


def test_of_an_absent_peer_there_is_no_row() -> None:
    def absent() -> Contender:
        raise PeerAbsentError("no module")

    assert [row[2] for row in measured(takes(2e-3), gone=absent)] == [""] * 3


def test_a_ratio_comes_with_its_spread() -> None:
    peers = {"peer": lambda: takes(4e-3, 8e-3)}
    case = Case("copy", lambda: Prepared(Work(device_bytes=1e6), takes(1e-3, 2e-3), peers))
    for row in measure_case(case, Clock(), CEILINGS):
        assert row.ratio == pytest.approx(4.0)
        assert row.ratio_spread == pytest.approx((2.6, 6.8))  # of 2, 4, 4 and 8


def test_of_one_repetition_there_is_no_spread() -> None:
    case = Case("copy", lambda: Prepared(Work(), takes(1e-3), {"peer": lambda: takes(4e-3)}))
    assert {row.ratio_spread for row in measure_case(case, Clock(), CEILINGS)} == {None}


def test_an_aim_is_a_peers_time_and_what_is_allowed_on_top() -> None:
    aim = Contender(lambda: None, Timed([lambda: 1e-3]), allowed_seconds=2e-3)
    assert measured(takes(2e-3), aim=lambda: aim)[0][2:] == ("aim", pytest.approx(3000.0))


def test_facts_of_a_case_are_rows_behind_its_times() -> None:
    case = Case("hisa", lambda: Prepared(Work(), takes(1e-3), facts=lambda: {"recall": 0.9}))
    last = list(measure_case(case, Clock(), CEILINGS))[-1]
    assert (last.case, last.metric, last.ours, last.peer) == ("hisa", "recall", 0.9, "")


def test_a_case_of_ours_that_needs_an_absent_peer_has_no_rows() -> None:
    def prepare() -> Prepared:
        raise PeerAbsentError("no module")

    assert list(measure_case(Case("flat", prepare), Clock(), CEILINGS)) == []


def test_work_with_products_shows_its_intensity() -> None:
    work = Work(operations=1e9, device_bytes=1e6)
    case = Case("dots", lambda: Prepared(work, takes(2e-3)))
    rows = {row.metric: row.ours for row in measure_case(case, Clock(), CEILINGS)}
    assert rows["FLOP/B"] == 1000
    assert rows["TFLOP/s"] == pytest.approx(0.5)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without a GPU; names of the cases of `_rows` that were prepared."""
    _prepared.clear()
    monkeypatch.setattr(run_file, "PinnedPool", HostPool)
    monkeypatch.setattr(run_file, "Peers", lambda loaders: Peers({"Gone": _cannot_load}))
    monkeypatch.setattr(run_file, "measure_ceilings", lambda timer, pinned: CEILINGS)
    monkeypatch.setattr(run_file, "GpuTimer", lambda warm_ups, runs: Clock())
    monkeypatch.setattr(run_file, "context_is_lost", lambda: False)
    return _prepared


_prepared: list[str] = []


def _case(name: str) -> Case:
    def prepare() -> Prepared:
        _prepared.append(name)
        return Prepared(Work(device_bytes=1e6), takes(1e-3))

    return Case(name, prepare)


def _cannot_load() -> object:
    raise ImportError("undefined symbol")


def _rows(cases: str = "") -> list[Measurement]:
    names = ("topk 1 x 8", "spill 64 rows", "topk 2 x 8")
    return list(run_suite(Stopwatch(1, 1, cases), lambda peers, pool: map(_case, names)))


def test_absent_peers_and_ceilings_come_first(suite: list[str]) -> None:
    rows = _rows()
    assert (rows[0].case, rows[0].metric) == ("Gone", "absent: ImportError: undefined symbol")
    assert [row.case for row in rows[1:6]] == [
        f"ceiling {field.name}" for field in fields(Ceilings)
    ]
    assert [(row.metric, row.ours) for row in rows[1:4:2]] == [("TFLOP/s", 1.0), ("GB/s", 1.0)]
    assert suite == ["topk 1 x 8", "spill 64 rows", "topk 2 x 8"]


def test_only_the_cases_that_are_wanted_run(suite: list[str]) -> None:
    _rows("^topk|nothing")
    assert suite == ["topk 1 x 8", "topk 2 x 8"]


def test_a_lost_gpu_ends_the_suite_with_a_row(
    suite: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "context_is_lost", lambda: len(suite) == 2)
    last = _rows()[-1]
    assert suite == ["topk 1 x 8", "spill 64 rows"]
    assert last.case == "spill 64 rows"
    assert last.metric == "error: lost the GPU, later cases not run"


class CompilingPeer:
    """Counts how often its jobs run; one of them fails."""

    def __init__(self) -> None:
        self.num_compiled = 0

    def compile_jobs(self) -> list[Callable[[], object]]:
        return [self._compile, _cannot_load]

    def _compile(self) -> None:
        self.num_compiled += 1


class ReadyPeer:
    def compile_jobs(self) -> list[Callable[[], object]]:
        return []


def test_the_first_use_of_a_peer_that_compiles_compiles_once() -> None:
    compiling, ready = CompilingPeer(), ReadyPeer()
    peers = Peers({"DeepGEMM": lambda: compiling, "FlashMLA": lambda: ready})
    assert peers.flash_mla() is ready
    assert compiling.num_compiled == 0
    assert peers.deep_gemm() is peers.deep_gemm() is compiling
    assert compiling.num_compiled == 1
    with pytest.raises(PeerAbsentError, match="SGLang is not known"):
        peers.sglang()


def test_a_peer_that_does_not_load_says_why() -> None:
    peers = Peers({"DeepGEMM": _cannot_load})  # type: ignore[dict-item]
    assert list(peers.absent()) == [("DeepGEMM", "ImportError: undefined symbol")]
    with pytest.raises(PeerAbsentError, match="undefined symbol"):
        peers.deep_gemm()
