"""What a sidecar is built for: the model, the row layouts, the capacities, the selection."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, ParamSpec, get_args

from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_kernels.layouts import (
    PAGE_TOKENS,
    IndexLayout,
    KvLayout,
    index_layout,
    kv_layout,
)
from hisparse_kernels.sparse_mla import SPLIT_ALIGN, decode_split_keys
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.tiers_config import TiersConfig

IndexSource = Literal["flat", "hisa", "misa", "misa_dagger", "given"]
Budget = Literal["fixed", "ratio", "adaptive"]
RoutedStages = Literal["none", "blocks", "tokens", "both"]
GateMode = Literal["auto", "off"]
Backend = Literal["auto", "reference", "triton", "gluon_sm100", "flash_mla"]
_LEAST = {
    "num_kept_blocks": 2,
    "routed_heads": 1,
    "candidates": 1,
    "max_blocks": 2,
    "audit_one_in": 0,
}
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")
_Args = ParamSpec("_Args")


def require(condition: bool, message: str) -> None:
    """Raises InvalidArgument with `message` unless `condition` holds."""
    if not condition:
        raise InvalidArgument(message)


def require_one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InvalidArgument that lists `known` unless `value` is one of them."""
    require(value in known, f"{what} is {value!r}, must be one of {', '.join(sorted(known))}")


def check_split_keys(found: int | None) -> None:
    """Raises InvalidArgument unless attention can have splits of so many keys; 0 = all."""
    split = found or 0
    message = f"split_keys is {split}, needs 0 or a multiple of {SPLIT_ALIGN}"
    require(split >= 0 and split % SPLIT_ALIGN == 0, message)


def require_legal(
    check: Callable[_Args, object], *args: _Args.args, **kwargs: _Args.kwargs
) -> None:
    """Raises InvalidArgument that says what `check` says, if it raises ValueError."""
    try:
        check(*args, **kwargs)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


@dataclass(frozen=True)
class ModelShape:
    """The parts of a DSA model that the tiers and the selection need.

    Attributes:
        num_layers: attention layers.
        anchor_of: one entry a layer: the layer whose selection it uses (itself for an anchor).
        index_heads: heads of the indexer.
        topk: tokens that attention reads for each query row.
        softmax_scale: factor on `q . k` before the softmax.
    """

    num_layers: int
    anchor_of: tuple[int, ...]
    index_heads: int
    topk: int
    softmax_scale: float

    def __post_init__(self) -> None:
        for name in ("num_layers", "index_heads", "topk"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be >= 1")
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
            found = getattr(self, name)
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


@dataclass(frozen=True)
class SidecarConfig:
    """Everything a `Sidecar` is built from; see each field's unit.

    Attributes:
        model: shape of the served model.
        host_pages: pages of 64 tokens in the host pool.
        max_sequences: sequences open at once; sizes the device arenas.
        kv_layout: "fp8_ds_mla" | "bf16" | "fp8" | "fp32".
        index_layout: "fp8" | "fp32".
        device: where the device tier lives: "cpu", "cuda" or "cuda:N".
        backend: "reference" (plain PyTorch), "triton", or "auto" for the best that `device` has.
            "gluon_sm100": Triton, and attention's body for Blackwell, which has never run.
            "flash_mla": Triton, and FlashMLA for attention on sm_90, which is faster with 64 or 128
            heads, most of all in large batches; the last bits of a row depend on the step's rows.
        hot_slots: KV rows of one sequence and layer on the device; default 2 * topk.
        window_blocks: index-key blocks of one sequence and anchor layer on the device. At 1M tokens
            112 of them and all pooled keys take 2.9 B a token; 176 of them 3.9 B.
        max_step_rows: most rows of one sequence in a decode step (1 + draft tokens).
        warm_rows: so many last rows of each sequence in a prefill chunk leave what they selected in
            its hot buffers, as far as it fits, so that the first decode steps miss less.
        stage_rows: device rows through which a prefill chunk streams the prefix of one layer.
        block_tokens: tokens of one block, a multiple of the page.
        max_logits_bytes: bound on the logits of one selection; more rows are taken in groups.
        split_keys: keys of one split of decode attention, a multiple of 64, 0 = all of a row's. The
            last bits of outputs depend on it, and so nothing else chooses it: never the rows of a
            step. None = 256, or 128 where a row has up to 32 heads; needed by "flash_mla".
        overlap_rows: on CUDA, decode steps of more rows than this bring in what these many rows
            selected while the rows before them are attended to; 0 = all at once. Bits are the same,
            unless FlashMLA attends. Not measured yet.
        selection: default selection of a sequence.
        layer_profile: file of what single layers change in the default selection; a sequence that
            asks for another one gets that in every layer.
        huge_pages: ask for huge pages under the host pool.
        numa_node: bind the host pool to this node.
        tiers: what lies below the host pool.
    """

    model: ModelShape
    host_pages: int
    max_sequences: int = 8
    kv_layout: str = "fp8_ds_mla"
    index_layout: str = "fp8"
    device: str = "cpu"
    backend: Backend = "auto"
    hot_slots: int | None = None
    window_blocks: int = 112
    max_step_rows: int = 1
    warm_rows: int = 0
    stage_rows: int = 65536
    block_tokens: int = 128
    max_logits_bytes: int = 1 << 28
    split_keys: int | None = None
    overlap_rows: int = 0
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    layer_profile: str | None = None
    huge_pages: bool = False
    numa_node: int | None = None
    tiers: TiersConfig = field(default_factory=TiersConfig)

    def __post_init__(self) -> None:
        require_one_of("backend", self.backend, get_args(Backend))
        known_device = _DEVICE.fullmatch(self.device) is not None
        require(known_device, f"device is {self.device!r}, must be cpu, cuda or cuda:N")
        require(self.block_tokens > 0 and self.block_tokens % PAGE_TOKENS == 0, self._block_message)
        for name in ("host_pages", "max_sequences", "max_step_rows", "window_blocks"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, must be >= 1")
        require(self.max_logits_bytes >= 1, f"max_logits_bytes is {self.max_logits_bytes}, needs 1")
        for name in ("warm_rows", "overlap_rows"):
            require(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}, must be >= 0")
        check_split_keys(self.split_keys)
        self._check_device_sizes()
        require_legal(kv_layout, self.kv_layout)
        require_legal(index_layout, self.index_layout)
        if self.backend == "flash_mla":
            topk, split_keys = self.model.topk, self.split_keys
            require_legal(check_flash_mla, layout=self.kv, topk=topk, split_keys=split_keys)

    def _check_device_sizes(self) -> None:
        topk, tokens = self.model.topk, self.host_pages * PAGE_TOKENS
        require(self.stage_rows >= topk, f"stage_rows is {self.stage_rows}, topk needs {topk}")
        most = max(topk, tokens, SidecarConfig.stage_rows)
        message = f"stage_rows is {self.stage_rows}, the host pool has {tokens} tokens"
        require(self.stage_rows <= most, message)
        needed = topk * self.max_step_rows
        message = f"hot_slots is {self.hot_slots}, topk * max_step_rows needs {needed}"
        require(self.default_hot_slots >= needed, message)

    @property
    def _block_message(self) -> str:
        return f"block_tokens is {self.block_tokens}, must be a multiple of {PAGE_TOKENS}"

    @property
    def kv(self) -> KvLayout:
        """Layout of one KV row."""
        return kv_layout(self.kv_layout)

    @property
    def index(self) -> IndexLayout:
        """Layout of one index row."""
        return index_layout(self.index_layout)

    @property
    def default_hot_slots(self) -> int:
        """`hot_slots`, or 2 * topk rows for each row of a step."""
        if self.hot_slots is None:
            return 2 * self.model.topk * self.max_step_rows
        return self.hot_slots

    def decode_split(self, heads: int) -> int | None:
        """Keys of one split of decode attention with so many heads; topk or more = no splits.

        None = FlashMLA splits as it does.
        """
        if self.backend == "flash_mla":
            return None
        if self.split_keys is None:
            return decode_split_keys(heads)
        return self.split_keys or -(-self.model.topk // SPLIT_ALIGN) * SPLIT_ALIGN

    @property
    def pages_per_block(self) -> int:
        """Index pages of one block."""
        return self.block_tokens // PAGE_TOKENS

    @property
    def touched_blocks(self) -> int:
        """Most blocks that the new rows of one decode step lie in."""
        return 1 + -(-(self.max_step_rows - 1) // self.block_tokens)
