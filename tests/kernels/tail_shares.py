"""Rows of kept blocks and chosen positions, for tests of `tail_share`."""

import torch

from hisparse_kernels.block_topm import block_topm_ref

TOKENS = 64
_BLOCKS, _TOPK = 90, 150


def kept_rows(
    kind: str, kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Block scores, newest blocks, kept blocks, and positions in these, of rows of many lengths."""
    torch.manual_seed(0)
    newest = torch.tensor([-1, 0, 1, 2, 3, 15, 16, 17, 40, 63, 88, 89, 89], dtype=torch.int32)
    noise = torch.randn(len(newest), _BLOCKS)
    scores = {
        "random": noise,
        "ties": torch.randint(-1, 2, noise.shape).float(),
        "constant": torch.full(noise.shape, -3.0),
        "not_finite": noise.masked_fill(noise > 1, torch.inf).masked_fill(noise < -1, torch.nan),
    }[kind]
    ids = block_topm_ref(scores, newest, kept)
    return scores, newest, ids, _positions(ids)


def _positions(ids: torch.Tensor) -> torch.Tensor:
    """Ascending positions in a row's kept blocks, some of them -1 at the tail."""
    rows = torch.full((len(ids), _TOPK), -1, dtype=torch.int32)
    for row, blocks in enumerate(ids):
        own = blocks[blocks >= 0]
        if not own.numel():
            continue
        tokens = (own[:, None] * TOKENS + torch.arange(TOKENS)).flatten()
        # rows differ in how deep they reach into what was kept
        many = tokens[torch.rand(len(tokens)) < 0.1 + 0.8 * row / len(ids)]
        chosen = many[torch.randperm(len(many))[: _TOPK - row]].sort().values
        rows[row, : len(chosen)] = chosen.int()
    return rows
