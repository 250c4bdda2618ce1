"""The device's state of a sequence whose tokens are in the host pool already."""

import torch

from hisparse_kernels.index_rows import place_index_rows
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.sidecar.rollback import resum_open_blocks
from hisparse_sidecar.tiers.tiers import Tiers
from hisparse_sidecar.uploads import upload


def restore_sequence(tiers: Tiers, sequence: int) -> None:
    """Makes the sequence's ranges cold, and its pooled keys and open sums those of its pages."""
    manager, config = tiers.manager, tiers.config
    ranges, length = manager.ranges(sequence), manager.length(sequence)
    tiers.device.reset(ranges)
    if length == 0:
        return
    pages = manager.host_pages(sequence)
    blocks = length // config.block_tokens
    per_block = config.block_tokens // PAGE_TOKENS
    tensors = {
        "rows": ranges.pooled_base + torch.arange(blocks),
        "pages": torch.tensor(pages[per_block - 1 :: per_block][:blocks], dtype=torch.int64),
    }
    found = upload(tensors, tiers.device.device)
    for pooled, stored in zip(tiers.device.pooled_pages, tiers.host.pooled_rows, strict=True):
        place_index_rows(pooled, found["rows"], stored[found["pages"]], config.index)
    resum_open_blocks(tiers, ranges, pages, length)
