"""What a hierarchical selection finds of what scoring every token would choose."""

from collections.abc import Mapping, Sequence

import torch

from benchmarks.select.rows import Rows
from hisparse_kernels.topk import topk_ref

_CHUNK_ROWS = 64


def recall_of_flat(rows: Rows, positions: torch.Tensor) -> torch.Tensor:
    """[rows] fp32 on the CPU, the share of flat's choice, by the reference, that `positions` hold.

    Args:
        rows: what was selected from.
        positions: [rows, topk] int32; -1 = none.
    """
    found = []
    for some in torch.arange(rows.num_rows, device=positions.device).split(_CHUNK_ROWS):
        flat, mine = _flat_choice(rows, some, positions), _as_mask(rows, positions[some])
        found.append((flat & mine).sum(1) / flat.sum(1))
    return torch.cat(found).cpu()


def recall_by_layer(
    rows: Rows, positions: torch.Tensor, layers: Sequence[int]
) -> Mapping[str, float]:
    """Mean recall of all rows, and of the rows of each layer, by metric."""
    recall, layer_of = recall_of_flat(rows, positions), torch.tensor(layers)
    means = {"recall of flat": float(recall.mean())}
    for layer in sorted(set(layers)):
        means[f"recall of flat, layer {layer}"] = float(recall[layer_of == layer].mean())
    return means


def needle_recall(
    rows: Rows, positions: torch.Tensor, needles: Sequence[torch.Tensor]
) -> Mapping[str, float]:
    """Share of each row's needle that is found, of what flat finds of it; none if flat does not."""
    some = torch.arange(rows.num_rows, device=positions.device)
    flat, mine = _flat_choice(rows, some, positions), _as_mask(rows, positions)
    wanted = torch.zeros_like(flat)
    for row, needle in enumerate(needles):
        wanted[row, needle.to(wanted.device)] = True
    by_flat = int((wanted & flat).sum())
    if not by_flat:
        return {}
    return {"recall of flat, the needle's digits": int((wanted & flat & mine).sum()) / by_flat}


def _flat_choice(rows: Rows, some: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return _as_mask(rows, topk_ref(rows.token_logits_ref(some), positions.shape[1]))


def _as_mask(rows: Rows, positions: torch.Tensor) -> torch.Tensor:
    """[rows, keys] bool of positions [rows, k]."""
    mask = torch.zeros(len(positions), rows.keys + 1, dtype=torch.bool, device=positions.device)
    mask.scatter_(1, torch.where(positions >= 0, positions, rows.keys).long(), True)
    return mask[:, :-1]
