"""A dense MLA wrapper with FlashInfer's calls and meanings, in plain loops and fp64."""

import math
from typing import Any

import torch

from hisparse_kernels.kv_rows import unpack_kv_rows_ref
from hisparse_kernels.layouts import kv_layout


class DenseMLAWrapper:
    """`plan` and `run` of FlashInfer's BatchMLAPagedAttentionWrapper; lse to base 2, or e."""

    def __init__(self, float_workspace_buffer: torch.Tensor) -> None:
        self.workspace = float_workspace_buffer

    def plan(self, **plan: Any) -> None:
        self.planned = plan

    def run(
        self,
        *,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        return_lse: bool = False,
        return_lse_base_on_e: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor] | torch.Tensor:
        metadata, page_size = self.planned["metadata"], self.planned["page_size"]
        rows, heads, _ = query.shape
        out = torch.zeros(rows, heads, 512, dtype=torch.float64)
        lse = torch.full((rows, heads), -torch.inf, dtype=torch.float64)
        for seq, tokens in enumerate(metadata.kv_len_arr.tolist()):
            first, end = metadata.qo_indptr[seq : seq + 2].tolist()
            pages = metadata.kv_indices[slice(*metadata.kv_indptr[seq : seq + 2].tolist())]
            values = _values(kv_cache[pages.long()].flatten(0, 1)[:tokens])
            for row in range(first, end):
                seen = tokens - (end - 1 - row) if self.planned["causal"] else tokens
                if seen > 0:
                    keys = values[:seen]
                    logits = query[row].cpu().double() @ keys.T * self.planned["sm_scale"]
                    lse[row] = logits.logsumexp(-1)
                    out[row] = logits.softmax(-1) @ keys[:, :512]
        lse = lse if return_lse_base_on_e else lse / math.log(2)
        out, lse = out.float(), lse.float()
        assert page_size == kv_cache.shape[1]
        return (out, lse) if return_lse else out


def _values(stored: torch.Tensor) -> torch.Tensor:
    """[tokens, 576] fp64 of rows of any layout."""
    stored = stored.cpu().contiguous()
    if stored.dtype != torch.uint8:
        return stored.double()
    name = {656: "fp8_ds_mla", 528: "fp8"}[stored.shape[-1]]
    return unpack_kv_rows_ref(stored, kv_layout(name)).double()
