"""Which device and ops a configuration means; Triton's ops give what the reference's do."""

from dataclasses import fields
from functools import partial

import pytest
import torch

from accuracy import Tolerance, assert_near
from hisparse_kernels.backends import Ops, reference_ops
from hisparse_kernels.gpu.backend import fastest_ops, gluon_sm100_ops, triton_ops
from hisparse_kernels.gpu.interpreter import interpreting
from hisparse_sidecar import LayerOutputs, Sidecar
from hisparse_sidecar.backends import choose_ops
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from tests.pipeline.world import FLAT, HISA, Rows, prefill, random_rows, run_step, small_config

MISA_DAGGER = SelectionConfig("misa_dagger", routed_heads=1, candidates=100)
SELECTIONS = [FLAT, HISA, SelectionConfig("misa", routed_heads=2), MISA_DAGGER]
NEAR = Tolerance(absolute=2e-5, relative=2e-5, diff=1e-9)


@pytest.mark.cpu_only
@pytest.mark.skipif(not interpreting(), reason="the interpreter is for machines without a GPU")
@pytest.mark.parametrize(
    "selection", [FLAT, HISA, MISA_DAGGER], ids=lambda selection: selection.index_source
)
def test_interpreted_triton_gives_what_the_reference_gives(
    selection: SelectionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def life(ops: Ops) -> list[LayerOutputs]:
        switch = _Switch()
        monkeypatch.setattr("hisparse_sidecar.tiers.tiers.choose_ops", lambda _: switch.all_ops())
        with Sidecar(small_config(selection=selection, hot_slots=48, window_blocks=2)) as sidecar:
            parent = sidecar.open(191, 4)
            prefill(sidecar, parent, 191, 1)
            switch.ops = ops
            return _go_on(sidecar, parent)

    _assert_all_near(life(triton_ops()), life(reference_ops()))


@pytest.mark.gpu
@pytest.mark.parametrize("layouts", [("fp32", "fp32"), ("fp8_ds_mla", "fp8")], ids="-".join)
@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda selection: selection.index_source)
def test_on_cuda_both_backends_give_what_the_reference_gives_on_the_cpu(
    selection: SelectionConfig, layouts: tuple[str, str]
) -> None:
    wanted = _life("cpu", "reference", selection, layouts)
    _assert_all_near(_life("cuda", "triton", selection, layouts), wanted)
    _assert_all_near(_life("cuda", "reference", selection, layouts), wanted)


@pytest.mark.gpu
def test_auto_is_triton_and_faster_peers_on_cuda() -> None:
    assert choose_ops(small_config(device="cuda", backend="auto")) == fastest_ops()
    assert choose_ops(small_config(device="cuda", backend="triton")) == triton_ops()


@pytest.mark.cpu_only
def test_auto_is_the_reference_on_the_cpu() -> None:
    assert choose_ops(small_config(device="cpu", backend="auto")) == reference_ops()


@pytest.mark.cpu_only
def test_triton_on_the_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hisparse_kernels.gpu.interpreter.interpreting", lambda: False)
    with pytest.raises(InvalidArgument, match=r"'triton' on device 'cpu', .* TRITON_INTERPRET=1"):
        Sidecar(small_config(device="cpu", backend="triton"))


@pytest.mark.cpu_only
def test_the_body_for_sm_100_is_refused_on_the_cpu() -> None:
    message = "backend is 'gluon_sm100' on device 'cpu', needs 10.0 or 10.3"
    with pytest.raises(InvalidArgument, match=message):
        Sidecar(small_config(device="cpu", backend="gluon_sm100"))


@pytest.mark.gpu
def test_the_body_for_sm_100_is_for_sm_100_alone() -> None:
    major, minor = torch.cuda.get_device_capability()
    if major == 10:
        assert choose_ops(small_config(device="cuda", backend="gluon_sm100")) == gluon_sm100_ops()
        return
    message = rf"on compute capability {major}\.{minor}, needs 10\.0 or 10\.3"
    with pytest.raises(InvalidArgument, match=message):
        choose_ops(small_config(device="cuda", backend="gluon_sm100"))


@pytest.mark.cpu_only
@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
def test_a_device_that_is_not_there_is_refused(backend: str) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    message = f"device is 'cuda:{found}', torch .* finds {found} CUDA devices"
    with pytest.raises(InvalidArgument, match=message):
        Sidecar(small_config(device=f"cuda:{found}", backend=backend))


class _Switch:
    """Ops that change on the way: the interpreter takes a second for three rows of a prompt."""

    def __init__(self) -> None:
        self.ops = reference_ops()

    def all_ops(self) -> Ops:
        return Ops(**{field.name: partial(self._call, field.name) for field in fields(Ops)})

    def _call(self, name: str, *args: object, **kwargs: object) -> object:
        return getattr(self.ops, name)(*args, **kwargs)


def _go_on(sidecar: Sidecar, parent: int) -> list[LayerOutputs]:
    """What may happen to 191 tokens: a block is filled, a step put back, a fork goes its way."""
    outputs = run_step(sidecar, [Rows(parent, 1, 2)], "decode")
    child = sidecar.fork(parent, 130, 4)
    sidecar.begin_step([(parent, 1)], "decode")
    sidecar.run_layer(0, random_rows(sidecar.config, 0, 1, 66))
    sidecar.abort_step()
    sidecar.truncate(parent, 190)
    outputs += run_step(sidecar, [Rows(parent, 1, 3), Rows(child, 1, 4)], "decode")
    outputs += run_step(sidecar, [Rows(child, 1, 5)], "prefill")
    sidecar.check_integrity()
    return outputs


def _life(
    device: str,
    backend: str,
    selection: SelectionConfig,
    layouts: tuple[str, str],
) -> list[LayerOutputs]:
    """Two prompts, decoded together; buffer and window overflow."""
    config = small_config(
        device=device,
        backend=backend,
        kv_layout=layouts[0],
        index_layout=layouts[1],
        selection=selection,
        hot_slots=48,
        window_blocks=2,
    )
    with Sidecar(config) as sidecar:
        one, other = sidecar.open(500, 2), sidecar.open(63, 2)
        outputs = prefill(sidecar, one, 500, 1) + prefill(sidecar, other, 63, 2)
        for seed in (3, 4):
            rows = [Rows(one, 1, seed), Rows(other, 1, seed + 10)]
            outputs += run_step(sidecar, rows, "decode")
        sidecar.check_integrity()
        return outputs


def _assert_all_near(found: list[LayerOutputs], wanted: list[LayerOutputs]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.topk_indices, other.topk_indices)
        assert_near(one.out, other.out, NEAR)
        assert_near(one.lse, other.lse, NEAR)
