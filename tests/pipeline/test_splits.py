"""Splits of decode attention are a setting: a row's bits depend on it, and never on the batch."""

from dataclasses import fields
from functools import partial
from typing import Any

import pytest
import torch

from hisparse_kernels.backends import Ops
from hisparse_sidecar import LayerOutputs, ModelShape, Sidecar, SidecarConfig
from hisparse_sidecar.backends import choose_ops
from hisparse_sidecar.errors import InvalidArgument
from tests.pipeline.world import (
    HEADS,
    INDEX_HEADS,
    PlainDsa,
    Rows,
    assert_same_bits,
    prefill,
    run_step,
    small_config,
)

TOPK, LENGTHS = 200, (210, 230, 205)
SETTINGS = pytest.mark.parametrize("split_keys", [None, 0, 64, 128, 256])


def config_of(split_keys: int | None, **changes: object) -> SidecarConfig:
    model = ModelShape(3, (0, 0, 2), INDEX_HEADS, TOPK, 0.07)
    return small_config(
        model=model, hot_slots=TOPK, split_keys=split_keys, kv_layout="bf16", **changes
    )


def decoded(config: SidecarConfig, numbers: list[int]) -> list[LayerOutputs]:
    """Three steps in which each of the sequences decodes a row."""
    with Sidecar(config) as sidecar:
        sequences = [sidecar.open(LENGTHS[number], 4) for number in numbers]
        for sequence, number in zip(sequences, numbers, strict=True):
            prefill(sidecar, sequence, LENGTHS[number], number)
        found = []
        for step in (1, 2, 3):
            rows = [
                Rows(sequence, 1, number + 100 * step)
                for sequence, number in zip(sequences, numbers, strict=True)
            ]
            found += run_step(sidecar, rows, "decode")
        return found


def row_of(outputs: list[LayerOutputs], row: int) -> list[LayerOutputs]:
    return [
        LayerOutputs(**{name: tensor[row] for name, tensor in vars(one).items()}) for one in outputs
    ]


@SETTINGS
def test_a_row_has_the_bits_that_it_has_alone(split_keys: int | None) -> None:
    config = config_of(split_keys)
    together = decoded(config, [0, 1, 2])
    for number in (0, 2):
        assert_same_bits(row_of(decoded(config, [number]), 0), row_of(together, number))


@SETTINGS
def test_every_split_equals_the_plain_computation(split_keys: int | None) -> None:
    config = config_of(split_keys)
    plain = PlainDsa(config)
    plain.append(0, LENGTHS[1], 1)
    wanted = [one for step in (1, 2, 3) for one in plain.append(0, 1, 1 + 100 * step)]
    for one, other in zip(row_of(decoded(config, [1]), 0), row_of(wanted, 0), strict=True):
        assert torch.equal(one.topk_indices, other.topk_indices)
        torch.testing.assert_close(one.out, other.out, atol=2e-5, rtol=2e-5)
        torch.testing.assert_close(one.lse, other.lse, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("setting", "heads", "split_keys"),
    [
        (None, 32, 128),
        (None, 33, 256),
        (0, 3, 256),
        (0, 64, 256),
        (64, 3, 64),
        (512, 128, 512),
    ],
)
def test_the_setting_is_the_split_whatever_the_rows(
    setting: int | None, heads: int, split_keys: int
) -> None:
    # topk 200 in whole tiles of 64 keys: 256
    assert config_of(setting).decode_split(heads) == split_keys


@pytest.mark.parametrize(("setting", "split_keys"), [(None, 128), (0, 256), (64, 64)])
def test_decode_attends_in_splits_and_prefill_in_one_go(
    setting: int | None, split_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int | None]] = []

    def note(attend: Any, query: torch.Tensor, *args: Any) -> object:
        asked.append((len(query), args[-1].split_keys))
        return attend(query, *args)

    def noting(*args: Any) -> Ops:
        ops = choose_ops(*args)
        found = {one.name: getattr(ops, one.name) for one in fields(Ops)}
        return Ops(**found | {"sparse_mla": partial(note, ops.sparse_mla)})

    monkeypatch.setattr("hisparse_sidecar.tiers.tiers.choose_ops", noting)
    decoded(config_of(setting), [0, 1])

    assert HEADS <= 32
    assert {split for rows, split in asked if rows == 2} == {split_keys}
    assert {split for rows, split in asked if rows in LENGTHS} == {None}


@pytest.mark.parametrize("found", [96, -64, 1])
def test_a_split_of_broken_tiles_is_refused(found: int) -> None:
    message = f"split_keys is {found}, needs 0 or a multiple of 64"
    with pytest.raises(InvalidArgument, match=message):
        config_of(found)
