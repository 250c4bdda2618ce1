"""Muon: momentum, then orthogonalisation by Newton-Schulz, for matrices."""

import collections
from collections.abc import Iterable

import torch
from torch import Tensor, nn

_MOMENTUM, _FRESH = 0.95, 0.05
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Matrices of one shape are stacked and updated together; an update has RMS 0.2 * lr."""

    def __init__(self, matrices: Iterable[nn.Parameter], weight_decay: float = 0.05) -> None:
        by_shape: dict[tuple[int, ...], list[nn.Parameter]] = collections.defaultdict(list)
        for matrix in matrices:
            by_shape[tuple(matrix.shape)].append(matrix)
        groups = [{"params": same_shape} for same_shape in by_shape.values()]
        super().__init__(groups, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            matrices = group["params"]
            gradient = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            momentum = state.setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, _FRESH)
            update = _orthogonalise(gradient.lerp(momentum, _MOMENTUM).to(torch.bfloat16))
            update = update.float() * (0.2 * max(gradient.shape[1:]) ** 0.5)
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(update.unbind(0)), alpha=-group["lr"])


def _orthogonalise(x: Tensor) -> Tensor:
    """[n, rows, cols] -> the nearest semi-orthogonal matrices, roughly."""
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NUM_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if is_tall else x
