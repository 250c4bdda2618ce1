"""FlashMLA's sparse and dense attention, from the wheel `sgl-flash-mla`: its kernels for sm_90."""

from collections.abc import Callable, Sequence

import torch

from hisparse_kernels.layouts import PAGE_TOKENS

_Attend = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_LATENT_DIM = 512


class FlashMla:
    """Takes 64 or 128 heads; topk a multiple of 64 or 128."""

    def __init__(self) -> None:
        import flash_mla

        if not flash_mla.has_legacy():
            raise ImportError("flash_mla was built without its kernels for sm_90")
        self._module = flash_mla

    def compile_jobs(self) -> Sequence[Callable[[], object]]:
        """None: it comes compiled."""
        return ()

    def prefill(self, values: torch.Tensor, scale: float) -> _Attend:
        """Attention over bf16 `values` [tokens, 576]: (query, row ids) -> (out, lse)."""
        rows = values[:, None]

        def attend(query: torch.Tensor, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out, _, lse = self._module.flash_mla_sparse_fwd(
                query, rows, row_ids[:, None], scale, use_legacy=True
            )
            return out, lse

        return attend

    def decode(self, kv_rows: torch.Tensor, scale: float) -> _Attend:
        """Attention over stored fp8_ds_mla rows; the schedule is made on the first call."""
        pages = kv_rows.view(-1, PAGE_TOKENS, 1, kv_rows.shape[1])
        schedule = self._module.get_mla_metadata()[0]

        def attend(query: torch.Tensor, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = self._module.flash_mla_with_kvcache(
                query[:, None],
                pages,
                None,
                None,
                _LATENT_DIM,
                schedule,
                softmax_scale=scale,
                is_fp8_kvcache=True,
                indices=row_ids[:, None],
                use_legacy=True,
            )
            return out[:, 0], lse[:, :, 0]

        return attend

    def dense(
        self, values: torch.Tensor, page_table: torch.Tensor, lengths: torch.Tensor, scale: float
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """Attention of a query over all bf16 `values` [pages * 64, 576] of its sequence's pages."""
        pages = values.view(-1, PAGE_TOKENS, 1, values.shape[1])
        schedule = self._module.get_mla_metadata()[0]

        def attend(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            out, lse = self._module.flash_mla_with_kvcache(
                query[:, None],
                pages,
                page_table,
                lengths,
                _LATENT_DIM,
                schedule,
                softmax_scale=scale,
                use_legacy=True,
            )
            return out[:, 0], lse[:, :, 0]

        return attend
