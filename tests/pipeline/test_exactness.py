"""The exactness list: what every path of selection and attention must equal."""

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.config import SelectionConfig
from tests.pipeline.world import (
    FLAT,
    INDEX_HEADS,
    PlainDsa,
    Rows,
    assert_same_bits,
    on_cpu,
    pack_rows,
    prefill,
    random_rows,
    run_step,
    small_config,
)

LAYOUTS = [("fp32", "fp32"), ("fp8_ds_mla", "fp8"), ("bf16", "fp8"), ("fp8", "fp32")]


@pytest.mark.parametrize(("kv_layout", "index_layout"), LAYOUTS)
def test_flat_selection_and_attention_equal_the_plain_computation(
    kv_layout: str, index_layout: str
) -> None:
    config = small_config(kv_layout=kv_layout, index_layout=index_layout)
    plain = PlainDsa(config)
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(333, 8)
        steps = [(333, "prefill")] + [(1, "decode")] * 5
        for seed, (count, kind) in enumerate(steps):
            found = run_step(sidecar, [Rows(sequence, count, seed)], kind)
            wanted = plain.append(sequence, count, seed)
            for one, other in zip(found, wanted, strict=True):
                assert torch.equal(one.topk_indices, other.topk_indices)
                torch.testing.assert_close(one.out, other.out, atol=2e-5, rtol=2e-5)
                torch.testing.assert_close(one.lse, other.lse, atol=2e-5, rtol=2e-5)
        sidecar.check_integrity()


@pytest.mark.parametrize(
    "selection",
    [
        SelectionConfig("hisa", num_kept_blocks=7),
        SelectionConfig("misa", routed_heads=INDEX_HEADS),
        SelectionConfig("misa_dagger", routed_heads=1, candidates=7 * 64),
    ],
    ids=lambda selection: selection.index_source,
)
@pytest.mark.parametrize("length", [1, 47, 64, 65, 400, 447])
def test_selection_with_nothing_left_out_equals_flat(
    selection: SelectionConfig, length: int
) -> None:
    outputs = []
    for chosen in (FLAT, selection):
        with Sidecar(small_config()) as sidecar:
            sequence = sidecar.open(length, 1, selection=chosen)
            outputs.append(prefill(sidecar, sequence, length, 1))
            outputs[-1] += run_step(sidecar, [Rows(sequence, 1, 2)], "decode")
    assert_same_bits(outputs[1], outputs[0])


@pytest.mark.parametrize(
    "selection",
    [
        FLAT,
        SelectionConfig("hisa", num_kept_blocks=3),
        SelectionConfig("misa", routed_heads=2),
        SelectionConfig("misa_dagger", routed_heads=1, candidates=100),
    ],
    ids=lambda selection: selection.index_source,
)
@pytest.mark.parametrize(
    ("hot_slots", "window_blocks", "stage_rows"),
    [(48, 1, 48), (49, 2, 100), (100, 3, 4096), (1000, 20, 4096)],
)
def test_output_bits_do_not_depend_on_residency(
    selection: SelectionConfig, hot_slots: int, window_blocks: int, stage_rows: int
) -> None:
    def run(**changes: int) -> list:
        with Sidecar(small_config(selection=selection, **changes)) as sidecar:
            sequence = sidecar.open(500, 40)
            outputs = prefill(sidecar, sequence, 500, 1)
            for seed in range(2, 34):
                outputs += run_step(sidecar, [Rows(sequence, 1, seed)], "decode")
            sidecar.check_integrity()
            return outputs

    resident = run(hot_slots=600, window_blocks=16, stage_rows=600)
    found = run(hot_slots=hot_slots, window_blocks=window_blocks, stage_rows=stage_rows)
    assert_same_bits(found, resident)


@pytest.mark.parametrize("selection", [FLAT, SelectionConfig("hisa", num_kept_blocks=3)])
def test_packed_sequences_give_what_each_gives_alone(selection: SelectionConfig) -> None:
    lengths = [(130, 11), (300, 12), (1, 13)]
    with Sidecar(small_config(selection=selection)) as sidecar:
        sequences = [sidecar.open(length, 4) for length, _ in lengths]
        rows = [
            Rows(sequence, length, seed)
            for sequence, (length, seed) in zip(sequences, lengths, strict=True)
        ]
        packed = [run_step(sidecar, rows, "prefill")]
        for step in (1, 2, 3):
            tokens = [Rows(part.sequence, 1, part.seed + 100 * step) for part in rows]
            packed.append(run_step(sidecar, tokens, "decode"))
        sidecar.check_integrity()
    for number, (length, seed) in enumerate(lengths):
        with Sidecar(small_config(selection=selection)) as sidecar:
            sequence = sidecar.open(length, 4)
            alone = [prefill(sidecar, sequence, length, seed)]
            alone += [
                run_step(sidecar, [Rows(sequence, 1, seed + 100 * step)], "decode")
                for step in (1, 2, 3)
            ]
        first = sum(length for length, _ in lengths[:number])
        for step, (found, wanted) in enumerate(zip(packed, alone, strict=True)):
            count = length if step == 0 else 1
            start = first if step == 0 else number
            for one, other in zip(found, wanted, strict=True):
                rows_of = slice(start, start + count)
                assert torch.equal(one.topk_indices[rows_of], other.topk_indices)
                assert torch.equal(one.out[rows_of], other.out)
                assert torch.equal(one.lse[rows_of], other.lse)


def test_attention_is_dense_where_topk_covers_the_sequence() -> None:
    config = small_config(kv_layout="fp32", index_layout="fp32")
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(48, 0)
        outputs = prefill(sidecar, sequence, 48, 5)
    for layer, output in enumerate(outputs):
        inputs = random_rows(config, layer, 48, 5)
        logits = torch.einsum("rhd,td->rht", inputs.query, inputs.kv) * config.model.softmax_scale
        future = torch.ones(48, 48, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(future[:, None], float("-inf")).softmax(-1)
        dense = torch.einsum("rht,td->rhd", weights, inputs.kv[:, :512])
        torch.testing.assert_close(output.out, dense, atol=2e-5, rtol=2e-5)


def test_padding_rows_change_nothing_and_give_nothing() -> None:
    def run(padded_rows: int | None) -> list:
        config = small_config()
        with Sidecar(config) as sidecar:
            sequence = sidecar.open(200, 2)
            prefill(sidecar, sequence, 200, 1)
            options = {} if padded_rows is None else {"padded_rows": padded_rows}
            sidecar.begin_step([(sequence, 1)], "decode", **options)
            outputs = []
            for layer in range(config.model.num_layers):
                parts = [random_rows(config, layer, 1, 2)]
                if padded_rows:
                    parts.append(random_rows(config, layer, padded_rows - 1, 77))
                outputs.append(on_cpu(sidecar.run_layer(layer, pack_rows(parts))))
            sidecar.commit_step()
            sidecar.check_integrity()
            return outputs

    for padded, plain in zip(run(4), run(None), strict=True):
        assert torch.equal(padded.out[:1], plain.out)
        assert (padded.topk_indices[1:] == -1).all()
        assert (padded.out[1:] == 0).all()
        assert (padded.lse[1:] == float("-inf")).all()
