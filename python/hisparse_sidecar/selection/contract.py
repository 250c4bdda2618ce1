"""The contract between a selector and the index keys of one layer, wherever these lie."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class SelectionQuery:
    """The indexer's queries of a step.

    Attributes:
        index_q: [rows, index_heads, 128] fp32, bf16 or e4m3.
        index_weights: [rows, index_heads] fp32.
        row_seq: [rows] int32, sequence of the row; -1 = a row to leave alone.
        row_pos: [rows] int32, position of the row; it may select positions up to its own.
        topk: tokens to select.
        row_block: [rows] int32, block of each row's position, -1 = padding row; None = to be found.
        row_end: [rows] int32, `row_pos` + 1; None = to be found.
    """

    index_q: torch.Tensor
    index_weights: torch.Tensor
    row_seq: torch.Tensor
    row_pos: torch.Tensor
    topk: int
    row_block: torch.Tensor | None = None
    row_end: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows, padding included."""
        return self.row_seq.numel()

    def newest_blocks(self, block_tokens: int) -> torch.Tensor:
        """[rows] int32, the block that holds the row itself; -1 for padding rows."""
        if self.row_block is not None:
            return self.row_block
        return torch.div(self.row_pos, block_tokens, rounding_mode="floor")

    def ends(self) -> torch.Tensor:
        """[rows] int32, how many positions each row sees."""
        return self.row_pos + 1 if self.row_end is None else self.row_end

    def rows(self, rows: slice) -> "SelectionQuery":
        """The same query for some of the rows."""
        return replace(self, **{name: one[rows] for name, one in self._tensors().items()})

    def contiguous(self) -> "SelectionQuery":
        """The same query in tensors without gaps."""
        return replace(self, **{name: one.contiguous() for name, one in self._tensors().items()})

    def only(self, keep: torch.Tensor) -> "SelectionQuery":
        """The same query with every row outside `keep` [rows] bool turned into padding."""
        return replace(
            self,
            row_seq=self.row_seq.masked_fill(~keep, -1),
            row_pos=self.row_pos.masked_fill(~keep, -1),
            row_block=None,
            row_end=None,
        )

    def with_heads(self, heads: torch.Tensor) -> "SelectionQuery":
        """The same query with only `heads` [rows, n] int32 of each row; -1 in padding rows."""
        picked = heads.clamp(min=0).long()
        width = picked[:, :, None].expand(-1, -1, self.index_q.shape[-1])
        index_q = (
            self.index_q.view(torch.uint8) if self.index_q.element_size() == 1 else self.index_q
        )
        index_q = index_q.gather(1, width).view(self.index_q.dtype)
        return replace(self, index_q=index_q, index_weights=self.index_weights.gather(1, picked))

    def _tensors(self) -> dict[str, Any]:
        return {name: one for name, one in vars(self).items() if isinstance(one, torch.Tensor)}


@dataclass(frozen=True)
class KeptBlocks:
    """Blocks whose tokens are to be scored.

    Attributes:
        ids: [rows, m] int32, ascending; -1 pads the tail.
        pooled_logits: [rows, >= num_blocks] fp32, what they were chosen by; None = they are all.
        slots: [rows, m] int32, where each lies on the device, -1 = not there; None = not known.
    """

    ids: torch.Tensor
    pooled_logits: torch.Tensor | None = None
    slots: torch.Tensor | None = None


class IndexKeys(Protocol):
    """The index keys and pooled keys that the rows of a query may score.

    Attributes:
        block_tokens: tokens of one block.
        num_blocks: blocks of the longest sequence, the open one included.
        num_tokens: tokens of the longest sequence.
    """

    block_tokens: int
    num_blocks: int
    num_tokens: int

    @property
    def pooled_columns(self) -> int:
        """Pooled logits that `best_blocks` makes for a row."""
        ...

    @property
    def all_resident(self) -> bool:
        """Whether the device has room for the index keys of every sequence; the host knows."""
        ...

    @property
    def scores_positions(self) -> bool:
        """Whether single tokens can be scored: all keys lie on the device now."""
        ...

    def is_resident(self, row: int) -> bool:
        """Whether all keys of one row's sequence lie on the device now; False for padding."""
        ...

    def all_positions(self, query: SelectionQuery) -> torch.Tensor:
        """[rows, topk] int32, every position up to the row's own; -1 pads. `num_tokens` <= topk."""
        ...

    def best_blocks(self, query: SelectionQuery, kept: int) -> KeptBlocks:
        """The `kept` blocks of each row with the best pooled keys, first and newest among them."""
        ...

    def more_blocks(self, query: SelectionQuery, blocks: KeptBlocks, kept: int) -> KeptBlocks:
        """`best_blocks` with another number, by the pooled logits that are there."""
        ...

    def best_of_all(
        self, query: SelectionQuery, topk: int, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`best_tokens` of every block.

        Args:
            query: the rows.
            topk: positions to return.
            heads: [rows, h] int32, heads of each row that score, -1 in padding rows; None = all.
        """
        ...

    def best_tokens(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """[rows, topk] int32, positions of the best tokens of each row's blocks, ascending.

        Blocks that are not on the device are read from the host pool. -1 pads the tail; equal
        logits: the lowest position.
        """
        ...

    def token_logits(self, query: SelectionQuery, block_ids: torch.Tensor) -> torch.Tensor:
        """Scores of the tokens of some blocks, brought to the device if they are not there.

        Args:
            query: the rows.
            block_ids: [rows, m] int32, ascending; -1 = none.

        Returns:
            [rows, m * block_tokens] fp32; -inf for no block and for positions after the row's.
        """
        ...

    def position_logits(self, query: SelectionQuery, positions: torch.Tensor) -> torch.Tensor:
        """[rows, n] fp32, scores of single tokens; -inf for -1. Where `scores_positions`."""
        ...

    def top_columns(self, logits: torch.Tensor, topk: int) -> torch.Tensor:
        """[rows, topk] int32, the best columns, ascending; -1 pads the tail."""
        ...

    def routed_heads(self, query: SelectionQuery, num_routed: int) -> torch.Tensor:
        """[rows, num_routed] int32, heads that weigh most over the pooled keys, ascending."""
        ...

    def top_positions(
        self, logits: torch.Tensor, block_ids: torch.Tensor, topk: int
    ) -> torch.Tensor:
        """[rows, topk] int32, positions of the best columns of `token_logits`, ascending."""
        ...

    def needs_more(
        self,
        query: SelectionQuery,
        positions: torch.Tensor,
        blocks: KeptBlocks,
        tail_share: float,
    ) -> torch.Tensor:
        """[rows] bool: more than `tail_share` of the top-k is of the worst quarter of the blocks.

        False for a row whose blocks are all kept; see `hisparse_kernels.tail_share`.
        """
        ...

    def count(self, what: str, amounts: torch.Tensor | int) -> None:
        """Adds to a field of the layer's `SelectionCounts`; no wait for the device.

        Args:
            what: name of the field.
            amounts: a number, or a tensor of bool or integers, whose sum is added at the step's
                end; it must not change until then.
        """
        ...


class LocatedIndexKeys(IndexKeys, Protocol):
    """Index keys at rows of memory that the caller knows: a list can be given as these rows."""

    def best_rows(self, query: SelectionQuery, blocks: KeptBlocks, topk: int) -> torch.Tensor:
        """`best_tokens` as the rows where they lie, [rows, topk] int32, in the same order."""
        ...


class Selector(Protocol):
    """Chooses the tokens that each row attends to. Stateless: one object serves all layers."""

    def select(self, query: SelectionQuery, keys: IndexKeys) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail."""
        ...

    def scored_blocks(self, num_blocks: int) -> int:
        """Most blocks whose logits it holds at once for a row, of a sequence of `num_blocks`."""
        ...
