"""How the top-k of a sequence is found."""

from dataclasses import dataclass
from typing import Literal, get_args

from hisparse_sidecar.config.model import ModelShape
from hisparse_sidecar.requirements import require, require_one_of, required_int

IndexSource = Literal["flat", "hisa", "misa", "misa_dagger", "given"]
Budget = Literal["fixed", "ratio", "adaptive"]
RoutedStages = Literal["none", "blocks", "tokens", "both"]
GateMode = Literal["auto", "off"]
_LEAST = {
    "num_kept_blocks": 2,
    "routed_heads": 1,
    "candidates": 1,
    "max_blocks": 2,
    "audit_one_in": 0,
}


@dataclass(frozen=True)
class SelectionConfig:
    """How the top-k of a sequence is found.

    Attributes:
        index_source: "flat" scores every token; "hisa" only those of the best blocks; "misa" every
            token with few heads; "misa_dagger" re-ranks misa's candidates with all heads; "given"
            takes `topk_indices` from the caller.
        num_kept_blocks: HISA's m, the forced first and newest block included.
        routed_heads: MISA's h.
        candidates: MISA-dagger's k'.
        budget: how many blocks HISA keeps for a row: "fixed", num_kept_blocks; "ratio", a quarter
            of the row's blocks, from num_kept_blocks to max_blocks; "adaptive", num_kept_blocks,
            doubled up to max_blocks while the row's tail share is above `tail_share`.
        max_blocks: most blocks that HISA keeps for a row by "ratio" or "adaptive".
        tail_share: share of a row's top-k that may come from the worst-ranked quarter of its kept
            blocks before "adaptive" doubles them.
        routed_stages: HISA: what the `routed_heads` of a row score instead of all heads (MISA): the
            "blocks", the "tokens", "both" or "none".
        gate: "auto" takes flat instead of HISA where the measured table of this machine says that
            flat is faster and the index keys are resident; "off" never does.
        audit_one_in: one row in so many is also scored flat, where its index keys are resident, and
            its recall counted; 0 = none.
    """

    index_source: IndexSource = "hisa"
    num_kept_blocks: int = 64
    routed_heads: int = 8
    candidates: int = 8192
    budget: Budget = "fixed"
    max_blocks: int = 256
    tail_share: float = 0.05
    routed_stages: RoutedStages = "none"
    gate: GateMode = "auto"
    audit_one_in: int = 0

    def __post_init__(self) -> None:
        require_one_of("index_source", self.index_source, get_args(IndexSource))
        require_one_of("budget", self.budget, get_args(Budget))
        require_one_of("routed_stages", self.routed_stages, get_args(RoutedStages))
        require_one_of("gate", self.gate, get_args(GateMode))
        for name, least in _LEAST.items():
            found = required_int(name, getattr(self, name))
            object.__setattr__(self, name, found)  # 8.0 and 8 are equal where contracts are kept
            require(found >= least, f"{name} is {found}, must be >= {least}")
        self._check_budget()

    def _check_budget(self) -> None:
        share, kept = self.tail_share, self.num_kept_blocks
        require(0 <= share < 1, f"tail_share is {share}, must be >= 0 and < 1")
        message = f"max_blocks is {self.max_blocks}, num_kept_blocks needs {kept}"
        require(self.budget == "fixed" or self.max_blocks >= kept, message)
        message = f"num_kept_blocks is {kept}, a quarter of it for adaptive needs >= 4"
        require(self.budget != "adaptive" or kept >= 4, message)
        message = f"routed_stages is {self.routed_stages}, budget is {self.budget}, needs fixed"
        require(self.routed_stages == "none" or self.budget == "fixed", message)
        for name, unused in (("budget", "fixed"), ("routed_stages", "none")):
            found = getattr(self, name)
            message = f"{name} is {found}, index_source is {self.index_source}, needs hisa"
            require(found == unused or self.index_source == "hisa", message)

    def check_for(self, model: ModelShape, block_tokens: int) -> None:
        """Raises InvalidArgument unless the selection can yield `model.topk` tokens."""
        pool = self.num_kept_blocks * block_tokens
        if self.index_source == "hisa":
            message = f"{self.num_kept_blocks} blocks hold {pool} tokens, topk needs {model.topk}"
            require(pool >= model.topk, message)
        if self.index_source.startswith("misa") or self.routed_stages != "none":
            message = f"routed_heads is {self.routed_heads}, the model has {model.index_heads}"
            require(self.routed_heads <= model.index_heads, message)
        if self.index_source == "misa_dagger":
            message = f"candidates is {self.candidates}, topk needs {model.topk}"
            require(self.candidates >= model.topk, message)
