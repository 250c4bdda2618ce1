import pytest
import torch

from hisparse_sidecar.pipeline.row_groups import row_groups

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("group_rows", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("counts", [[1], [1, 1, 1, 1], [3, 1, 2], [1, 1, 5], [5, 1, 1]])
@pytest.mark.parametrize(("padded", "blanks"), [(0, 0), (3, 0), (0, 4), (2, 9)])
def test_what_a_row_selected_comes_in_once_and_no_later_than_the_row_is_ready(
    group_rows: int, counts: list[int], padded: int, blanks: int
) -> None:
    row_seq = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).tolist()
    num_rows, num_sequences = len(row_seq) + padded, len(counts) + blanks

    rows_seen: list[int] = []
    here: list[int] = []
    for rows, sequences in row_groups(num_rows, num_sequences, group_rows):
        here += range(num_sequences)[sequences]
        rows_seen += range(num_rows)[rows]
        assert set(row_seq[: len(rows_seen)]) <= set(here)
        assert not group_rows or rows.stop - rows.start <= group_rows
    assert rows_seen == list(range(num_rows))
    assert here == list(range(num_sequences))


def test_a_step_without_rows_is_one_empty_group() -> None:
    assert list(row_groups(0, 0, 4)) == [(slice(0, 0), slice(0, 0))]
