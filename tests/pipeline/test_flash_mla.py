"""A sidecar with the backend `flash_mla`: what it refuses before anything has changed, and runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from accuracy import TOLERANCES, assert_near
from hisparse_kernels.backends import Ops, reference_ops
from hisparse_kernels.sparse_mla import AttentionOptions
from hisparse_sidecar import LayerInputs, LayerOutputs, ModelShape, Sidecar, SidecarConfig
from hisparse_sidecar.errors import InvalidArgument
from tests.pipeline.world import INDEX_HEADS, on_cpu, random_rows, small_config

BF16 = torch.bfloat16
MODEL = ModelShape(2, (0, 0), INDEX_HEADS, 64, 576**-0.5)


def flash_config(**changes: Any) -> SidecarConfig:
    settings = {"model": MODEL, "kv_layout": "fp8_ds_mla", "backend": "flash_mla"}
    return small_config(**(settings | {"hot_slots": 128} | changes))


def flash_rows(config: SidecarConfig, layer: int, rows: int, seed: int) -> LayerInputs:
    made = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, 64, config.kv.query_dim, generator=made).to(BF16)
    return replace(random_rows(config, layer, rows, seed), query=query)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AttentionOptions]:
    """Options of each call of attention, by the reference: the backend needs a GPU."""
    calls: list[AttentionOptions] = []
    ops = reference_ops()

    def attend(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(inputs[-1])
        return ops.sparse_mla(*inputs)

    def choose(config: SidecarConfig) -> Ops:
        assert config.backend == "flash_mla"
        return replace(ops, sparse_mla=attend)

    monkeypatch.setattr("hisparse_sidecar.tiers.tiers.choose_ops", choose)
    return calls


@pytest.mark.cpu_only
def test_on_the_cpu_it_is_refused() -> None:
    message = "backend is 'flash_mla' on device 'cpu', needs a GPU of sm_90"
    with pytest.raises(InvalidArgument, match=message):
        Sidecar(flash_config(device="cpu"))


@pytest.mark.cpu_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_layout": "fp8"}, "KV rows are fp8, 528 B"),
        ({"kv_layout": "bf16"}, "lists have 64 ids, .* multiple of 128 over bf16 rows"),
        ({"model": replace(MODEL, topk=48)}, "lists have 48 ids"),
        ({"split_keys": 256}, "split_keys is 256"),
        ({"split_keys": 0}, "split_keys is 0"),
    ],
)
def test_configurations_that_flash_mla_does_not_run_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        flash_config(**changes)
    flash_config(**changes, backend="auto")


@pytest.mark.cpu_only
def test_queries_that_flash_mla_does_not_take_change_nothing(asked: list[AttentionOptions]) -> None:
    config = flash_config(device="cpu")
    with Sidecar(config) as sidecar:
        sequence = sidecar.open(3, 1)
        sidecar.begin_step([(sequence, 3)], "prefill")
        good = flash_rows(config, 0, 3, 1)
        with pytest.raises(InvalidArgument, match="queries have 3 heads"):
            sidecar.run_layer(0, replace(good, query=good.query[:, :3]))
        with pytest.raises(InvalidArgument, match=r"queries are torch.float32"):
            sidecar.run_layer(0, replace(good, query=good.query.float()))
        assert asked == []
        sidecar.run_layer(0, good)


@pytest.mark.cpu_only
def test_flash_mla_is_asked_for_no_splits(asked: list[AttentionOptions]) -> None:
    config = flash_config(device="cpu")
    with Sidecar(config) as sidecar:
        _live(sidecar)
    assert asked
    assert {options.split_keys for options in asked} == {None}


@pytest.mark.gpu
@pytest.mark.usefixtures("needs_flash_mla")
@pytest.mark.parametrize("topk", [64, 128])
def test_on_a_gpu_it_gives_nearly_what_triton_gives(topk: int) -> None:
    changes = {"device": "cuda", "model": replace(MODEL, topk=topk), "hot_slots": 2 * topk}
    lives = []
    for backend in ("flash_mla", "triton"):
        with Sidecar(flash_config(**changes, backend=backend)) as sidecar:
            lives.append(_live(sidecar))
            sidecar.check_integrity()
    for one, other in zip(*lives, strict=True):
        assert torch.equal(one.topk_indices, other.topk_indices)
        near = replace(TOLERANCES[BF16], absolute=4e-3)  # both round their weights to bf16
        assert_near(one.out.float(), other.out.float(), near)
        assert_near(one.lse, other.lse, replace(TOLERANCES[torch.float32], relative=8.01 / 65536))


def _live(sidecar: Sidecar) -> list[LayerOutputs]:
    """Two prompts, in chunks, then steps of both: hot buffers overflow."""
    one, other = sidecar.open(300, 3), sidecar.open(63, 3)
    outputs = _step(sidecar, [(one, 200)], "prefill", 1) + _step(
        sidecar, [(one, 100)], "prefill", 2
    )
    outputs += _step(sidecar, [(other, 63)], "prefill", 3)
    for seed in (4, 5, 6):
        outputs += _step(sidecar, [(one, 1), (other, 1)], "decode", seed)
    return outputs


def _step(
    sidecar: Sidecar, rows: list[tuple[int, int]], kind: Any, seed: int
) -> list[LayerOutputs]:
    sidecar.begin_step(rows, kind)
    config, count = sidecar.config, sum(number for _, number in rows)
    layers = range(config.model.num_layers)
    made = [flash_rows(config, layer, count, seed) for layer in layers]
    outputs = [on_cpu(sidecar.run_layer(layer, made[layer])) for layer in layers]
    sidecar.commit_step()
    return outputs
