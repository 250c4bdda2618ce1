"""Attention of a run, once its lists are known: in which splits, and where their parts stay."""

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_kernels.sparse_mla import AttentionOptions
from hisparse_sidecar.attention.contract import PlanContract
from hisparse_sidecar.attention.inputs import PagedRows
from hisparse_sidecar.attention.lists import Lists
from hisparse_sidecar.requirements import require, require_legal

_ALIGN = 16

Results = tuple[torch.Tensor, torch.Tensor]


class ListAttention:
    """Attention of each row to its list of rows, with one workspace.

    FlashMLA has limits of its own, and splits as it does.
    """

    def __init__(
        self, ops: Ops, backend: str, workspace: torch.Tensor, split_keys: int | None
    ) -> None:
        """Takes a contiguous workspace of any dtype, and the splits of plans that name none.

        Raises:
            InvalidArgument: the workspace has gaps, or the backend does not split so.
        """
        self._ops, self._is_flash_mla = ops, backend == "flash_mla"
        if self._is_flash_mla:
            require_legal(check_flash_mla, split_keys=split_keys)
        self._workspace = _as_floats(workspace)

    def check(self, contract: PlanContract) -> None:
        """Raises InvalidArgument unless the backend can do what a plan says."""
        if self._is_flash_mla:
            require_legal(
                check_flash_mla,
                layout=contract.layout,
                num_heads=contract.num_heads,
                query_dtype=contract.q_data_type,
                topk=contract.topk if contract.selects else None,
                split_keys=contract.split_keys,
            )

    def attend(
        self,
        contract: PlanContract,
        query: torch.Tensor,
        cache: PagedRows,
        lists: Lists,
        sinks: torch.Tensor | None,
        places: Results | None,
    ) -> Results:
        """Output and natural lse, in `places` if there are any.

        Raises:
            InvalidArgument: the backend or the workspace is not for lists of this size.
        """
        row_ids, valid_counts = lists
        split_keys = self._split_for(contract, row_ids)
        options = AttentionOptions(
            sink=sinks,
            valid_counts=valid_counts,
            split_keys=split_keys,
            out=places,
            workspace=None if split_keys is None else self._workspace,
        )
        layout, scale = contract.layout, contract.sm_scale
        return self._ops.sparse_mla(query, cache.rows, row_ids, layout, scale, options)

    def _split_for(self, contract: PlanContract, row_ids: torch.Tensor) -> int | None:
        rows, topk = row_ids.shape
        if self._is_flash_mla:
            require_legal(check_flash_mla, layout=contract.layout, topk=topk)
            return None
        return contract.split_for(rows, topk, self._workspace.numel())


def _as_floats(workspace: torch.Tensor) -> torch.Tensor:
    """As much of a workspace as is aligned fp32."""
    require(workspace.is_contiguous(), "float_workspace_buffer needs to be contiguous")
    start = -workspace.data_ptr() % _ALIGN
    count = max(0, workspace.numel() * workspace.element_size() - start) // 4
    return workspace.view(-1).view(torch.uint8)[start : start + 4 * count].view(torch.float32)
