"""What layers leave to be looked at comes in one transfer, whatever its sizes and types are."""

from typing import Any

import pytest
import torch

from hisparse_kernels.append_rows import append_rows
from hisparse_kernels.layouts import index_layout, kv_layout
from hisparse_kernels.resolve import MissPlan
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.stats import SelectionCounts, Traffic
from hisparse_sidecar.step.watch import StepWatch
from tests.kernels.gpu.appending import Spans, given

pytestmark = pytest.mark.cpu_only
KV, INDEX = kv_layout("fp8_ds_mla"), index_layout("fp8")
ROW_SEQ = torch.tensor([0, 1, -1], dtype=torch.int32)
AMOUNTS = {
    "doubled_rows": torch.tensor([True, False, True]),
    "doublings": torch.tensor([[3, 4], [5, 0]], dtype=torch.int32),
    "capped_rows": torch.tensor([True] * 300),
    "audited_tokens": torch.tensor([2**31, 2**31 + 1]),
    "found_tokens": torch.zeros(0, dtype=torch.int32),
    "audited_rows": torch.tensor([200, 100], dtype=torch.uint8),
}
WANTED = SelectionCounts(
    doubled_rows=2, doublings=12, capped_rows=300, audited_tokens=2**32 + 1, audited_rows=300
)
_READS = ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the calls by which the host has read a tensor."""
    seen: list[str] = []

    def watch(name: str) -> None:
        plain = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
            seen.append(name)
            return plain(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)

    for name in _READS:
        watch(name)
    return seen


def watched(counts: SelectionCounts, traffic: Traffic) -> StepWatch:
    """Amounts of every size and type, in two layers, beside a resolve and inputs."""
    watch = StepWatch()
    for _ in range(2):
        for name, amounts in AMOUNTS.items():
            watch.see_amounts(counts, name, amounts)
    item, miss = torch.tensor([5, 6], dtype=torch.int32), torch.tensor([1, 2], dtype=torch.int32)
    watch.see_resolve("slots", MissPlan(miss, miss, miss, item), traffic, 10)
    rows = torch.ones(3, 4)
    watch.see_inputs(0, LayerInputs(rows, rows, rows[:, None], rows, rows))
    return watch


def test_everything_comes_in_one_transfer(reads: list[str]) -> None:
    counts, traffic = SelectionCounts(), Traffic()
    watch = watched(counts, traffic)

    watch.read(ROW_SEQ)

    assert reads == ["tolist"]
    assert vars(counts) == {name: 2 * number for name, number in vars(WANTED).items()}
    assert (traffic.requests, traffic.misses, traffic.bytes_in) == (11, 3, 30)


def test_misses_that_the_step_itself_had_made_count_as_found() -> None:
    traffic, watch = Traffic(), StepWatch()
    items, misses, fresh = (torch.tensor(n, dtype=torch.int32) for n in ([9, 8], [3, 2], [1, 2]))
    watch.see_resolve("slots", MissPlan(misses, misses, misses, items), traffic, 10, fresh)
    watch.see_resolve("slots", MissPlan(misses, misses, misses, items), traffic, 10)

    watch.read(ROW_SEQ)

    assert (traffic.requests, traffic.misses, traffic.bytes_in) == (34, 2 + 5, 70)


@pytest.mark.parametrize("name", ["index_q", "index_weights", "index_k"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_an_append_found_is_judged_when_the_step_ends(name: str, value: float) -> None:
    watch, step = StepWatch(), given(Spans([(0, 3, 4), (1, 0, 1)], padding=1), KV, INDEX)
    getattr(step.index, name)[1].flatten()[5 % getattr(step.index, name)[1].numel()] = value
    step.run(append_rows)
    watch.see_largest(7, step.index)

    for _ in range(2):
        message = f"row 1 of {name} of layer 7 is not finite, 1 of its rows are not"
        with pytest.raises(InvalidArgument, match=message):
            watch.read(ROW_SEQ)


def test_an_append_of_finite_rows_beside_padding_that_is_not_is_no_error() -> None:
    watch, step = StepWatch(), given(Spans([(0, 3, 4), (1, 0, 1)], padding=1), KV, INDEX)
    step.run(append_rows)
    assert step.index.largest[:, 2].isnan().all()
    watch.see_largest(7, step.index)
    watch.read(ROW_SEQ)


def test_a_step_that_left_nothing_still_waits_once(reads: list[str]) -> None:
    StepWatch().read(ROW_SEQ)
    assert reads == ["tolist"]


def test_what_was_read_is_not_added_again() -> None:
    counts, traffic = SelectionCounts(), Traffic()
    watch = watched(counts, traffic)
    watch.read(ROW_SEQ)
    before = vars(counts).copy(), vars(traffic).copy()

    watch.read(ROW_SEQ)

    assert (vars(counts), vars(traffic)) == before
