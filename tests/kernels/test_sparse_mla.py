import pytest
import torch

from accuracy import Tolerance, assert_bits_equal, assert_near
from cases import NAN_BYTE
from hisparse_kernels.kv_rows import pack_kv_rows, unpack_kv_rows
from hisparse_kernels.layouts import KV_LAYOUTS, KvLayout, kv_layout
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla, split_workspace_size

LAYOUTS = pytest.mark.parametrize("layout", KV_LAYOUTS.values(), ids=KV_LAYOUTS.keys())
SCALE = 576**-0.5


def stored_rows(count: int, layout: KvLayout) -> torch.Tensor:
    torch.manual_seed(0)
    return pack_kv_rows(torch.randn(count, layout.query_dim), layout)


def queries(rows: int, heads: int, layout: KvLayout) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(rows, heads, layout.query_dim) * 3


def random_ids(rows: int, topk: int, count: int, share_none: float = 0.2) -> torch.Tensor:
    torch.manual_seed(2)
    ids = torch.rand(rows, max(topk, count)).argsort(1)[:, :topk]
    return ids.masked_fill((torch.rand(rows, topk) < share_none) | (ids >= count), -1).int()


def naive_mla(
    query: torch.Tensor, values: torch.Tensor, ids: torch.Tensor, sink: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One row at a time in float64."""
    rows, heads, _ = query.shape
    out, lse = (
        torch.zeros(rows, heads, 512).double(),
        torch.full((rows, heads), -torch.inf).double(),
    )
    for row in range(rows):
        keys = values[ids[row][ids[row] >= 0].long()].double()
        if not len(keys):
            continue
        logits = query[row].double() @ keys.T * SCALE
        lse[row] = logits.logsumexp(-1)
        total = lse[row] if sink is None else torch.logaddexp(lse[row], sink.double())
        out[row] = (logits - total[:, None]).exp() @ keys[:, :512]
    return out, lse


@LAYOUTS
@pytest.mark.parametrize(
    ("rows", "heads", "topk"), [(1, 1, 1), (2, 128, 64), (33, 8, 65), (3, 16, 200), (65, 3, 7)]
)
def test_output_and_lse_match_the_formula(
    layout: KvLayout, rows: int, heads: int, topk: int
) -> None:
    kv_rows, query = stored_rows(150, layout), queries(rows, heads, layout)
    ids = random_ids(rows, topk, 150)

    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE)

    expected_out, expected_lse = naive_mla(query, unpack_kv_rows(kv_rows, layout), ids)
    assert_near(out, expected_out.float())
    assert_near(lse, expected_lse.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_queries_give_outputs_of_their_dtype(dtype: torch.dtype) -> None:
    layout = kv_layout("bf16")
    kv_rows, ids = stored_rows(150, layout), random_ids(4, 100, 150)
    query = queries(4, 16, layout).to(dtype)

    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE)

    expected_out, expected_lse = naive_mla(query, unpack_kv_rows(kv_rows, layout), ids)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_near(out, expected_out.to(dtype))
    assert_near(lse, expected_lse.float())


@LAYOUTS
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_topk_of_at_least_the_length_is_dense_attention(layout: KvLayout, length: int) -> None:
    kv_rows, query = stored_rows(length, layout), queries(length, 8, layout)
    ids = torch.arange(192).int().repeat(length, 1)
    ids = ids.masked_fill(ids > torch.arange(length)[:, None], -1)

    out, _ = sparse_mla(query, kv_rows, ids, layout, SCALE)

    values = unpack_kv_rows(kv_rows, layout)
    dense = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1),
        values.expand(8, -1, -1),
        values[:, :512].expand(8, -1, -1),
        is_causal=True,
        scale=SCALE,
    )
    assert_near(out, dense.transpose(0, 1), Tolerance(1e-4, 1e-4, 1e-8))


@LAYOUTS
@pytest.mark.parametrize(("heads", "topk"), [(1, 1), (8, 64), (8, 65), (5, 500), (128, 100)])
def test_a_row_has_the_bits_it_has_alone(layout: KvLayout, heads: int, topk: int) -> None:
    kv_rows, query = stored_rows(600, layout), queries(70, heads, layout)
    ids = random_ids(70, topk, 600)
    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE)

    for first, end in ((0, 1), (1, 3), (40, 69), (3, 35), (69, 70)):
        some = slice(first, end)
        alone = sparse_mla(query[some], kv_rows, ids[some], layout, SCALE)
        assert_bits_equal(alone[0], out[some])
        assert_bits_equal(alone[1], lse[some])


@pytest.mark.parametrize("threads", [1, 2])
def test_output_has_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    layout = kv_layout("fp8_ds_mla")
    kv_rows, query, ids = stored_rows(600, layout), queries(9, 8, layout), random_ids(9, 512, 600)
    out, before = sparse_mla(query, kv_rows, ids, layout, SCALE)[0], torch.get_num_threads()

    torch.set_num_threads(threads)
    try:
        assert_bits_equal(sparse_mla(query, kv_rows, ids, layout, SCALE)[0], out)
    finally:
        torch.set_num_threads(before)


def test_where_a_row_lies_does_not_change_the_bits() -> None:
    layout = kv_layout("fp8_ds_mla")
    kv_rows, query, ids = stored_rows(200, layout), queries(3, 8, layout), random_ids(3, 128, 200)
    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE)
    order = torch.randperm(5000)[:200]
    pool = torch.full((5000, layout.row_bytes), NAN_BYTE).byte()
    pool[order] = kv_rows
    moved = order[ids.clamp(min=0).long()].int().masked_fill(ids < 0, -1)

    moved_out, moved_lse = sparse_mla(query, pool, moved, layout, SCALE)

    assert_bits_equal(moved_out, out)
    assert_bits_equal(moved_lse, lse)


@LAYOUTS
def test_nan_in_rows_that_are_not_selected_never_leaks(layout: KvLayout) -> None:
    kv_rows, query = stored_rows(90, layout), queries(5, 8, layout)
    ids = random_ids(5, 80, 90).masked_fill_(random_ids(5, 80, 90) % 3 == 0, -1)
    clean = sparse_mla(query, kv_rows, ids, layout, SCALE)
    kv_rows[::3] = NAN_BYTE  # row 0 too, which a -1 might be taken for

    assert_bits_equal(sparse_mla(query, kv_rows, ids, layout, SCALE)[0], clean[0])


@pytest.mark.parametrize("sink_value", [-200.0, 0.0, 3.0, 500.0])
def test_a_sink_takes_its_share_of_the_denominator_only(sink_value: float) -> None:
    layout = kv_layout("fp32")
    kv_rows, query, ids = stored_rows(90, layout), queries(5, 6, layout), random_ids(5, 80, 90)
    ids[2] = -1
    sink = torch.linspace(-1, 1, 6) + sink_value

    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE, AttentionOptions(sink=sink))

    expected_out, expected_lse = naive_mla(query, unpack_kv_rows(kv_rows, layout), ids, sink)
    assert_near(out, expected_out.float())
    assert_near(lse, expected_lse.float())


@pytest.mark.parametrize("with_sink", [False, True])
def test_a_row_without_a_key_gives_zero_and_minus_inf(with_sink: bool) -> None:
    layout = kv_layout("fp8_ds_mla")
    kv_rows, query = stored_rows(9, layout), queries(3, 4, layout)
    ids = torch.full((3, 10), -1).int()
    ids[1, 9] = 3  # a lone key after nothing
    sink = torch.zeros(4) if with_sink else None

    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE, AttentionOptions(sink=sink))

    assert not out[[0, 2]].any()
    assert bool((lse[[0, 2]] == -torch.inf).all())
    assert bool(lse[1].isfinite().all())


def test_valid_counts_hide_the_ids_after_them() -> None:
    layout = kv_layout("fp8_ds_mla")
    kv_rows, query = stored_rows(90, layout), queries(4, 8, layout)
    ids = random_ids(4, 80, 90, share_none=0.0).clamp(min=0)
    counts = torch.tensor([0, 1, 79, 80]).int()
    hidden = ids.masked_fill(torch.arange(80) >= counts[:, None], -1)

    limited = sparse_mla(query, kv_rows, ids, layout, SCALE, AttentionOptions(valid_counts=counts))

    for actual, expected in zip(
        limited, sparse_mla(query, kv_rows, hidden, layout, SCALE), strict=True
    ):
        assert_bits_equal(actual, expected)


def test_huge_logits_do_not_overflow() -> None:
    layout = kv_layout("fp32")
    kv_rows, query, ids = (
        stored_rows(90, layout),
        queries(2, 4, layout) * 1e4,
        random_ids(2, 80, 90),
    )

    out, lse = sparse_mla(query, kv_rows, ids, layout, SCALE)

    assert bool(out.isfinite().all())
    assert bool(lse.isfinite().all())


@pytest.mark.parametrize("split_keys", [None, 64, 128, 1024])
def test_results_go_to_the_given_tensors(split_keys: int | None) -> None:
    layout = kv_layout("bf16")
    kv_rows, query, ids = stored_rows(90, layout), queries(5, 6, layout), random_ids(5, 300, 90)
    size = split_workspace_size(5, 6, 300, layout, split_keys)
    out = torch.full((5, 6, 512), torch.nan), torch.full((5, 6), torch.nan)

    written = sparse_mla(
        query,
        kv_rows,
        ids,
        layout,
        SCALE,
        AttentionOptions(split_keys=split_keys, out=out, workspace=torch.full((size,), torch.nan)),
    )

    assert written[0] is out[0]
    assert written[1] is out[1]
    for actual, expected in zip(out, sparse_mla(query, kv_rows, ids, layout, SCALE), strict=True):
        assert_bits_equal(actual, expected)


@pytest.mark.parametrize(
    ("topk", "split_keys", "splits"), [(1, 64, 0), (64, 64, 0), (65, 64, 2), (2048, 256, 8)]
)
def test_one_split_needs_no_workspace(topk: int, split_keys: int, splits: int) -> None:
    layout = kv_layout("bf16")

    assert split_workspace_size(3, 5, topk, layout, None) == 0
    assert split_workspace_size(3, 5, topk, layout, split_keys) == splits * 3 * 5 * 514


def test_no_rows_give_no_output() -> None:
    layout = kv_layout("fp8_ds_mla")

    out, lse = sparse_mla(
        queries(0, 2, layout), stored_rows(4, layout), torch.zeros(0, 4).int(), layout, SCALE
    )

    assert out.shape == (0, 2, 512)
    assert lse.shape == (0, 2)
