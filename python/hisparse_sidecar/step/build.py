"""The tensors of a step, made on the host and uploaded together."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.ranks import StepRanks
from hisparse_sidecar.step.frame import StepFrame
from hisparse_sidecar.step.step import (
    GroupStep,
    Step,
    StepKind,
    StepSequence,
    claim_stamp,
    stream_stamp,
)
from hisparse_sidecar.uploads import upload

if TYPE_CHECKING:
    from hisparse_sidecar._core import StepTables

Table = tuple[str, int, int, int, int | None]  # see `StepTables`
_DTYPES = {4: torch.int32, 8: torch.int64}  # by their bytes


def build_step(
    config: SidecarConfig,
    kind: StepKind,
    number: int,
    sequences: Sequence[StepSequence],
    plan: "StepTables",
    ranks: StepRanks,
    device: torch.device,
    frame: StepFrame | None = None,
) -> Step:
    """The tensors of a step of these sequences, which `plan` has the tables of.

    In a frame they lie in its places; what of them only a prefill chunk has is left out.

    A decode step spills what is this rank's to write. A prefill chunk reads its own rows from the
    host, so every rank writes all of them: the same bytes.
    """
    content, tables = torch.frombuffer(plan[0], dtype=torch.uint8), plan[1]
    planned = table_views(content, tables)
    spill_row_ids, closed_pages = planned["host_row_ids"], planned["closed_pages"]
    if kind == "decode":
        spill_row_ids = ranks.own_rows(spill_row_ids, PAGE_TOKENS)
        closed_pages = ranks.own_rows(closed_pages, 1)
    tensors = {
        "content": content,
        "spill_row_ids": spill_row_ids,
        "closed_pages": closed_pages,
        **_stamps(number),
        **_first_rows(sequences),
        **_of_positions(planned["row_pos"], config.block_tokens),
        "row_selection": _row_selection(sequences, planned["row_seq"]),
    }
    if frame is None:
        uploaded = upload(tensors, device)
        found = {**table_views(uploaded["content"], tables), **uploaded}
    else:
        nothing = {"closed_rows": torch.empty(0), "closed_pages": torch.empty(0)}
        found = frame.put(planned | tensors) | nothing
    hot_ranges, window_ranges = slot_ranges(found)
    return Step(
        kind=kind,
        number=number,
        sequences=tuple(sequences),
        row_seq=found["row_seq"],
        row_pos=found["row_pos"],
        row_block=found["row_block"],
        row_end=found["row_end"],
        page_table=found["page_table"],
        host_row_ids=found["host_row_ids"],
        spill_row_ids=found["spill_row_ids"],
        begins_blocks=frame is not None or _begin_blocks(sequences, config.block_tokens),
        num_spilled_rows=int((spill_row_ids >= 0).sum()),
        num_spilled_blocks=int((closed_pages >= 0).sum()),
        pooled_table=found["pooled_table"],
        hot_ranges=hot_ranges,
        window_ranges=window_ranges,
        pooled_base=found["pooled_base"],
        state_rows=found["state_row"],
        select_stamps=found["select_stamps"],
        stream_stamps=found["stream_stamps"],
        lengths=found["lengths"],
        first_pos=found["first_pos"],
        first_row=found["first_row"],
        closed_rows=found["closed_rows"],
        closed_pages=found["closed_pages"],
        selections=tuple(zip(_selections(sequences), found["row_selection"], strict=True)),
        groups=[GroupStep() for _ in config.model.anchors],
        frame=frame,
    )


def slot_ranges(columns: dict[str, torch.Tensor]) -> tuple[SlotRanges, SlotRanges]:
    """Hot-buffer and window ranges as the ops take them, from (uploaded) columns by their names."""
    hot = SlotRanges(columns["slot_base"], columns["slot_count"], columns["token_table_base"])
    window = SlotRanges(
        columns["window_base"], columns["window_count"], columns["block_table_base"]
    )
    return hot, window


def table_views(content: torch.Tensor, tables: Sequence[Table]) -> dict[str, torch.Tensor]:
    """Each table by its name, in the bytes of all."""
    found = {}
    for name, start, width, rows, columns in tables:
        shape = (rows,) if columns is None else (rows, columns)
        num_bytes = width * math.prod(shape)
        found[name] = content[start : start + num_bytes].view(_DTYPES[width]).view(shape)
    return found


def _stamps(number: int) -> dict[str, torch.Tensor]:
    claim = claim_stamp(number)
    return {
        "select_stamps": _int32([claim, claim]),
        "stream_stamps": _int32([stream_stamp(number), claim]),
    }


def _first_rows(sequences: Sequence[StepSequence]) -> dict[str, torch.Tensor]:
    ends = accumulate(sequence.num_rows for sequence in sequences)
    return {
        "first_pos": _int32([sequence.start for sequence in sequences]),
        "first_row": _int32([0, *ends][:-1]),
    }


def _of_positions(row_pos: torch.Tensor, block_tokens: int) -> dict[str, torch.Tensor]:
    row_block = torch.div(row_pos, block_tokens, rounding_mode="floor")
    return {"row_block": row_block, "row_end": row_pos + 1}


def _begin_blocks(sequences: Sequence[StepSequence], block_tokens: int) -> bool:
    return any(-(-one.start // block_tokens) * block_tokens < one.length for one in sequences)


def _selections(sequences: Sequence[StepSequence]) -> list[SelectionConfig]:
    """How the sequences select, each way once."""
    return list(dict.fromkeys(sequence.selection for sequence in sequences))


def _row_selection(sequences: Sequence[StepSequence], row_seq: torch.Tensor) -> torch.Tensor:
    """[selections, rows] bool, which rows select in each way; padding rows in none."""
    ways = _selections(sequences)
    way_of = [ways.index(sequence.selection) for sequence in sequences]
    way_of_row = torch.tensor([*way_of, -1])[row_seq.long()]  # the last one is of row_seq -1
    return way_of_row == torch.arange(len(ways))[:, None]


def _int32(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
