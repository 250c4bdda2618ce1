"""How the part of an engine's memory that is ours is divided, and how large its tables are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import DeviceCapacity, HostLayout
from hisparse_sidecar.engine_rows.index_part import INDEX_LAYOUT, IndexPart, pages_of
from hisparse_sidecar.requirements import require

_UNUSED_INDEX_ROW_BYTES = 1  # there may be no anchor whose index rows the host pool would hold


@dataclass(frozen=True)
class EngineRowsConfig:
    """Sizes of a tier over memory that an engine allocated.

    Our rows of each layer are `first_row .. first_row + num_rows - 1`: one for each row of a step,
    where the engine writes what is new, then the hot buffers.

    Attributes:
        groups: for each layer the number of the group whose selection it uses, ascending from 0.
        row_bytes: bytes of one KV row of one layer.
        topk: entries of a list of selected tokens.
        host_pages: pages of 64 tokens in the host pool.
        max_sequences: sequences open at once, and rows of a step.
        max_tokens: most tokens that a sequence may be admitted for.
        hot_slots: KV rows of one sequence and layer on the device.
        first_row: first of our rows in the engine's memory.
        num_rows: our rows.
        huge_pages: ask for huge pages under the host pool.
        numa_node: bind the host pool to this node.
        index: where index keys of decoding sequences lie; None = they are the engine's affair.
    """

    groups: tuple[int, ...]
    row_bytes: int
    topk: int
    host_pages: int
    max_sequences: int
    max_tokens: int
    hot_slots: int
    first_row: int
    num_rows: int
    huge_pages: bool = False
    numa_node: int | None = None
    index: IndexPart | None = None

    def __post_init__(self) -> None:
        for name in ("row_bytes", "topk", "host_pages", "max_sequences", "max_tokens"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be >= 1")
        require(self.first_row >= 0, f"first_row is {self.first_row}, must be >= 0")
        for layer, group in enumerate(self.groups):
            before = self.groups[layer - 1] if layer else -1
            require(group in (before, before + 1) and group >= 0, self._group_message(layer))
        message = f"hot_slots is {self.hot_slots}, topk needs {self.topk}"
        require(self.hot_slots >= self.topk, message)
        needed = self.max_sequences + self.hot_slots
        message = f"num_rows is {self.num_rows}, a step and one hot buffer need {needed}"
        require(self.num_rows >= needed, message)
        tokens = self.host_pages * PAGE_TOKENS
        message = f"the host pool has {tokens} tokens, a sequence of max_tokens {self.max_tokens}"
        require(tokens >= self.max_tokens, message)

    def _group_message(self, layer: int) -> str:
        return f"layer {layer} has group {self.groups[layer]}, layers of a group lie together"

    @property
    def num_groups(self) -> int:
        """Groups of layers, each with one selection."""
        return self.groups[-1] + 1 if self.groups else 0

    @property
    def hot_row(self) -> int:
        """First row of the hot buffers."""
        return self.first_row + self.max_sequences

    @property
    def max_pages(self) -> int:
        """Most host pages of a sequence."""
        return pages_of(self.max_tokens)

    @property
    def anchors(self) -> tuple[int, ...]:
        """Of each group the first layer, which selects for it."""
        return tuple(self.groups.index(group) for group in range(self.num_groups))

    def layers_of(self, group: int) -> range:
        """Numbers of the layers of a group."""
        first = self.groups.index(group)
        return range(first, first + self.groups.count(group))

    def host_layout(self) -> HostLayout:
        """Where the rows lie in the host pool."""
        anchors, index_row_bytes = 0, _UNUSED_INDEX_ROW_BYTES
        if self.index is not None:
            anchors, index_row_bytes = self.num_groups, INDEX_LAYOUT.row_bytes
        return HostLayout(
            len(self.groups), anchors, self.row_bytes, index_row_bytes, self.host_pages
        )

    def capacity(self) -> DeviceCapacity:
        """What the core hands out: hot slots, window pages; of the rest there is enough."""
        tokens, sequences = self.host_pages * PAGE_TOKENS, self.max_sequences
        blocks = tokens // PAGE_TOKENS + sequences
        return DeviceCapacity(
            slots=self.num_rows - self.max_sequences,
            window_slots=0 if self.index is None else self.index.num_pages,
            table_tokens=tokens,
            table_blocks=blocks,
            pooled_keys=(blocks // PAGE_TOKENS + sequences) * PAGE_TOKENS,
            sequences=sequences,
        )


def check_memory(config: EngineRowsConfig, rows: Sequence[torch.Tensor]) -> None:
    """Raises InvalidArgument unless an engine's memory, [all rows, row_bytes] a layer, fits."""
    found, needed = len(rows), len(config.groups)
    require(found == needed, f"rows of {found} layers, the configuration has {needed}")
    end = config.first_row + config.num_rows
    for tensor in rows:
        shape = f"rows are {tuple(tensor.shape)} {tensor.dtype}"
        fits = tensor.dim() == 2 and tensor.shape[1] == config.row_bytes
        fits = fits and tensor.shape[0] >= end and tensor.dtype == torch.uint8
        require(fits, f"{shape}, needs ({end} or more, {config.row_bytes}) torch.uint8")
