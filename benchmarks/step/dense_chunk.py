"""Dense attention of a prefill chunk, as DSA models run it without selection: in full heads.

Keys of 192 and values of 128 for each head, which the latent rows were widened to before.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.ops.case import Contender, PeerAbsentError
from benchmarks.ops.compare import ATTENTION, check_near
from benchmarks.ops.inputs import sample_rows
from benchmarks.ops.timing import Timed

_KEY_DIM, _VALUE_DIM = 192, 128


@dataclass(frozen=True)
class _Kernel:
    """One of torch's, and how wide values must be for it; zeros fill them up beforehand."""

    backend: SDPBackend
    value_dim: int

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(self.backend):
            return scaled_dot_product_attention(query, key, value)

    def inputs(
        self, heads: int, rows: int, keys: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """bf16 [1, heads, rows, 192], [1, heads, keys, 192], [1, heads, keys, value_dim]."""

        def normal(count: int, dim: int) -> torch.Tensor:
            return torch.randn(1, heads, count, dim, device="cuda", dtype=torch.bfloat16)

        value = normal(keys, self.value_dim)
        value[..., _VALUE_DIM:] = 0
        return normal(rows, _KEY_DIM), normal(keys, _KEY_DIM), value

    def runs(self) -> bool:
        try:
            self.attend(*self.inputs(2, 128, 128))
        except RuntimeError:
            return False
        return True


_KERNELS = {
    "cuDNN": _Kernel(SDPBackend.CUDNN_ATTENTION, _VALUE_DIM),
    "FlashAttention": _Kernel(SDPBackend.FLASH_ATTENTION, _KEY_DIM),
}


class DenseChunk:
    """torch's attention of `rows` queries over `keys` keys.

    Attributes:
        name: says whose kernel it is: the first one that runs here.
    """

    def __init__(self, rows: int, keys: int, heads: int) -> None:
        self._sizes = heads, rows, keys
        found = [name for name, kernel in _KERNELS.items() if kernel.runs()]
        self.name = f"dense attention, torch's {found[0]}" if found else "dense attention"
        self._kernel = _KERNELS[found[0]] if found else None

    def contender(self) -> Contender:
        """Makes its tensors.

        Raises:
            PeerAbsentError: no kernel takes these heads here.
        """
        kernel = self._kernel
        if kernel is None:
            raise PeerAbsentError(f"none of {', '.join(_KERNELS)} takes heads of {_KEY_DIM}")
        query, key, value = kernel.inputs(*self._sizes)

        def check() -> None:
            some, heads = sample_rows(query.shape[2]), slice(0, 2)
            found = kernel.attend(query, key, value)[0, heads, some]
            scores = query[0, heads, some].float() @ key[0, heads].float().mT
            weights = (scores / math.sqrt(_KEY_DIM)).softmax(-1)
            check_near("out", found, weights @ value[0, heads].float(), ATTENTION)

        return Contender(check, Timed([lambda: kernel.attend(query, key, value)], long=True))
