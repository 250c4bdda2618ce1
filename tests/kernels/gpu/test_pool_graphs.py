import pytest
import torch

from cases import paged_keys
from hisparse_kernels.gpu.pool_keys import (
    append_index_rows_triton,
    rebuild_pooled_keys_triton,
    resum_open_blocks_triton,
)
from hisparse_kernels.layouts import INDEX_LAYOUTS, IndexLayout
from hisparse_kernels.pool_keys import (
    append_index_rows_ref,
    rebuild_pooled_keys_ref,
    resum_open_blocks_ref,
)
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.pooling import (
    Rows,
    State,
    append,
    pooled_base,
    rebuild,
    resum,
    rows_of,
    state_rows,
)

pytestmark = pytest.mark.gpu
LAYOUTS = pytest.mark.parametrize("layout", INDEX_LAYOUTS.values(), ids=INDEX_LAYOUTS.keys())


@LAYOUTS
def test_a_graph_appends_new_rows(layout: IndexLayout) -> None:
    stored = paged_keys((200, 130), layout)
    started = State.fresh(layout, 2, len(stored.index_pages))
    append(
        append_index_rows_ref,
        started,
        rows_of(stored, [(0, 0, 61), (1, 0, 128)], layout),
        64,
        layout,
    )
    held = Rows(*(t.cuda() for t in rows_of(stored, [(0, 61, 62)], layout, padding=3).tensors()))
    wanted = rows_of(stored, [(0, 61, 64), (1, 128, 129)], layout)
    state, ids = started.to("cuda"), (state_rows(2).cuda(), pooled_base(2).cuda())

    def call() -> None:
        rows, row_ids, row_seq, row_pos = held.tensors()
        pages, sums, pooled = state.tensors()
        append_index_rows_triton(
            rows, row_ids, pages, row_seq, row_pos, sums, ids[0], pooled, ids[1], 64, layout
        )

    assert_allocates_nothing(call)
    replay(call, [*held.tensors(), *state.tensors()], [*wanted.tensors(), *started.tensors()])

    append(append_index_rows_ref, started, wanted, 64, layout)
    state.assert_same(started)


@LAYOUTS
def test_a_graph_rebuilds_and_sums_again_for_new_lengths(layout: IndexLayout) -> None:
    stored = paged_keys((200, 130), layout)
    started = State.fresh(layout, 2, len(stored.index_pages))
    rebuilt, summed = started.to("cuda"), started.to("cuda")
    pages, table = stored.index_pages.cuda(), stored.page_table.cuda()
    ids = state_rows(2).cuda(), pooled_base(2).cuda()
    lengths, wanted = torch.tensor([3, -1]).int().cuda(), torch.tensor([200, 129]).int()

    def call() -> None:
        _, sums, pooled = rebuilt.tensors()
        rebuild_pooled_keys_triton(pages, table, lengths, sums, ids[0], pooled, ids[1], 64, layout)
        resum_open_blocks_triton(pages, table, lengths, summed.open_sums, ids[0], 64, layout)

    assert_allocates_nothing(call)
    held = [lengths, *rebuilt.tensors(), *summed.tensors()]
    replay(call, held, [wanted, *started.tensors(), *started.tensors()])

    expected = [started.to("cpu"), started.to("cpu")]
    rebuild(rebuild_pooled_keys_ref, expected[0], stored, wanted, 64, layout)
    resum(resum_open_blocks_ref, expected[1], stored, wanted, 64, layout)
    rebuilt.assert_same(expected[0])
    summed.assert_same(expected[1])
