"""One call of sparse attention, as each of its kernels is launched with it."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from hisparse_kernels.layouts import KvLayout

_LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of `sparse_mla`, contiguous where its kernels need that, and where results go.

    Attributes:
        query, kv_rows, row_ids, valid_counts, sink, layout, softmax_scale: as in `sparse_mla`.
        split_keys: keys of a split, at most all of a row's.
        out: outputs and lse, written by a kernel of one split.
        workspace: fp32, where the parts of more than one split stay for `merge_splits_kernel`; None
            with one.
        places: of the parts' maxima and of their sums of weights in the workspace.
    """

    query: torch.Tensor
    kv_rows: torch.Tensor
    row_ids: torch.Tensor
    valid_counts: torch.Tensor | None
    sink: torch.Tensor | None
    layout: KvLayout
    softmax_scale: float
    split_keys: int
    out: tuple[torch.Tensor, torch.Tensor]
    workspace: torch.Tensor | None
    places: tuple[int, int]

    def launch(self, kernel: Any, num_programs: int, **options: object) -> None:  # noqa: ANN401
        """Launches a kernel with so many programs for each row and split.

        Args:
            kernel: whose parameters are those of `sparse_mla._attend_kernel`.
            num_programs: for one row and split.
            options: its constants, and how it is compiled.
        """
        (rows, heads, _), topk = self.query.shape, self.row_ids.shape[1]
        kernel[(rows * num_programs, triton.cdiv(topk, self.split_keys))](
            self.query,
            self.kv_rows,
            self.row_ids,
            self.valid_counts,
            self.sink,
            self.workspace,
            *self.places,
            *self.out,
            heads,
            topk,
            self.split_keys,
            *self.query.stride(),
            self.kv_rows.stride(0),
            self.softmax_scale * _LOG2_E,
            **options,
        )


def warm_up(
    kernel: Any,  # noqa: ANN401
    heads: int,
    layout: KvLayout,
    split_keys: int,
    **options: object,
) -> None:
    """Compiles a kernel that `AttentionCall.launch` launches; raises whatever the compiler raises.

    Args:
        kernel: the kernel.
        heads: of the bf16 queries.
        layout: how a KV row is stored.
        split_keys: keys of a split, of 2048.
        options: as those of the launch.
    """
    bf16, fp32, int32 = torch.bfloat16, torch.float32, torch.int32
    tensors = bf16, torch.uint8, int32, int32, fp32, fp32, 1 << 33, 1 << 33, bf16, fp32
    strides = heads * layout.query_dim, layout.query_dim, 1, layout.row_bytes
    kernel.warmup(*tensors, heads, 2048, split_keys, *strides, 1.0, grid=(1,), **options)
