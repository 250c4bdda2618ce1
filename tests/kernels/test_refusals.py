"""Every public op refuses what does not fit, with both numbers, and then does a good call."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hisparse_kernels.append_rows import IndexSide, StepRows, append_rows
from hisparse_kernels.block_topm import block_topm
from hisparse_kernels.index_logits import index_logits, paged_index_logits
from hisparse_kernels.index_rows import (
    pack_index_rows,
    quantize_index_q,
    read_index_rows,
    unpack_index_rows,
    write_index_rows,
)
from hisparse_kernels.kv_rows import pack_kv_rows, unpack_kv_rows
from hisparse_kernels.layouts import KvLayout, index_layout, kv_layout
from hisparse_kernels.pool_keys import append_index_rows, rebuild_pooled_keys, resum_open_blocks
from hisparse_kernels.prefix_positions import prefix_positions
from hisparse_kernels.refine_logits import refine_logits
from hisparse_kernels.resolve import MissPlan, SlotRanges, SlotState, release_items, resolve
from hisparse_kernels.route_heads import route_heads
from hisparse_kernels.score_positions import score_positions
from hisparse_kernels.sparse_mla import AttentionOptions, sparse_mla
from hisparse_kernels.spill import HotPlaces, spill
from hisparse_kernels.swap_in import FreshRows, swap_in, swap_in_blocks
from hisparse_kernels.tail_share import tail_share
from hisparse_kernels.topk import candidate_positions, topk

KV, INDEX = kv_layout("fp8_ds_mla"), index_layout("fp8")


def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def u8(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=torch.uint8)


def f32(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=torch.float32)


def i64(*shape: int) -> torch.Tensor:
    return zeros(*shape, dtype=torch.int64)


PAGES = u8(4, 8448)
QUERY = {"index_q": f32(2, 4, 128), "index_weights": f32(2, 4)}
STATE = {"open_sums": f32(3, 128), "state_rows": i64(1)}
POOLED = {"pooled_pages": u8(1, 8448), "pooled_base": i64(1)}
STORED = {"index_pages": PAGES, "page_table": zeros(1, 2), "lengths": zeros(1) + 70}
BLOCK = {"block_tokens": 64, "layout": INDEX}
PLAN = MissPlan(zeros(1, 4), zeros(1, 4), zeros(1), zeros(1))
INDEX_SIDE = IndexSide(
    **({"index_k": f32(2, 128), "largest": f32(3, 2)} | QUERY | STATE | POOLED | BLOCK),
    window_pages=PAGES,
    slot_table=zeros(20),
    window=SlotRanges(i64(1), i64(1) + 4, i64(1)),
    host_pages=PAGES,
    host_pooled=u8(4, 132),
)


def slots() -> dict[str, Any]:
    state = SlotState(zeros(8) - 1, zeros(8) - 1, zeros(20) - 1)
    return {"state": state, "ranges": SlotRanges(i64(1), i64(1) + 8, i64(1))}


def attend(
    query: torch.Tensor,
    kv_rows: torch.Tensor,
    row_ids: torch.Tensor,
    layout: KvLayout,
    softmax_scale: float,
    **options: Any,
) -> object:
    asked = AttentionOptions(**options)
    return sparse_mla(query, kv_rows, row_ids, layout, softmax_scale, asked)


@dataclasses.dataclass(frozen=True)
class Op:
    call: Callable[..., Any]
    good: dict[str, Any]  # arguments of a call that works


OPS = [
    Op(pack_kv_rows, {"values": f32(2, 576), "layout": KV}),
    Op(unpack_kv_rows, {"rows": u8(2, 656), "layout": KV}),
    Op(pack_index_rows, {"keys": f32(2, 128), "layout": INDEX}),
    Op(unpack_index_rows, {"rows": u8(2, 132), "layout": INDEX}),
    Op(
        write_index_rows,
        {"index_pages": PAGES, "row_ids": i64(2) - 1, "rows": u8(2, 132), "layout": INDEX},
    ),
    Op(read_index_rows, {"index_pages": PAGES, "row_ids": i64(2), "layout": INDEX}),
    Op(quantize_index_q, QUERY),
    Op(
        append_index_rows,
        {"rows": u8(2, 132), "row_ids": torch.arange(2), "index_pages": PAGES}
        | {"row_seq": zeros(2), "row_pos": torch.arange(2).int()}
        | STATE
        | POOLED
        | BLOCK,
    ),
    Op(
        append_rows,
        {"values": f32(2, 576), "layout": KV, "rows": StepRows(zeros(2), zeros(2), i64(2) - 1)}
        | {"host_rows": u8(64, 656), "packed": u8(2, 656), "index": INDEX_SIDE},
    ),
    Op(rebuild_pooled_keys, STORED | STATE | POOLED | BLOCK),
    Op(resum_open_blocks, STORED | STATE | BLOCK),
    Op(
        index_logits,
        QUERY
        | {
            "index_rows": u8(5, 132),
            "key_start": zeros(2),
            "key_end": zeros(2) + 5,
            "layout": INDEX,
            "out": f32(2, 5),
            "heads": zeros(2, 3),
        },
    ),
    Op(
        paged_index_logits,
        QUERY
        | {
            "index_pages": PAGES,
            "page_table": zeros(1, 2),
            "row_seq": zeros(2),
            "row_end": zeros(2) + 9,
        }
        | {"layout": INDEX, "out": f32(2, 128), "heads": zeros(2, 3)},
    ),
    Op(
        block_topm,
        {"block_logits": f32(2, 9), "newest_block": zeros(2), "num_kept": 3, "out": zeros(2, 3)},
    ),
    Op(
        refine_logits,
        QUERY
        | {"index_pages": PAGES, "block_slots": zeros(2, 3), "block_ids": zeros(2, 3)}
        | {"row_pos": zeros(2), "out": f32(2, 192)}
        | BLOCK,
    ),
    Op(topk, {"logits": f32(2, 9), "k": 3, "out": zeros(2, 3)}),
    Op(
        candidate_positions,
        {"columns": zeros(2, 4), "block_ids": zeros(2, 3), "block_tokens": 64, "out": zeros(2, 4)},
    ),
    Op(prefix_positions, {"row_pos": zeros(2), "k": 3, "out": zeros(2, 3)}),
    Op(
        tail_share,
        {"positions": zeros(2, 4), "block_ids": zeros(2, 3), "block_logits": f32(2, 9)}
        | {"newest_block": zeros(2), "block_tokens": 64, "most_share": 0.05},
    ),
    Op(
        route_heads,
        QUERY
        | {"pooled_pages": PAGES, "page_table": zeros(1, 2), "row_seq": zeros(2)}
        | {"num_complete": zeros(2) + 3, "num_routed": 2, "layout": INDEX, "out": zeros(2, 2)}
        | {"workspace": f32(8)},
    ),
    Op(
        score_positions,
        QUERY
        | {"index_pages": PAGES, "page_table": zeros(1, 2), "row_seq": zeros(2)}
        | {"positions": zeros(2, 3), "layout": INDEX, "out": f32(2, 3)},
    ),
    Op(
        resolve,
        {"items": zeros(2, 3), "row_seq": zeros(2), "stamps": zeros(2) + 1}
        | {"plan": PLAN, "out": zeros(2, 3)}
        | slots(),
    ),
    Op(release_items, slots() | {"seq": 0, "first_item": 0}),
    Op(
        swap_in,
        {"host_rows": u8(64, 656), "page_table": zeros(1, 2), "plan": PLAN, "hot_rows": u8(5, 656)}
        | {"fresh": FreshRows(u8(1, 656), zeros(1), zeros(1), zeros(1))},
    ),
    Op(
        swap_in_blocks,
        {"host_pages": PAGES, "page_table": zeros(1, 2), "plan": PLAN, "window_pages": u8(8, 8448)}
        | {"block_tokens": 64},
    ),
    Op(
        spill,
        {"rows": u8(2, 656), "dst_row_ids": i64(2) - 1, "host_rows": u8(64, 656)}
        | {"hot": HotPlaces(u8(5, 656), zeros(2), zeros(9), i64(2), i64(2), zeros(2))},
    ),
    Op(
        attend,
        {"query": f32(2, 4, 576), "kv_rows": u8(9, 656), "row_ids": zeros(2, 3), "layout": KV}
        | {"softmax_scale": 0.1, "sink": f32(4), "valid_counts": zeros(2), "workspace": f32(8)},
    ),
]
TENSORS = [
    pytest.param(op, name, id=f"{op.call.__name__}-{name}")
    for op in OPS
    for name, value in op.good.items()
    if isinstance(value, torch.Tensor)
]


def refused(op: Op, match: str = "", **bad: Any) -> None:
    with pytest.raises(ValueError, match=match):
        op.call(**op.good | bad)
    op.call(**op.good)


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_wrong_dtype_is_refused_with_both_dtypes(op: Op, name: str) -> None:
    refused(
        op,
        f"{name} has dtype torch.complex64, needs torch",
        **{name: op.good[name].to(torch.complex64)},
    )


@pytest.mark.parametrize(("op", "name"), TENSORS)
def test_a_missing_dimension_is_refused_with_both_counts(op: Op, name: str) -> None:
    rank = op.good[name].dim()

    refused(
        op, rf"{name} has {rank + 1} dimensions .*, needs {rank}", **{name: op.good[name][None]}
    )


# their last dimension is the call's to choose
FREE_WIDTH = {"page_table", "logits", "block_logits", "row_ids", "columns", "block_ids"}
FREE_WIDTH |= {"workspace", "positions", "heads"}
BOUND_WIDTH = [p for p in TENSORS if p.values[1] not in FREE_WIDTH]


@pytest.mark.parametrize(("op", "name"), BOUND_WIDTH)
def test_a_width_that_fits_no_other_argument_is_refused_with_both_sizes(op: Op, name: str) -> None:
    wider = torch.cat([op.good[name]] * 2, dim=-1)

    refused(op, r"has (a dimension of \d+|\d+ \w+), needs \d+", **{name: wider})


def op_named(call: Callable[..., Any]) -> Op:
    return next(op for op in OPS if op.call is call)


@pytest.mark.parametrize(
    ("call", "bad", "match"),
    [
        (topk, {"k": 0}, "k is 0, needs at least 1"),
        (block_topm, {"num_kept": 1}, "num_kept is 1, needs at least 2"),
        (candidate_positions, {"block_tokens": 0}, "block_tokens is 0, needs at least 1"),
        (prefix_positions, {"k": 0}, "k is 0, needs at least 1"),
        (tail_share, {"block_tokens": 0}, "block_tokens is 0, needs at least 1"),
        (route_heads, {"num_routed": 0}, "num_routed is 0, needs at least 1"),
        (route_heads, {"num_routed": 5}, "number of heads is 4, needs at least 5"),
        (route_heads, {"group_blocks": 0}, "group_blocks is 0, needs at least 1"),
        (
            route_heads,
            {"workspace": f32(7)},
            "number of workspace values is 7, needs at least 8",
        ),
        (index_logits, {"heads": zeros(2, 0)}, "number of heads is 0, needs at least 1"),
        (paged_index_logits, {"heads": zeros(2, 0)}, "number of heads is 0, needs at least 1"),
        (score_positions, {"index_pages": u8(0, 8448)}, "index_pages is 0, needs at least 1"),
        (resolve, {"stamps": zeros(2) - 1}, "stamp is -1, needs at least 0"),
        (release_items, {"first_item": -1}, "first_item is -1, needs at least 0"),
        (release_items, {"seq": 1}, "number of sequences is 1, needs at least 2"),
        (release_items, {"seq": -1}, "seq is -1, needs at least 0"),
        (attend, {"row_ids": zeros(2, 0)}, "topk is 0, needs at least 1"),
        (attend, {"split_keys": 96}, "split_keys is 96, needs a multiple of 64"),
        (attend, {"split_keys": 0}, "split_keys is 0, needs a multiple of 64"),
        (attend, {"kv_rows": u8(9, 664)[:, :656]}, r"strides \(664, 1\), needs \(a multiple"),
        (
            attend,
            {"row_ids": zeros(2, 65), "split_keys": 64, "workspace": f32(8223)},
            "number of values in workspace is 8223, needs at least 8224",
        ),
        (refine_logits, {"block_tokens": 96}, "block_tokens is 96, needs a multiple of 64"),
        (refine_logits, {"block_tokens": 128}, "out has 192 columns, needs 384"),
        (swap_in_blocks, {"block_tokens": 0}, "block_tokens is 0, needs a multiple of 64"),
        (append_index_rows, {"block_tokens": 1}, "block_tokens is 1, needs a multiple of 64"),
        (unpack_kv_rows, {"layout": kv_layout("fp32")}, "rows has 656 row_bytes, needs 2304"),
        (index_logits, {"layout": index_layout("fp32")}, "index_rows has 132 row_bytes, needs 512"),
    ],
)
def test_a_number_out_of_range_is_refused_with_both_numbers(
    call: Callable[..., Any], bad: dict[str, Any], match: str
) -> None:
    refused(op_named(call), match, **bad)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (write_index_rows, "index_pages"),
        (index_logits, "out"),
        (paged_index_logits, "out"),
        (block_topm, "out"),
        (refine_logits, "out"),
        (topk, "out"),
        (candidate_positions, "out"),
        (route_heads, "out"),
        (route_heads, "workspace"),
        (score_positions, "out"),
        (resolve, "out"),
        (swap_in, "hot_rows"),
        (spill, "host_rows"),
    ],
)
def test_a_tensor_written_in_place_must_be_contiguous(call: Callable[..., Any], name: str) -> None:
    op = op_named(call)
    good = op.good[name]

    refused(op, f"{name} has strides", **{name: torch.stack([good, good], dim=-1)[..., 0]})


@pytest.mark.parametrize("field", ["slot_item", "slot_stamp", "slot_table"])
def test_slot_state_of_a_wrong_dtype_is_refused(field: str) -> None:
    op = op_named(resolve)
    bad = dataclasses.replace(op.good["state"], **{field: f32(8)})

    refused(op, f"{field} has dtype torch.float32", state=bad)
    refused(op_named(release_items), f"{field} has dtype torch.float32", state=bad)


@pytest.mark.parametrize("call", [resolve, swap_in, swap_in_blocks])
def test_a_plan_for_another_number_of_sequences_is_refused(call: Callable[..., Any]) -> None:
    plan = MissPlan(zeros(2, 4), zeros(2, 4), zeros(2), zeros(2))

    refused(op_named(call), "miss_item has 2 num_seqs, needs 1", plan=plan)


@pytest.mark.parametrize(
    ("field", "bad", "match"),
    [
        ("rows", u8(1, 528), "rows has 528 row_bytes, needs 656"),
        ("first_item", zeros(2), "first_item has 2 num_seqs, needs 1"),
        ("first_row", i64(1), "first_row has dtype torch.int64"),
        ("num_missed", f32(1), "num_missed has dtype torch.float32"),
    ],
)
def test_fresh_rows_that_do_not_fit_are_refused(field: str, bad: torch.Tensor, match: str) -> None:
    op = op_named(swap_in)

    refused(op, f"fresh.{match}", fresh=dataclasses.replace(op.good["fresh"], **{field: bad}))


@pytest.mark.parametrize(
    ("field", "bad", "match"),
    [
        ("rows", u8(5, 528), "rows has 528 row_bytes, needs 656"),
        ("item", zeros(3), "item has 3 n, needs 2"),
        ("slot_table", i64(9), "slot_table has dtype torch.int64"),
        ("table_base", zeros(2), "table_base has dtype torch.int32"),
        ("slot_base", i64(1), "slot_base has 1 n, needs 2"),
        ("num_placed", f32(2), "num_placed has dtype torch.float32"),
    ],
)
def test_places_that_do_not_fit_are_refused(field: str, bad: torch.Tensor, match: str) -> None:
    op = op_named(spill)

    refused(op, f"hot.{match}", hot=dataclasses.replace(op.good["hot"], **{field: bad}))


@pytest.mark.parametrize(
    ("field", "bad", "match"),
    [
        ("index_k", f32(1, 128), "index_k has 1 rows, needs 2"),
        ("index_q", f32(2, 4, 64), "index_q has a dimension of 64, needs 128"),
        ("index_weights", f32(2, 5), "index_weights has 5 heads, needs 4"),
        ("largest", f32(2, 2), "largest has a dimension of 2, needs 3"),
        ("window_pages", u8(4, 32768), "window_pages has 32768 page_bytes, needs 8448"),
        ("host_pages", f32(4, 8448), "host_pages has dtype torch.float32"),
        ("host_pooled", u8(3, 132), "host_pooled has 3 num_host_pages, needs 4"),
        ("slot_table", i64(20), "slot_table has dtype torch.int64"),
        ("window", SlotRanges(i64(2), i64(2), i64(2)), "state_rows has 1 num_seqs, needs 2"),
        ("open_sums", f32(3, 64), "open_sums has a dimension of 64, needs 128"),
        ("state_rows", i64(2), "state_rows has 2 num_seqs, needs 1"),
        ("pooled_pages", u8(1, 512), "pooled_pages has 512 page_bytes, needs 8448"),
        ("pooled_base", zeros(1), "pooled_base has dtype torch.int32"),
        ("block_tokens", 96, "block_tokens is 96, needs a multiple of 64"),
        ("layout", index_layout("fp32"), "window_pages has 8448 page_bytes, needs 32768"),
    ],
)
def test_an_index_side_that_does_not_fit_is_refused(field: str, bad: Any, match: str) -> None:
    refused(op_named(append_rows), match, index=dataclasses.replace(INDEX_SIDE, **{field: bad}))


@pytest.mark.parametrize("field", ["row_seq", "row_pos", "host_row_ids"])
def test_step_rows_that_do_not_fit_are_refused(field: str) -> None:
    op = op_named(append_rows)
    few = dataclasses.replace(op.good["rows"], **{field: getattr(op.good["rows"], field)[:1]})

    refused(op, f"{field} has 1 rows, needs 2", rows=few)


@pytest.mark.parametrize("kind", [kv_layout, index_layout])
def test_an_unknown_layout_is_refused_by_naming_the_known_ones(kind: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown \w+ layout 'fp7': needs one of .*fp32"):
        kind("fp7")
