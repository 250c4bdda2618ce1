"""On CUDA no layer waits for the device: what went wrong in a step is found when it ends."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from hisparse_sidecar import LayerInputs, LayerOutputs, Sidecar, SidecarConfig
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument, WrongState
from hisparse_sidecar.tiers.host_memory import HostMemory
from tests.far_apart import keep_far_apart
from tests.no_waiting import no_waiting
from tests.pipeline.world import (
    FLAT,
    HISA,
    Rows,
    assert_same_bits,
    pack_rows,
    prefill,
    random_rows,
    run_step,
    small_config,
)

pytestmark = pytest.mark.gpu

Accident = Callable[[Sidecar, int], None]

MISA = SelectionConfig("misa", routed_heads=2)
HISA_OF_4 = SelectionConfig("hisa", 4, gate="off")
ADAPTIVE = SelectionConfig("hisa", 4, budget="adaptive", max_blocks=8, gate="off")
RATIO = SelectionConfig("hisa", 2, budget="ratio", max_blocks=4, gate="off")
AUDITED = SelectionConfig("hisa", 3, gate="off", audit_one_in=2)
MISA_DAGGER = SelectionConfig("misa_dagger", routed_heads=1, candidates=100)


@pytest.mark.parametrize("kind", ["decode", "prefill"])
@pytest.mark.parametrize("name", ["index_q", "index_weights", "index_k"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_index_inputs_without_a_rank_are_found_when_the_step_ends(
    kind: str, name: str, value: float
) -> None:
    config = small_config(max_step_rows=3, hot_slots=144, selection=HISA)

    def spoiled(layer: int) -> LayerInputs:
        rows = random_rows(config, layer, 3, 66)
        if layer == 2:
            getattr(rows, name)[1].flatten()[2] = value
        return rows

    def spoil_a_step(sidecar: Sidecar, sequence: int) -> None:
        sidecar.begin_step([(sequence, 3)], kind)  # type: ignore[arg-type]
        for layer in range(config.model.num_layers):
            sidecar.run_layer(layer, spoiled(layer))
        for _ in range(2):
            message = f"row 1 of {name} of layer 2 is not finite, 1 of its rows"
            with pytest.raises(InvalidArgument, match=message):
                sidecar.commit_step()
        sidecar.abort_step()

    _assert_never_happened(config, spoil_a_step)


@pytest.mark.parametrize(("tier", "what"), [("hot", "rows"), ("window", "blocks")])
@pytest.mark.parametrize("group", [0, 1])
def test_a_refused_resolve_is_raised_when_the_step_ends(tier: str, what: str, group: int) -> None:
    selection = SelectionConfig("hisa", num_kept_blocks=4, gate="off")  # the window has one more
    config = small_config(hot_slots=48, window_blocks=4, selection=selection)

    def run_with_every_slot_in_use(sidecar: Sidecar, sequence: int) -> None:
        stamps = getattr(sidecar._tiers.device, tier)[group].slot_stamp
        stamps[stamps >= 0] = 2**31 - 1  # used last in a step that is still to come
        sidecar.begin_step([(sequence, 1)], "decode")
        for layer in range(config.model.num_layers):
            sidecar.run_layer(layer, random_rows(config, layer, 1, 66))
        for _ in range(2):
            message = f"sequence 0 of the step got none of the {what} it asked for"
            with pytest.raises(WrongState, match=message):
                sidecar.commit_step()
        sidecar.abort_step()

    _assert_never_happened(config, run_with_every_slot_in_use)


def test_a_padding_row_that_is_not_finite_is_no_error() -> None:
    config = small_config(selection=HISA)

    def run(padding: float) -> list[LayerOutputs]:
        with Sidecar(config) as sidecar:
            sequence = sidecar.open(127, 2)
            prefill(sidecar, sequence, 127, 1)
            sidecar.begin_step([(sequence, 1)], "decode", padded_rows=3)
            outputs = []
            for layer in range(config.model.num_layers):
                inputs = random_rows(config, layer, 3, 2)
                for tensor in vars(inputs).values():
                    if tensor is not None:
                        tensor[1:] = padding
                outputs.append(sidecar.run_layer(layer, inputs))
            sidecar.commit_step()
            sidecar.check_integrity()
            return outputs

    assert_same_bits(run(float("nan")), run(0.0))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize(
    ("selections", "changes"),
    [
        ([FLAT], {"window_blocks": 16}),
        ([FLAT], {"window_blocks": 2}),
        ([FLAT], {"window_blocks": 2, "max_logits_bytes": 1}),
        ([HISA], {"window_blocks": 16}),
        ([HISA], {"window_blocks": 2}),
        ([HISA], {"window_blocks": 6}),
        ([ADAPTIVE], {"window_blocks": 16}),
        ([ADAPTIVE], {"window_blocks": 6}),
        ([RATIO], {"window_blocks": 6}),
        ([AUDITED], {"window_blocks": 16}),
        ([MISA], {"window_blocks": 16}),
        ([MISA_DAGGER], {"window_blocks": 2}),
        ([FLAT, HISA], {"kv_layout": "bf16", "index_layout": "fp32"}),
    ],
    ids=[
        "flat, all resident",
        "flat, streaming",
        "flat, row by row",
        "hisa, all resident",
        "hisa, streaming",
        "hisa, fetched beside",
        "adaptive, all resident",
        "adaptive, fetched beside",
        "ratio, fetched beside",
        "hisa, audited",
        "misa",
        "misa dagger",
        "flat beside hisa",
    ],
)
def test_no_layer_of_a_decode_step_waits_for_the_device(
    selections: list[SelectionConfig], changes: dict[str, object]
) -> None:
    config = small_config(max_step_rows=2, hot_slots=96, **changes)
    with Sidecar(config) as sidecar:
        # the second sequence fills a block in the step that is watched
        one = sidecar.open(500, 8, selection=selections[0])
        other = sidecar.open(126, 8, selection=selections[-1])
        run_step(sidecar, [Rows(one, 500, 1), Rows(other, 126, 2)], "prefill")
        run_step(sidecar, [Rows(one, 2, 3), Rows(other, 1, 4)], "decode")
        layers = [
            pack_rows([random_rows(config, layer, count, seed) for seed, count in ((5, 2), (6, 2))])
            for layer in range(config.model.num_layers)
        ]
        on_device = [inputs.to(sidecar.device) for inputs in layers]
        sidecar.begin_step([(one, 2), (other, 1)], "decode", padded_rows=4)
        with no_waiting():
            outputs = [sidecar.run_layer(i, inputs) for i, inputs in enumerate(on_device)]
            with pytest.raises(RuntimeError, match="synchronizing"):  # such a wait is noticed
                outputs[0].out.sum().item()
        sidecar.commit_step()
        sidecar.check_integrity()


def test_the_end_of_a_step_waits_also_where_it_has_nothing_to_look_at() -> None:
    config = small_config(selection=SelectionConfig("given"))
    with Sidecar(config) as sidecar:
        sidecar.begin_step([(sidecar.open(4, 0), 4)], "prefill")
        none = torch.full((4, config.model.topk), -1, dtype=torch.int32)
        for layer in range(config.model.num_layers):
            rows = random_rows(config, layer, 4, 1)
            given = none if config.model.is_anchor(layer) else None
            sidecar.run_layer(layer, LayerInputs(rows.query, rows.kv, topk_indices=given))
        torch.cuda._sleep(200_000_000)  # cycles, about a tenth of a second
        sidecar.commit_step()
        assert torch.cuda.current_stream().query()


def test_a_host_pool_registered_in_small_chunks_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small_config(selection=HISA, hot_slots=48, window_blocks=2, stage_rows=48)
    whole = _life(config)
    in_pages = partial(HostMemory, pinned_chunk_bytes=1 << 16)  # rows and pages cross the borders
    monkeypatch.setattr("hisparse_sidecar.tiers.tiers.HostMemory", in_pages)

    assert_same_bits(_life(config), whole)


def test_the_same_life_gives_the_same_bits_twenty_times() -> None:
    config = small_config(selection=HISA, hot_slots=48, window_blocks=2)
    first = _life(config)
    for _ in range(19):
        assert_same_bits(_life(config), first)


def _assert_never_happened(config: SidecarConfig, accident: Accident) -> None:
    assert_same_bits(_life(config, accident), _life(config))


def _life(config: SidecarConfig, accident: Accident | None = None) -> list[LayerOutputs]:
    """A prompt and five decoded tokens, of which the fourth closes a block."""
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(508, 6)
        outputs = prefill(sidecar, sequence, 508, 1)
        for seed in (2, 3):
            outputs += run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
        if accident is not None:
            accident(sidecar, sequence)
            assert sidecar.length(sequence) == 510
            sidecar.check_integrity()
        for seed in (4, 5, 6):
            outputs += run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
        sidecar.check_integrity()
        return outputs


@pytest.mark.parametrize("selection", [HISA_OF_4, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("slow", ["beside", "layer"])
def test_blocks_that_are_fetched_beside_a_layer_are_neither_read_nor_evicted_too_early(
    selection: SelectionConfig, slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either stream may be far behind the other; aborted and cut steps leave fetches behind."""
    keep_far_apart(monkeypatch, slow)

    def life(window_blocks: int) -> list[LayerOutputs]:
        config = small_config(selection=selection, window_blocks=window_blocks)
        outputs = []
        with Sidecar(config) as sidecar:
            sequence = sidecar.open(700, 40)
            prefill(sidecar, sequence, 700, 1)
            for seed in range(2, 8):
                outputs += run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
                sidecar.begin_step([(sequence, 1)], "decode")
                for layer in range(2):
                    sidecar.run_layer(layer, random_rows(config, layer, 1, 100 + seed))
                sidecar.abort_step()
                if seed == 5:
                    sidecar.truncate(sequence, 690)
                sidecar.check_integrity()
            fetched = sidecar.stats().groups[0].blocks
        assert window_blocks > 12 or 0 < fetched.bytes_in <= fetched.bytes_read_in_place
        return outputs

    assert_same_bits(life(6), life(24))
