"""A device that fails while a sequence is made ready: the host side is as it was before the call.

No CPU fails like that, so the one function that each call needs of the device is made to.
"""

from collections.abc import Iterator

import pytest

from hisparse_sidecar import LayerOutputs, Sidecar
from tests.pipeline.world import assert_same_bits, random_rows, small_config

PROMPT = list(range(300))


class DeviceFailedError(RuntimeError):
    """What torch raises where memory is short, say."""


def fail(*_: object) -> None:
    raise DeviceFailedError


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(small_config()) as sidecar:
        yield sidecar


def run_step(sidecar: Sidecar, sequence: int, rows: int, seed: int) -> list[LayerOutputs]:
    sidecar.begin_step([(sequence, rows)], "prefill")
    layers = range(sidecar.config.model.num_layers)
    found = [sidecar.run_layer(at, random_rows(sidecar.config, at, rows, seed)) for at in layers]
    sidecar.commit_step()
    return found


def open_sequences(sidecar: Sidecar) -> int:
    sidecar.check_integrity()
    return sidecar.stats().core.sequences


@pytest.mark.parametrize("knows_prompt", [False, True])
def test_a_sequence_that_is_not_made_ready_is_not_open(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch, knows_prompt: bool
) -> None:
    def open_one() -> None:
        if knows_prompt:
            sidecar.open_prompt(PROMPT, 0)
        else:
            sidecar.open(300, 0)

    with monkeypatch.context() as failing:
        failing.setattr("hisparse_sidecar.sidecar.opening_calls.restore_sequence", fail)
        for _ in range(3 * sidecar.config.max_sequences):
            with pytest.raises(DeviceFailedError):
                open_one()
        admitted = sidecar.admit(300, 0)
        with pytest.raises(DeviceFailedError):
            sidecar.adopt(admitted)
        sidecar.discard(admitted)
    assert open_sequences(sidecar) == 0
    assert sidecar.stats().core.host_pages_free == 64
    open_one()


def test_a_fork_that_is_not_made_ready_is_not_open(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sidecar.open(200, 8)
    run_step(sidecar, source, 150, 1)
    with monkeypatch.context() as failing:
        failing.setattr("hisparse_sidecar.sidecar.sequence_calls.resum_open_blocks", fail)
        for _ in range(3 * sidecar.config.max_sequences):
            with pytest.raises(DeviceFailedError):
                sidecar.fork(source, 130, 8)
    assert open_sequences(sidecar) == 1
    child = sidecar.fork(source, 150, 8)
    assert_same_bits(run_step(sidecar, child, 3, 2), run_step(sidecar, source, 3, 2))


def test_a_sequence_that_is_not_made_ready_again_rests_as_before(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = sidecar.open(200, 8)
    run_step(sidecar, sequence, 150, 1)
    twin = sidecar.fork(sequence, 150, 8)
    sidecar.preempt(sequence)
    with monkeypatch.context() as failing:
        failing.setattr("hisparse_sidecar.sidecar.sequence_calls.restore_sequence", fail)
        for _ in range(3 * sidecar.config.max_sequences):
            with pytest.raises(DeviceFailedError):
                sidecar.resume(sequence)
            returning = sidecar.bring_back(sequence, 1.0)
            with pytest.raises(DeviceFailedError):
                sidecar.finish_resume(returning)
            sidecar.let_go(returning)
    assert open_sequences(sidecar) == 2
    assert sidecar.resume(sequence) == 150
    assert_same_bits(run_step(sidecar, sequence, 3, 2), run_step(sidecar, twin, 3, 2))
