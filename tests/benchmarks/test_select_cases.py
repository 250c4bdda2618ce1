"""The suite `select`: which cases there are, in which order, and what their inputs are like."""

import re

import pytest
import torch

from benchmarks.select.all_cases import all_cases
from benchmarks.select.random_rows import Kind, decode_rows, prefill_rows
from benchmarks.select.real_rows import RealRows
from benchmarks.select.recall import needle_recall, recall_by_layer, recall_of_flat
from benchmarks.select.rows import Rows
from hisparse_kernels.layouts import INDEX_LAYOUTS
from hisparse_kernels.pool_keys import rebuild_pooled_keys_ref
from hisparse_kernels.topk import topk_ref
from tests.benchmarks.small_selections import shrink
from tests.benchmarks.stand_ins import CudaIsCpu, HostPool, NoPeers

NAMES = [case.name for case in all_cases(NoPeers(), HostPool())]  # type: ignore[arg-type]
AIMED = [
    *(f"decode batch {batch}, L=128K, 64 heads" for batch in (1, 8, 64)),
    *(f"decode batch {batch}, L=1024K, 64 heads" for batch in (1, 8)),
    *(f"prefill 4096 rows, L={keys}K, 64 heads" for keys in (32, 64, 128)),
    *(f"decode batch {batch}, L=8K, 64 heads, flat" for batch in (1, 8, 64)),
    *(
        f"decode batch {batch}, L=128K, 64 heads, {missing}, {how}"
        for batch in (1, 8, 64)
        for missing in (
            "2 % missing (1 of 64)",
            "10 % missing (6 of 64)",
            "30 % missing (19 of 64)",
        )
        for how in ("fetched first", "read in place")
    ),
]


def test_no_two_cases_have_one_name() -> None:
    assert len(NAMES) == len(set(NAMES))


def test_cases_with_an_aim_come_first() -> None:
    first = [name for name in NAMES if not name.endswith("flat by DeepGEMM")][: len(AIMED)]
    assert set(first) == set(AIMED)


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_every_length_is_a_case(batch: int) -> None:
    lengths = {
        int(found[1])
        for name in NAMES
        if (found := re.fullmatch(rf"decode batch {batch}, L=(\d+)K, 64 heads", name))
    }
    assert lengths == {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}


@pytest.mark.parametrize(
    "name",
    [
        "decode batch 8, L=128K, 64 heads, next_n 4",
        "decode batch 64, L=128K, 32 heads",
        "decode batch 256, L=128K, 64 heads",
        "decode batch 1, L=128K, 64 heads, ReLU-skewed rows",
        "decode batch 8, L=1K, 64 heads, flat by DeepGEMM",
        "decode batch 8, L=16K, 32 heads, rows of tiny-dsa",
        "decode batch 8, L=16K, 32 heads, rows of tiny-dsa, 512 of 16 blocks",
        "prefill 4096 rows, L=8K, 64 heads",
        "prefill 4096 rows, L=64K, 64 heads, ReLU-skewed rows",
        "prefill 4096 rows, L=1024K, 64 heads",
        "prefill 512 rows, L=1024K, 64 heads",
        "prefill 4096 rows, L=16K, 32 heads, rows of tiny-dsa",
    ],
)
def test_the_other_shapes_are_among_the_cases(name: str) -> None:
    assert name in NAMES


def decode(kind: Kind = "normal", next_n: int = 1, keys: int = 1024) -> Rows:
    torch.manual_seed(0)
    with CudaIsCpu():
        return decode_rows(kind, 2, next_n, keys, 16)


def test_rows_of_a_step_are_the_newest_of_their_sequences() -> None:
    rows = decode(next_n=2)
    assert rows.row_seq.tolist() == [0, 0, 1, 1]
    assert rows.row_pos.tolist() == [1022, 1023, 1022, 1023]
    assert (rows.num_sequences, rows.blocks) == (2, 8)
    with CudaIsCpu():
        prompt = prefill_rows("normal", 3, 256, 16)
    assert prompt.row_pos.tolist() == [253, 254, 255]
    assert prompt.num_sequences == 1


def test_pooled_pages_are_means_of_the_stored_keys() -> None:
    rows = decode()
    pooled = torch.zeros_like(rows.pooled_pages)
    rebuild_pooled_keys_ref(
        rows.index_pages,
        rows.page_table,
        torch.full((2,), rows.keys, dtype=torch.int32),
        torch.zeros(2, 128),
        torch.arange(2),
        pooled,
        torch.arange(2) * 64,
        128,
        INDEX_LAYOUTS["fp8"],
    )
    some = torch.arange(2)
    found = rows.block_logits_ref(some)
    expected = Rows(**(vars(rows) | {"pooled_pages": pooled})).block_logits_ref(some)
    # another order of sums may move an e4m3 code by one step of 16
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)


def test_logits_of_skewed_rows_mostly_tie_at_0() -> None:
    some = torch.arange(2)
    share = (decode("ReLU-skewed").token_logits_ref(some) == 0).float().mean()
    assert share > 0.5
    assert (decode("normal").token_logits_ref(some) == 0).sum() == 0


def test_recall_is_the_share_of_what_flat_chooses() -> None:
    rows = decode()
    flat = topk_ref(rows.token_logits_ref(torch.arange(2)), 8)
    half = flat.clone()
    half[1, 4:] = -1
    assert recall_of_flat(rows, half).tolist() == [1.0, 0.5]
    assert recall_by_layer(rows, half, [3, 1]) == {
        "recall of flat": 0.75,
        "recall of flat, layer 1": 0.5,
        "recall of flat, layer 3": 1.0,
    }
    needles = [flat[0, :1].long(), flat[1, 3:5].long()]
    (share,) = needle_recall(rows, half, needles).values()
    assert share == pytest.approx(2 / 3)
    others = torch.nonzero(rows.token_logits_ref(torch.arange(2))[0] < 0)[:2, 0]
    assert needle_recall(rows, half, [others, others[:0]]) == {}


def test_the_needle_is_the_fact_that_the_prompt_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    with CudaIsCpu():
        real = RealRows()
        rows, prompt = real.decode(), real._prompts[0]
    assert rows.num_rows == len(real.layers) == len(real.needles) == 4
    for positions in real.needles:
        shown = "".join(real._tokenizer.decode([prompt.token_ids[at]]) for at in positions.tolist())
        assert shown.replace(" ", "") == prompt.asked.digits
