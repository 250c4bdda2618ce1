"""Checks at the door of a step and of its layers, before anything changes."""

from collections.abc import Sequence
from typing import get_args

import torch

from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.requirements import require, require_legal, require_one_of
from hisparse_sidecar.step.step import Step, StepKind
from hisparse_sidecar.tensor_checks import check_tensor

MAX_PADDING = 65536  # padding rows of one step
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_QUERIES = (*_FLOATS, torch.float8_e4m3fn)


def check_step_rows(
    config: SidecarConfig,
    rows: Sequence[tuple[int, int]],
    kind: StepKind,
    padded_rows: int | None,
) -> None:
    """Raises InvalidArgument unless `rows`, (sequence, new rows) each, can make a step."""
    require_one_of("kind", kind, get_args(StepKind))
    for number in (*(number for row in rows for number in row), padded_rows or 0):
        if not isinstance(number, int):
            raise InvalidArgument(f"sequences and row counts are integers, found {number!r}")
    named = len({sequence for sequence, _ in rows})
    require(named == len(rows), f"a step names each sequence once, found {named} in {len(rows)}")
    require(bool(rows), "a step has 0 sequences, needs >= 1")
    most = config.max_step_rows
    for sequence, count in rows:
        if count < 1:
            raise InvalidArgument(f"sequence {sequence} has {count} new rows, needs >= 1")
        if kind == "decode" and count > most:
            what = f"sequence {sequence} has {count} rows in a decode step"
            raise InvalidArgument(f"{what}, at most {most}")
    total = sum(count for _, count in rows)
    if padded_rows is not None:
        message = f"padded_rows is {padded_rows}, the step has {total} rows"
        require(padded_rows >= total, message)
        padding = padded_rows - total
        require(padding <= MAX_PADDING, f"{padding} padding rows, at most {MAX_PADDING} are legal")


def check_token_ids(rows: Sequence[tuple[int, int]], token_ids: Sequence[int] | None) -> None:
    """Raises InvalidArgument unless there is one token id for each row, or none at all."""
    if token_ids is None:
        return
    found, needed = len(token_ids), sum(count for _, count in rows)
    require(found == needed, f"token_ids has {found} ids, the step has {needed} rows")


def check_inputs(config: SidecarConfig, step: Step, layer: int, inputs: LayerInputs) -> None:
    """Raises InvalidArgument unless `inputs` fit the step, the layer and the layouts."""
    rows, query_dim = step.num_rows, config.kv.query_dim
    heads = inputs.query.shape[1] if inputs.query.dim() == 3 else -1
    check_tensor("query", inputs.query, (rows, heads, query_dim), *_FLOATS)
    require(1 <= heads <= 128, f"query has {heads} heads, needs 1 to 128")
    if config.backend == "flash_mla":
        require_legal(check_flash_mla, num_heads=heads, query_dtype=inputs.query.dtype)
    check_tensor("kv", inputs.kv, (rows, query_dim), *_FLOATS)
    if inputs.sink is not None:
        check_tensor("sink", inputs.sink, (heads,), torch.float32)
    if config.model.is_anchor(layer):
        _check_selection(config, step, layer, inputs)
    else:
        _check_shared(layer, inputs)


def _check_selection(config: SidecarConfig, step: Step, layer: int, inputs: LayerInputs) -> None:
    given = {sequence.selection.index_source == "given" for sequence in step.sequences}
    rows, model = step.num_rows, config.model
    if False in given or inputs.index_k is not None:
        index_k = _present(layer, "index_k", inputs.index_k)
        check_tensor("index_k", index_k, (rows, config.index.head_dim), *_FLOATS)
        _check_finite("index_k", index_k, step)
    if False in given:
        index_q = _present(layer, "index_q", inputs.index_q)
        weights = _present(layer, "index_weights", inputs.index_weights)
        check_tensor(
            "index_q", index_q, (rows, model.index_heads, config.index.head_dim), *_QUERIES
        )
        check_tensor("index_weights", weights, (rows, model.index_heads), torch.float32)
        _check_finite("index_q", index_q, step)
        _check_finite("index_weights", weights, step)
    if True in given:
        positions = _present(layer, "topk_indices", inputs.topk_indices)
        check_tensor("topk_indices", positions, (rows, model.topk), torch.int32)
        _check_positions(step, positions)
    else:
        message = f"layer {layer} has 0 sequences with given positions, topk_indices must be None"
        require(inputs.topk_indices is None, message)


def _check_positions(step: Step, positions: torch.Tensor) -> None:
    """Given positions: ascending, -1 only at the tail, none after the row's own."""
    over = ((positions > step.row_pos[:, None]) | (positions < -1)).nonzero()
    if over.numel():
        row, column = over[0].tolist()
        found, most = int(positions[row, column]), int(step.row_pos[row])
        require(False, f"topk_indices[{row}, {column}] is {found}, row {row} may see 0..{most}")
    before, after = positions[:, :-1], positions[:, 1:]
    ascending = torch.where(after >= 0, (before < after) & (before >= 0), after == -1)
    ascending &= before >= -1
    bad = (~ascending).nonzero()
    if bad.numel():
        row, column = bad[0].tolist()
        pair = positions[row, column : column + 2].tolist()
        message = f"topk_indices[{row}, {column}:{column + 2}] is {pair}, needs ascending then -1"
        require(False, message)


def _check_finite(name: str, tensor: torch.Tensor, step: Step) -> None:
    """A NaN or infinite score has no rank; padding rows may hold anything.

    On CUDA `StepWatch` finds it when the step ends: looking here would wait for the device.
    """
    if tensor.is_cuda:
        return
    wrong = ~tensor.float().isfinite().flatten(1).all(1) & (step.row_seq >= 0)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        require(False, f"row {row} of {name} is not finite, {int(wrong.sum())} of its rows are not")


def _check_shared(layer: int, inputs: LayerInputs) -> None:
    for name in ("index_q", "index_weights", "index_k", "topk_indices"):
        message = f"layer {layer} shares its anchor's selection, {name} must be None"
        require(getattr(inputs, name) is None, message)


def _present(layer: int, name: str, tensor: torch.Tensor | None) -> torch.Tensor:
    require(tensor is not None, f"layer {layer} selects, {name} must not be None")
    assert tensor is not None
    return tensor
