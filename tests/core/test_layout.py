import pytest

from hisparse_sidecar._core import HostLayout, InvalidArgument


def test_arrays_are_aligned_in_order_and_apart() -> None:
    layout = HostLayout(3, 2, 656, 132, 10)
    arrays = [(layout.kv_offset(layer), 10 * 64 * 656) for layer in range(3)]
    arrays += [(layout.index_offset(anchor), 10 * 64 * 132) for anchor in range(2)]
    arrays += [(layout.pooled_offset(anchor), 10 * 132) for anchor in range(2)]
    end = 0
    for start, num_bytes in arrays:
        assert start % 4096 == 0
        assert end <= start < end + 4096
        end = start + num_bytes
    assert end <= layout.num_bytes < end + 4096
    assert layout.page_bytes == 64 * (3 * 656 + 2 * 132) + 2 * 132


def test_a_layout_repeats_its_numbers() -> None:
    layout = HostLayout(
        num_layers=3, num_anchors=2, kv_row_bytes=656, index_row_bytes=132, num_pages=10
    )
    names = ("num_layers", "num_anchors", "kv_row_bytes", "index_row_bytes", "num_pages")
    assert [getattr(layout, name) for name in names] == [3, 2, 656, 132, 10]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 656, 132, 10), "num_layers: found 0, needed 1 to 1024"),
        ((1, 1025, 656, 132, 10), "num_anchors: found 1025, needed 0 to 1024"),
        ((1, 1, 0, 132, 10), "kv_row_bytes: found 0, needed 1 to 65536"),
        ((1, 1, 656, 65537, 10), "index_row_bytes: found 65537, needed 1 to 65536"),
        ((1, 1, 656, 132, 1 << 24 | 1), "num_pages: found 16777217, needed 1 to 16777216"),
    ],
)
def test_a_layout_out_of_bounds_is_refused(numbers: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        HostLayout(*numbers)


def test_an_array_that_does_not_exist_is_refused() -> None:
    layout = HostLayout(2, 0, 656, 132, 10)
    with pytest.raises(InvalidArgument, match="layer: found 2, needed 0 to 1"):
        layout.kv_offset(2)
    with pytest.raises(InvalidArgument, match="anchor: found 0, needed 0 to -1"):
        layout.index_offset(0)
    assert layout.kv_offset(1) > 0
