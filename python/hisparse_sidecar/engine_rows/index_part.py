"""Which of an engine's index pages are windows of decoding sequences, and how large one is."""

from dataclasses import dataclass

from hisparse_kernels.layouts import PAGE_TOKENS, index_layout
from hisparse_sidecar.requirements import require

# the engine's own form of index rows: 128 e4m3 codes and an fp32 scale
INDEX_LAYOUT = index_layout("fp8")


@dataclass(frozen=True)
class IndexPart:
    """Index keys of decoding sequences are on the host, some pages of them in windows.

    A sequence has `window_pages` pages by LRU and one more, its open page, in each group of layers
    with one selection. A block is a page.

    Attributes:
        first_page: first of the windows' pages in the engine's index pages; page 0 is nobody's.
        num_pages: pages of all windows of a layer.
        window_pages: pages of one sequence and group that come and go.
        row_shift: the index row of a prompt's row r of the engine's memory is r - row_shift.
    """

    first_page: int
    num_pages: int
    window_pages: int
    row_shift: int = 0

    def __post_init__(self) -> None:
        require(self.first_page >= 1, f"first_page is {self.first_page}, must be >= 1")
        require(self.window_pages >= 2, f"window_pages is {self.window_pages}, must be >= 2")
        message = f"windows have {self.num_pages} pages, one needs {self.slots_of_one}"
        require(self.num_pages >= self.slots_of_one, message)
        require(self.row_shift >= 0, f"row_shift is {self.row_shift}, must be >= 0")

    @property
    def slots_of_one(self) -> int:
        """Pages of a long sequence and a group, the open one included."""
        return self.window_pages + 1

    def slots_for(self, tokens: int) -> int:
        """Pages of a sequence of so many tokens and a group."""
        return min(self.window_pages, max(2, pages_of(tokens))) + 1

    @property
    def end_page(self) -> int:
        """Pages that the engine's index pages must have at least."""
        return self.first_page + self.num_pages


def pages_of(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)
