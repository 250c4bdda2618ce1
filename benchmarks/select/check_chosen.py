"""Did a selection choose the best by the fp32 reference? Near-ties may fall either way."""

import torch

from benchmarks.ops.compare import WrongResultError

# of the row's largest logit: what e4m3 products in another order of sums may move one by
_BAND = 1e-3


def check_chosen(name: str, logits: torch.Tensor, found: torch.Tensor, k: int) -> None:
    """The k best of each row, or all where fewer are visible; in any order, none twice.

    Args:
        name: of what is checked.
        logits: [rows, n] fp32 of the reference; -inf = not visible, inf = must be chosen.
        found: [rows, k] integer columns; -1 = none.
        k: how many a row may choose.
    """
    rows, columns = logits.shape
    if found.shape != (rows, k):
        raise WrongResultError(f"{name}: {list(found.shape)}, needs {[rows, k]}")
    if int(found.min()) < -1 or int(found.max()) >= columns:
        raise WrongResultError(f"{name}: columns {int(found.min())}..{int(found.max())}")
    times = torch.zeros(rows, columns + 1, dtype=torch.int32, device=logits.device)
    ones = torch.ones_like(found, dtype=torch.int32)
    times.scatter_add_(1, torch.where(found >= 0, found, columns).long(), ones)
    times = times[:, :columns]
    if int(times.max()) > 1:
        raise WrongResultError(f"{name}: a column was taken {int(times.max())} times")
    _check_best(name, logits, times == 1, k)


def check_ascending(name: str, found: torch.Tensor) -> None:
    """Ascending columns, -1 behind them."""
    last = torch.iinfo(found.dtype).max
    ordered = torch.where(found >= 0, found, last)
    if bool((ordered[:, 1:] < ordered[:, :-1]).any()):
        raise WrongResultError(f"{name}: not in ascending order")


def _check_best(name: str, logits: torch.Tensor, chosen: torch.Tensor, k: int) -> None:
    visible = logits > -torch.inf
    wanted = visible.sum(1).clamp(max=k)
    counts = chosen.sum(1)
    if bool((counts != wanted).any()) or bool((chosen & ~visible).any()):
        raise WrongResultError(
            f"{name}: {int(counts.min())} to {int(counts.max())} chosen of {int(wanted.min())} "
            f"to {int(wanted.max())}, {int((chosen & ~visible).sum())} of them not visible"
        )
    best = logits.topk(min(k, logits.shape[1]), dim=1).values
    last = best.gather(1, (wanted - 1).clamp(min=0)[:, None])
    band = _BAND * logits.masked_fill(logits.isinf(), 0.0).abs().amax(1, keepdim=True)
    missed = (logits > last + band) & ~chosen
    worse = (logits < last - band) & chosen
    if bool(missed.any() | worse.any()):
        raise WrongResultError(
            f"{name}: {int(missed.sum())} better ones left out, {int(worse.sum())} worse ones taken"
        )
