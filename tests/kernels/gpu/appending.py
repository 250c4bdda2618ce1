"""Rows of a decode step and everything that they are written to, full of garbage before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from accuracy import assert_bits_equal
from cases import NAN_BYTE
from hisparse_kernels.append_rows import IndexSide, StepRows
from hisparse_kernels.layouts import IndexLayout, KvLayout
from hisparse_kernels.resolve import SlotRanges

Op = Callable[..., None]
TOKENS = 320  # of each sequence, at most
_ENTRIES = 7  # of each sequence's slot table, of which some are behind the last block


@dataclass(frozen=True)
class Spans:
    """Tokens [first, end) of some sequences, one after the other, then padding rows.

    Attributes:
        spans: (sequence, first, end) each.
        padding: rows at the end.
        elsewhere: rows that are not written to the host.
    """

    spans: Sequence[tuple[int, int, int]]
    padding: int = 0
    elsewhere: tuple[int, ...] = ()

    def rows(self) -> StepRows:
        """Host rows lie where their sequence and position say."""
        seq = [seq for seq, first, end in self.spans for _ in range(first, end)]
        pos = [pos for _, first, end in self.spans for pos in range(first, end)]
        ids = [one * TOKENS + at for one, at in zip(seq, pos, strict=True)]
        ids = [-1 if row in self.elsewhere else one for row, one in enumerate(ids)]
        none = [-1] * self.padding
        columns = torch.tensor(seq + none), torch.tensor(pos + none), torch.tensor(ids + none)
        return StepRows(columns[0].int(), columns[1].int(), columns[2].long())


@dataclass(frozen=True)
class Given:
    """Arguments of one call.

    Attributes:
        bare: without an index side.
    """

    values: torch.Tensor
    layout: KvLayout
    rows: StepRows
    host_rows: torch.Tensor
    packed: torch.Tensor
    index: IndexSide
    bare: bool = False

    def to(self, device: str) -> "Given":
        """A copy, on a device."""
        moved = {
            name: _moved(part, device)
            for name, part in vars(self).items()
            if name not in ("layout", "bare")
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def run(self, op: Op) -> None:
        index = None if self.bare else self.index
        op(self.values, self.layout, self.rows, self.host_rows, self.packed, index)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of them, by name."""
        parts = {**vars(self), **vars(self.rows), **vars(self.index), **vars(self.index.window)}
        return {name: one for name, one in parts.items() if isinstance(one, torch.Tensor)}

    def assert_same(self, expected: "Given") -> None:
        """Every byte is, of what is read as well."""
        for name, wanted in expected.tensors().items():
            found = self.tensors()[name].cpu()
            if name == "largest":  # of NaN any will do
                assert torch.equal(found.isnan(), wanted.isnan())
                found, wanted = found.nan_to_num(7.0), wanted.nan_to_num(7.0)
            _assert_equal(name, found, wanted)


def given(
    spans: Spans,
    layout: KvLayout,
    index_layout: IndexLayout,
    block_tokens: int = 64,
    *,
    heads: int = 3,
    query_dtype: torch.dtype = torch.float32,
    num_seqs: int = 3,
    seed: int = 0,
) -> Given:
    """Random rows; window slots, states and pooled ranges of the sequences are in no order."""
    torch.manual_seed(seed)
    rows, count = spans.rows(), len(spans.rows().row_seq)
    pages, blocks = TOKENS // 64, -(-TOKENS // block_tokens)

    def garbage(num_rows: int, num_bytes: int) -> torch.Tensor:
        return torch.full((num_rows, num_bytes), NAN_BYTE, dtype=torch.uint8)

    values, keys = torch.randn(count, layout.query_dim), torch.randn(count, 128)
    query, weights = torch.randn(count, heads, 128).to(query_dtype), torch.randn(count, heads)
    if spans.padding:
        for one in (values, keys, query, weights):
            one[-spans.padding :] = torch.nan
    slots = [torch.randperm(blocks) for _ in range(num_seqs)]
    table = torch.full((num_seqs, _ENTRIES), -1, dtype=torch.int16)
    table[:, :blocks] = torch.stack(slots).short()
    bases = torch.randperm(num_seqs) * blocks, torch.arange(num_seqs) * _ENTRIES
    index = IndexSide(
        index_k=keys,
        index_q=query,
        index_weights=weights,
        largest=torch.full((3, count), -1.0),
        window_pages=garbage(num_seqs * blocks * block_tokens // 64, index_layout.page_bytes),
        slot_table=table.flatten(),
        window=SlotRanges(bases[0], torch.full((num_seqs,), blocks), bases[1]),
        host_pages=garbage(num_seqs * pages, index_layout.page_bytes),
        host_pooled=garbage(num_seqs * pages, index_layout.row_bytes),
        open_sums=torch.randn(num_seqs + 2, 128),
        state_rows=torch.arange(num_seqs).flip(0) + 1,
        pooled_pages=garbage(num_seqs, index_layout.page_bytes),
        pooled_base=torch.randperm(num_seqs) * 64,
        block_tokens=block_tokens,
        layout=index_layout,
    )
    host_rows = garbage(num_seqs * TOKENS, layout.row_bytes)
    return Given(values, layout, rows, host_rows, garbage(count, layout.row_bytes), index)


def _moved(part: object, device: str) -> object:
    if isinstance(part, torch.Tensor):
        return part.clone().to(device)
    if isinstance(part, StepRows | IndexSide | SlotRanges):
        moved = {name: _moved(one, device) for name, one in vars(part).items()}
        return replace(part, **moved)
    return part


def _assert_equal(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    try:
        assert_bits_equal(found, wanted)
    except AssertionError as error:
        raise AssertionError(f"{name}: {error}") from None
