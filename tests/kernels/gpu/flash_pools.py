"""Pools in which no row is listed often: FlashMLA's kernel for decode reads them."""

from dataclasses import replace

import torch

from cases import NAN_BYTE
from hisparse_kernels.gpu.listed_often import is_listed_often
from tests.kernels.gpu.attention import Attention


def in_pool(case: Attention, multiple: int = 64) -> Attention:
    """The same rows before others, of NaN; a count of all that is a multiple of so many.

    Of an odd multiple the count is odd, too.
    """
    count = (len(case.pool) + case.row_ids.numel()) // multiple + 1
    count += multiple % 2 and 1 - count % 2
    others = torch.full((count * multiple - len(case.pool), case.layout.row_bytes), NAN_BYTE)
    large = replace(case, pool=torch.cat([case.pool, others.byte()]))
    assert not is_listed_often(large.pool, large.row_ids)
    return large
