"""Every bad argument gives the typed error with both numbers, and a good call then works."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from hisparse_sidecar import LayerInputs, ModelShape, Sidecar
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import (
    DeviceArenaFull,
    HostPoolFull,
    InvalidArgument,
    StaleHandle,
    UnknownSequence,
    WrongState,
)
from tests.pipeline.world import (
    FLAT,
    Rows,
    assert_same_bits,
    prefill,
    random_rows,
    run_step,
    small_config,
)

Change = Callable[[LayerInputs], LayerInputs]

BAD_INPUTS: dict[str, tuple[Change, str]] = {
    "query rows": (lambda rows: replace(rows, query=rows.query[:1]), r"query .*\(1, .*\(2, "),
    "query dim": (lambda rows: replace(rows, query=rows.query[..., :9]), r"query .* 9\).* 576\)"),
    "query rank": (lambda rows: replace(rows, query=rows.query[0]), "query"),
    "no heads": (lambda rows: replace(rows, query=rows.query[:, :0]), "0 heads, needs 1 to 128"),
    "query dtype": (lambda rows: replace(rows, query=rows.query.int()), "query is torch.int32"),
    "kv dim": (lambda rows: replace(rows, kv=rows.kv[:, :500]), r"kv .*500\).*576\)"),
    "no index_q": (lambda rows: replace(rows, index_q=None), "index_q must not be None"),
    "index heads": (
        lambda rows: replace(rows, index_q=rows.index_q[:, :2]),
        r"index_q .*\(2, 2, 128\).*\(2, 4, 128\)",
    ),
    "weights dtype": (
        lambda rows: replace(rows, index_weights=rows.index_weights.half()),
        "index_weights is torch.float16",
    ),
    "index_k rows": (lambda rows: replace(rows, index_k=rows.index_k[:0]), "index_k"),
    "sink heads": (lambda rows: replace(rows, sink=torch.zeros(7)), r"sink .*\(7,\).*\(3,\)"),
}


@pytest.mark.parametrize("name", list(BAD_INPUTS))
def test_bad_layer_inputs_are_refused_and_change_nothing(name: str) -> None:
    change, message = BAD_INPUTS[name]
    config = small_config()
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(2, 2)
        sidecar.begin_step([(sequence, 2)], "prefill")
        good = random_rows(config, 0, 2, 1)
        with pytest.raises(InvalidArgument, match=message):
            sidecar.run_layer(0, change(good))
        for layer in range(3):
            sidecar.run_layer(layer, random_rows(config, layer, 2, 1))
        sidecar.commit_step()
        sidecar.check_integrity()


@pytest.mark.interpreted
@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer: int) -> None:
    config = small_config()
    with Sidecar(config) as sidecar:
        sidecar.begin_step([(sidecar.open(1, 1), 1)], "decode")
        with pytest.raises(InvalidArgument, match=f"layer is {layer}, .* 0..2"):
            sidecar.run_layer(layer, random_rows(config, 0, 1, 1))


def test_a_shared_layer_refuses_a_selection_of_its_own() -> None:
    config = small_config()
    with Sidecar(config) as sidecar:
        sidecar.begin_step([(sidecar.open(1, 1), 1)], "decode")
        sidecar.run_layer(0, random_rows(config, 0, 1, 1))
        with pytest.raises(InvalidArgument, match="index_q must be None"):
            sidecar.run_layer(1, random_rows(config, 0, 1, 1))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("positions", "message"),
    [([0, 5], r"is 5, row 0 may see 0..3"), ([2, 1], r"\[2, 1\]"), ([-1, 1], r"\[-1, 1\]")],
)
def test_given_positions_are_checked(positions: list[int], message: str) -> None:
    config = small_config(selection=SelectionConfig("given"))
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(4, 0)
        topk = torch.full((1, config.model.topk), -1, dtype=torch.int32)
        rows = random_rows(config, 0, 1, 1)
        for _ in range(3):
            sidecar.begin_step([(sequence, 1)], "decode")
            for layer in range(3):
                given = topk if config.model.is_anchor(layer) else None
                sidecar.run_layer(layer, LayerInputs(rows.query, rows.kv, topk_indices=given))
            sidecar.commit_step()
        sidecar.begin_step([(sequence, 1)], "decode")
        topk[0, :2] = torch.tensor(positions)
        with pytest.raises(InvalidArgument, match=message):
            sidecar.run_layer(0, LayerInputs(rows.query, rows.kv, topk_indices=topk))


def test_admission_refuses_what_does_not_fit_and_holds_nothing() -> None:
    with Sidecar(small_config(host_pages=8)) as sidecar:
        before = sidecar.stats().core
        with pytest.raises(HostPoolFull, match=r"9.*8"):
            sidecar.open(8 * 64, 1)
        assert sidecar.stats().core.host_pages_free == before.host_pages_free
        sequence = sidecar.open(8 * 64 - 1, 1)
        with pytest.raises(HostPoolFull):
            sidecar.open(1, 0)
        sidecar.close_sequence(sequence)
        sidecar.open(8 * 64, 0)


def test_device_slots_run_out_with_a_typed_error() -> None:
    with Sidecar(small_config(max_sequences=1)) as sidecar:
        sequence = sidecar.open(64, 0)
        with pytest.raises(DeviceArenaFull):
            sidecar.open(64, 0)
        sidecar.close_sequence(sequence)
        sidecar.open(64, 0)


def test_sequences_that_are_not_there_are_named() -> None:
    with Sidecar(small_config()) as sidecar:
        sequence = sidecar.open(4, 0)
        sidecar.close_sequence(sequence)
        for call in (
            lambda: sidecar.close_sequence(sequence),
            lambda: sidecar.begin_step([(sequence, 1)], "decode"),
            lambda: sidecar.truncate(sequence, 0),
            lambda: sidecar.fork(sequence, 0, 1),
            lambda: sidecar.length(sequence),
        ):
            with pytest.raises(StaleHandle):
                call()
        with pytest.raises(UnknownSequence):
            sidecar.length(77)


def test_step_rows_are_checked_and_appended_together_or_not_at_all() -> None:
    with Sidecar(small_config()) as sidecar:
        one, other = sidecar.open(10, 2), sidecar.open(10, 2)
        cases = [
            ([(one, 5), (other, 13)], "prefill", None, r"13.*12|12.*13"),
            ([(one, 2)], "decode", None, "2 rows in a decode step, at most 1"),
            ([(one, 0)], "prefill", None, "0 new rows, needs >= 1"),
            ([(one, 1), (one, 1)], "prefill", None, "found 1 in 2"),
            ([], "prefill", None, "0 sequences"),
            ([(one, 3)], "prefill", 2, "padded_rows is 2, the step has 3"),
            ([(one, 3)], "prefill", 10**18, "padding rows, at most 65536"),
            ([(one, 1), (other, 1.0)], "prefill", None, "integers, found 1.0"),
            ([(one, 1), ("x", 1)], "prefill", None, "integers, found 'x'"),
            ([(one, 3)], "verify", None, "'verify', must be one of decode, prefill"),
        ]
        for rows, kind, padded, message in cases:
            with pytest.raises(InvalidArgument, match=message):
                sidecar.begin_step(rows, kind, padded_rows=padded)  # type: ignore[arg-type]
            assert (sidecar.length(one), sidecar.length(other)) == (0, 0)
        prefill(sidecar, one, 10, 1)
        run_step(sidecar, [Rows(one, 1, 2)], "decode")


@pytest.mark.cpu_only  # on CUDA the end of the step finds it: test_cuda.py
@pytest.mark.parametrize("name", ["index_q", "index_weights", "index_k"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_index_inputs_without_a_rank_are_refused(name: str, value: float) -> None:
    config = small_config()
    with Sidecar(config) as sidecar:
        sidecar.begin_step([(sidecar.open(3, 0), 3)], "prefill")
        rows = random_rows(config, 0, 3, 1)
        spoiled = getattr(rows, name).clone()
        spoiled[1].flatten()[2] = value
        with pytest.raises(InvalidArgument, match=f"row 1 of {name} is not finite"):
            sidecar.run_layer(0, replace(rows, **{name: spoiled}))
        sidecar.run_layer(0, rows)


def test_candidates_beyond_the_sequence_are_all_of_it() -> None:
    outputs = []
    for selection in (FLAT, SelectionConfig("misa_dagger", routed_heads=1, candidates=2**40)):
        with Sidecar(small_config(selection=selection)) as sidecar:
            outputs.append(prefill(sidecar, sidecar.open(100, 0), 100, 1))
    assert_same_bits(*outputs)


@pytest.mark.interpreted
def test_a_closed_sidecar_refuses_every_call_but_close() -> None:
    sidecar = Sidecar(small_config())
    sequence = sidecar.open(4, 0)
    sidecar.begin_step([(sequence, 4)], "prefill")
    sidecar.close()
    sidecar.close()
    for call in (lambda: sidecar.open(1, 1), lambda: sidecar.truncate(sequence, 0)):
        with pytest.raises(WrongState, match="closed"):
            call()


@pytest.mark.interpreted
def test_a_tensor_of_the_host_tier_keeps_it_until_it_is_let_go() -> None:
    sidecar = Sidecar(small_config())
    held = sidecar.host.kv_rows[0]
    with pytest.raises(WrongState):
        sidecar.close()
    del held
    sidecar.close()


def test_an_error_is_not_hidden_by_the_tensors_that_its_frames_hold() -> None:
    sidecars = []

    def fail() -> None:
        with Sidecar(small_config()) as sidecar:
            sidecars.append(sidecar)
            held = sidecar.host.kv_rows[0]
            raise ZeroDivisionError(held.shape)

    with pytest.raises(ZeroDivisionError):
        fail()
    sidecars[0].close()
    with pytest.raises(WrongState):
        _ = sidecars[0].host.region.address


def test_a_fork_of_a_long_sequence_needs_no_more_host_pages() -> None:
    with Sidecar(small_config(host_pages=64)) as sidecar:
        parent = sidecar.open(40 * 64, 0)
        prefill(sidecar, parent, 40 * 64, 1)
        sidecar.fork(parent, 40 * 64, 64)
        sidecar.check_integrity()


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host_pages": 0}, "host_pages is 0, must be >= 1"),
        ({"block_tokens": 96}, "block_tokens is 96, must be a multiple of 64"),
        ({"kv_layout": "int4"}, "int4.*fp8_ds_mla"),
        ({"index_layout": "bf16"}, "bf16.*fp32"),
        ({"stage_rows": 47}, "stage_rows is 47, topk needs 48"),
        ({"stage_rows": 2**60}, "host pool has 4096 tokens"),
        ({"hot_slots": 0}, "hot_slots is 0, .* needs 48"),
        ({"hot_slots": -5}, "hot_slots is -5, .* needs 48"),
        ({"max_logits_bytes": 0}, "max_logits_bytes is 0"),
        ({"device": "gpu"}, "'gpu', must be cpu, cuda or cuda:N"),
        ({"device": "cuda:"}, "'cuda:', must be"),
        (
            {"backend": "fast"},
            "'fast', must be one of auto, flash_mla, gluon_sm100, reference, triton",
        ),
    ],
)
def test_configs_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hot_slots": 47}, r"hot_slots is 47, .* needs 48"),
        ({"window_blocks": 0}, "window_blocks is 0"),
        ({"selection": SelectionConfig("misa", routed_heads=9)}, "9, the model has 4"),
        ({"selection": SelectionConfig("misa_dagger", routed_heads=1, candidates=9)}, "9.*48"),
    ],
)
def test_a_sequence_that_cannot_work_is_not_opened(
    options: dict[str, object], message: str
) -> None:
    with Sidecar(small_config()) as sidecar:
        with pytest.raises(InvalidArgument, match=message):
            sidecar.open(10, 1, **options)  # type: ignore[arg-type]
        assert sidecar.stats().core.sequences == 0
        sidecar.open(10, 1)


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("anchor_of", "message"),
    [((0,), "1 entries for 2"), ((0, 5), "layer 1 selects with layer 5"), ((1, 1), "layer 0")],
)
def test_shapes_with_impossible_anchors_are_refused(
    anchor_of: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        ModelShape(2, anchor_of, 4, 8, 1.0)
