"""The tensors of a step, made on the host and uploaded together."""

from collections.abc import Sequence

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.resolve import SlotRanges
from hisparse_sidecar._core import SequenceRanges
from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.ranks import StepRanks
from hisparse_sidecar.step import (
    GroupStep,
    Step,
    StepKind,
    StepSequence,
    claim_stamp,
    stream_stamp,
)
from hisparse_sidecar.uploads import upload


def build_step(
    config: SidecarConfig,
    kind: StepKind,
    number: int,
    sequences: Sequence[StepSequence],
    padded_rows: int,
    ranks: StepRanks,
    device: torch.device,
) -> Step:
    """The tensors of a step with `padded_rows` rows, of which the last ones are padding.

    A decode step spills what is this rank's to write. A prefill chunk reads its own rows from the
    host, so every rank writes all of them: the same bytes.
    """
    selections = dict.fromkeys(sequence.selection for sequence in sequences)
    select_by = [list(selections).index(sequence.selection) for sequence in sequences]
    tensors = {
        **_row_tensors(sequences, padded_rows),
        **_tables(sequences, config.block_tokens),
        **_stamps(number),
        **_closed_blocks(sequences, config.block_tokens),
        **range_columns([sequence.ranges for sequence in sequences]),
        "lengths": _int32([sequence.length for sequence in sequences]),
        "select_by": _int32([*select_by, -1]),  # of row_seq -1: no selection
    }
    tensors["spill_row_ids"] = tensors["host_row_ids"]
    if kind == "decode":
        tensors["spill_row_ids"] = ranks.own_rows(tensors["host_row_ids"], PAGE_TOKENS)
        tensors["closed_pages"] = ranks.own_rows(tensors["closed_pages"], 1)
    spilled = [int((tensors[name] >= 0).sum()) for name in ("spill_row_ids", "closed_pages")]
    found = upload(tensors, device)
    hot_ranges, window_ranges = slot_ranges(found)
    selection_of_row = found["select_by"][found["row_seq"].long()]
    return Step(
        kind=kind,
        number=number,
        sequences=tuple(sequences),
        row_seq=found["row_seq"],
        row_pos=found["row_pos"],
        page_table=found["page_table"],
        host_row_ids=found["host_row_ids"],
        spill_row_ids=found["spill_row_ids"],
        num_spilled_rows=spilled[0],
        num_spilled_blocks=spilled[1],
        pooled_table=found["pooled_table"],
        hot_ranges=hot_ranges,
        window_ranges=window_ranges,
        pooled_base=found["pooled_base"],
        state_rows=found["state_row"],
        select_stamps=found["select_stamps"],
        stream_stamps=found["stream_stamps"],
        lengths=found["lengths"],
        closed_rows=found["closed_rows"],
        closed_pages=found["closed_pages"],
        selections=tuple((one, selection_of_row == i) for i, one in enumerate(selections)),
        groups=[GroupStep() for _ in config.model.anchors],
    )


_RANGE_COLUMNS = (
    "slot_base",
    "slot_count",
    "token_table_base",
    "window_base",
    "window_count",
    "block_table_base",
    "pooled_base",
    "state_row",
)


def range_columns(ranges: Sequence[SequenceRanges]) -> dict[str, torch.Tensor]:
    """The bases and counts of some sequences, [sequences] int64 each, on the CPU."""
    return {name: _int64([getattr(one, name) for one in ranges]) for name in _RANGE_COLUMNS}


def slot_ranges(columns: dict[str, torch.Tensor]) -> tuple[SlotRanges, SlotRanges]:
    """Hot-buffer and window ranges as the ops take them, from (uploaded) `range_columns`."""
    hot = SlotRanges(columns["slot_base"], columns["slot_count"], columns["token_table_base"])
    window = SlotRanges(
        columns["window_base"], columns["window_count"], columns["block_table_base"]
    )
    return hot, window


def stack_pages(lists: Sequence[Sequence[int]]) -> torch.Tensor:
    """[lists, longest] int32 on the CPU; -1 beyond the end of each."""
    width = max((len(values) for values in lists), default=0)
    padded = [[*values, *[-1] * (width - len(values))] for values in lists]
    return _int32(padded).view(len(lists), width)


def _row_tensors(sequences: Sequence[StepSequence], padded_rows: int) -> dict[str, torch.Tensor]:
    row_seq, row_pos, host_row_ids = [], [], []
    for number, sequence in enumerate(sequences):
        for position in range(sequence.start, sequence.length):
            page = sequence.host_pages[position // PAGE_TOKENS]
            row_seq.append(number)
            row_pos.append(position)
            host_row_ids.append(page * PAGE_TOKENS + position % PAGE_TOKENS)
    padding = [-1] * (padded_rows - len(row_seq))
    return {
        "row_seq": _int32(row_seq + padding),
        "row_pos": _int32(row_pos + padding),
        "host_row_ids": _int64(host_row_ids + padding),
    }


def _tables(sequences: Sequence[StepSequence], block_tokens: int) -> dict[str, torch.Tensor]:
    return {
        "page_table": stack_pages([sequence.host_pages for sequence in sequences]),
        "pooled_table": stack_pages([_pooled_pages(each, block_tokens) for each in sequences]),
    }


def _stamps(number: int) -> dict[str, torch.Tensor]:
    claim = claim_stamp(number)
    return {
        "select_stamps": _int32([claim, claim]),
        "stream_stamps": _int32([stream_stamp(number), claim]),
    }


def _closed_blocks(sequences: Sequence[StepSequence], block_tokens: int) -> dict[str, torch.Tensor]:
    """Pooled rows of the blocks that the step fills, and the host page that keeps each."""
    rows, pages, per_block = [], [], block_tokens // PAGE_TOKENS
    for sequence in sequences:
        for block in range(sequence.start // block_tokens, sequence.length // block_tokens):
            rows.append(sequence.ranges.pooled_base + block)
            pages.append(sequence.host_pages[(block + 1) * per_block - 1])
    return {"closed_rows": _int64(rows), "closed_pages": _int64(pages)}


def _pooled_pages(sequence: StepSequence, block_tokens: int) -> range:
    """Those of the blocks that the sequence has, of those that it was admitted for."""
    first = sequence.ranges.pooled_base // PAGE_TOKENS
    return range(first, first - (-sequence.length // (block_tokens * PAGE_TOKENS)))


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _int64(values: Sequence[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)
