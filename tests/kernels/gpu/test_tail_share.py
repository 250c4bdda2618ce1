import pytest
import torch

from accuracy import assert_bits_equal
from hisparse_kernels.block_topm import block_topm_ref
from hisparse_kernels.gpu.tail_share import tail_share_triton
from hisparse_kernels.tail_share import tail_share_ref
from tests.cases import on
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.tail_shares import TOKENS, kept_rows

LIMIT = 0.2


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "not_finite"])
@pytest.mark.parametrize("kept", [2, 4, 7, 33, 300])
def test_shares_are_the_references(kind: str, kept: int, device: str) -> None:
    scores, newest, ids, positions = kept_rows(kind, kept)
    share = torch.full((len(ids),), torch.nan, device=device)
    out = share, torch.ones(len(ids), dtype=torch.bool, device=device)

    found = tail_share_triton(*on(device, positions, ids, scores, newest), TOKENS, LIMIT, out=out)

    wanted = tail_share_ref(positions, ids, scores, newest, TOKENS, LIMIT)
    for one, place, other in zip(found, out, wanted, strict=True):
        assert one is place
        assert_bits_equal(one.cpu(), other)


def test_more_positions_than_go_at_a_time_are_all_counted(device: str) -> None:
    scores, newest, ids, _ = kept_rows("random", 33)
    tokens = (ids[:, :, None] * TOKENS + torch.arange(TOKENS)).flatten(1)
    positions = torch.where((ids >= 0).repeat_interleave(TOKENS, 1), tokens, -1).int()

    found = tail_share_triton(*on(device, positions, ids, scores, newest), TOKENS, LIMIT)

    wanted = tail_share_ref(positions, ids, scores, newest, TOKENS, LIMIT)
    assert (wanted[0] > 0).any()
    for one, other in zip(found, wanted, strict=True):
        assert_bits_equal(one.cpu(), other)


def test_scores_are_read_by_their_strides(device: str) -> None:
    scores, newest, ids, positions = kept_rows("random", 16)
    wide = torch.full((len(scores), 3 * scores.shape[1]), torch.nan)
    wide[:, ::3] = scores

    found = tail_share_triton(
        *on(device, positions, ids), wide.to(device)[:, ::3], newest.to(device), TOKENS, LIMIT
    )

    wanted = tail_share_ref(positions, ids, scores, newest, TOKENS, LIMIT)
    for one, other in zip(found, wanted, strict=True):
        assert_bits_equal(one.cpu(), other)


def test_no_rows_have_no_share(device: str) -> None:
    scores, newest, ids, positions = (tensor[:0].to(device) for tensor in kept_rows("random", 4))
    share, needs_more = tail_share_triton(positions, ids, scores, newest, TOKENS, LIMIT)
    assert (share.shape, needs_more.shape) == ((0,), (0,))


def _production(rows: int, kept: int, blocks: int) -> list[torch.Tensor]:
    """Positions, ids, scores, newest blocks at the sizes of a model."""
    torch.manual_seed(0)
    scores, newest = torch.randn(rows, blocks), (torch.arange(rows) * 37 % blocks).int()
    ids = block_topm_ref(scores, newest, kept)
    columns = torch.randint(0, kept, (rows, 2048))
    blocks_of = ids.gather(1, columns)
    positions = torch.where(blocks_of >= 0, blocks_of * 128 + columns % 128, -1)
    return [positions.int(), ids, scores, newest]


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "kept", "blocks"), [(4096, 64, 512), (64, 512, 8192), (1, 64, 9)])
def test_production_rows_have_the_references_shares_twenty_times(
    rows: int, kept: int, blocks: int
) -> None:
    inputs = _production(rows, kept, blocks)
    wanted = tail_share_ref(*inputs, 128, LIMIT)
    args = [tensor.cuda() for tensor in inputs]

    for _ in range(20):
        for one, other in zip(tail_share_triton(*args, 128, LIMIT), wanted, strict=True):
            assert_bits_equal(one.cpu(), other)


@pytest.mark.gpu
def test_a_graph_follows_new_rows_and_allocates_nothing() -> None:
    inputs, new = _production(4, 64, 512), _production(5, 64, 512)
    new = [tensor[1:] for tensor in new]
    held = [tensor.cuda() for tensor in inputs]
    out = torch.empty(4, device="cuda"), torch.empty(4, dtype=torch.bool, device="cuda")

    def call() -> None:
        tail_share_triton(*held, 128, LIMIT, out=out)

    replay(call, held, new)

    for one, other in zip(out, tail_share_ref(*new, 128, LIMIT), strict=True):
        assert_bits_equal(one.cpu(), other)
    assert_allocates_nothing(call)
