"""Pool index keys page by page: one mean key for each page that is full.

For engines that share pages between sequences: what a page's rows are says its pooled key, whoever
reads it, so nothing is kept for a sequence. The same bits as `rebuild_pooled_keys` with blocks of
one page.
"""

import torch

from hisparse_kernels.index_rows import pack_index_rows_ref, split_pages, write_index_rows_ref
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, IndexLayout
from hisparse_kernels.shapes import Shapes, check_at_least


def pool_full_pages(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    pooled_pages: torch.Tensor,
    layout: IndexLayout,
) -> None:
    """Pools the pages whose last row is among the rows just written, in place.

    A page is written in the order of its rows, so the last one makes it full; written again, it is
    pooled again.

    Args:
        index_pages: [num_pages, page_bytes] uint8.
        row_ids: [n] int64 or int32, page * 64 + place of each row just written, in any order; -1 =
            none. All but last rows of pages are passed over.
        pooled_pages: [num_pooled_pages, page_bytes] uint8, with room for num_pages rows: the mean
            key of page p becomes row p.
        layout: how rows and pooled rows are stored.
    """
    shapes = Shapes(page_bytes=layout.page_bytes)
    shapes.check_packed("index_pages", index_pages, "num_pages page_bytes", torch.uint8)
    shapes.check("row_ids", row_ids, "n", torch.int64, torch.int32)
    shapes.check_packed("pooled_pages", pooled_pages, "num_pooled_pages page_bytes", torch.uint8)
    check_at_least("room for pooled rows", len(pooled_pages) * PAGE_TOKENS, len(index_pages))
    if index_pages.is_cuda:
        from hisparse_kernels.gpu.pool_pages import pool_full_pages_triton

        pool_full_pages_triton(index_pages, row_ids, pooled_pages, layout)
        return
    pool_full_pages_ref(index_pages, row_ids, pooled_pages, layout)


def pool_full_pages_ref(
    index_pages: torch.Tensor,
    row_ids: torch.Tensor,
    pooled_pages: torch.Tensor,
    layout: IndexLayout,
) -> None:
    is_last = (row_ids >= 0) & (row_ids % PAGE_TOKENS == PAGE_TOKENS - 1)
    pages = torch.div(row_ids[is_last].long(), PAGE_TOKENS, rounding_mode="floor")
    codes, scale = split_pages(index_pages.index_select(0, pages), layout)
    keys = codes if scale is None else codes * scale[:, None]
    sums = keys.new_zeros(len(pages), INDEX_DIM)
    for term in keys.unflatten(0, (-1, PAGE_TOKENS)).unbind(1):
        sums += term
    write_index_rows_ref(
        pooled_pages, pages, pack_index_rows_ref(sums / PAGE_TOKENS, layout), layout
    )
