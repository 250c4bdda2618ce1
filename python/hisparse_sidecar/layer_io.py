"""What one layer hands to the sidecar in a step, and what it gets back."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class LayerInputs:
    """Tensors of one layer, one row for each row of the step, on any device.

    What the indexer gives is finite; padding rows may hold anything.

    Attributes:
        query: [rows, heads, query_dim] float, absorbed queries (latent part | RoPE part).
        kv: [rows, query_dim] float, the new rows, not packed (latent | RoPE part).
        index_q: [rows, index_heads, 128] fp32, bf16 or e4m3; None on a shared layer.
        index_weights: [rows, index_heads] fp32, every scale of the query folded in.
        index_k: [rows, 128] float, the new index keys; None on a shared layer.
        topk_indices: [rows, topk] int32, token positions, -1 = none; only for index_source="given".
        sink: [heads] fp32, an extra logit in the softmax's denominator.
    """

    query: torch.Tensor
    kv: torch.Tensor
    index_q: torch.Tensor | None = None
    index_weights: torch.Tensor | None = None
    index_k: torch.Tensor | None = None
    topk_indices: torch.Tensor | None = None
    sink: torch.Tensor | None = None

    def to(self, device: torch.device) -> "LayerInputs":
        """The same inputs on `device`; itself where all are there."""
        given = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        if all(tensor.device == device for tensor in given.values()):
            return self
        return replace(self, **{name: tensor.to(device) for name, tensor in given.items()})


@dataclass(frozen=True)
class LayerOutputs:
    """Results of one layer, on the sidecar's device.

    Attributes:
        out: [rows, heads, 512] dtype of the query, attention over the latent parts.
        lse: [rows, heads] fp32, natural log; -inf where a row has no key.
        topk_indices: [rows, topk] int32, selected token positions, ascending, -1 pads the tail.
    """

    out: torch.Tensor
    lse: torch.Tensor
    topk_indices: torch.Tensor
