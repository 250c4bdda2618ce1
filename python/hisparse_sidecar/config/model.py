"""The parts of a model that the tiers and the selection need."""

from dataclasses import dataclass
from functools import cached_property

from hisparse_sidecar.requirements import require, required_finite


@dataclass(frozen=True)
class ModelShape:
    """The parts of a DSA model that the tiers and the selection need.

    Attributes:
        num_layers: attention layers.
        anchor_of: one entry a layer: the layer whose selection it uses (itself for an anchor).
        index_heads: heads of the indexer.
        topk: tokens that attention reads for each query row.
        softmax_scale: factor on `q . k` before the softmax, finite.
    """

    num_layers: int
    anchor_of: tuple[int, ...]
    index_heads: int
    topk: int
    softmax_scale: float

    def __post_init__(self) -> None:
        for name in ("num_layers", "index_heads", "topk"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be >= 1")
        required_finite("softmax_scale", self.softmax_scale)
        found = len(self.anchor_of)
        require(
            found == self.num_layers, f"anchor_of has {found} entries for {self.num_layers} layers"
        )
        for layer, anchor in enumerate(self.anchor_of):
            legal = 0 <= anchor <= layer and self.anchor_of[anchor] == anchor
            require(legal, f"layer {layer} selects with layer {anchor}, which is no earlier anchor")

    @cached_property
    def anchors(self) -> tuple[int, ...]:
        """The layers that select, ascending."""
        return tuple(layer for layer, anchor in enumerate(self.anchor_of) if layer == anchor)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For each layer the number of its anchor group: an anchor and those that share with it."""
        return tuple(self.anchors.index(anchor) for anchor in self.anchor_of)

    def group(self, layer: int) -> int:
        """Number of the anchor group of `layer`."""
        return self.groups[layer]

    def is_anchor(self, layer: int) -> bool:
        """Whether `layer` selects for itself."""
        return self.anchor_of[layer] == layer
