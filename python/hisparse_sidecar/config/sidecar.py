"""What a sidecar is built for: the model, the row layouts, the capacities, the selection."""

import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from hisparse_kernels.flash_mla_limits import check_flash_mla
from hisparse_kernels.layouts import (
    PAGE_TOKENS,
    IndexLayout,
    KvLayout,
    index_layout,
    kv_layout,
)
from hisparse_kernels.sparse_mla import SPLIT_ALIGN, decode_split_keys
from hisparse_sidecar.config.model import ModelShape
from hisparse_sidecar.config.selection import SelectionConfig
from hisparse_sidecar.config.tiers import TiersConfig
from hisparse_sidecar.requirements import require, require_legal, require_one_of

Backend = Literal["auto", "reference", "triton", "gluon_sm100", "flash_mla"]
_DEVICE = re.compile(r"cpu|cuda(:\d{1,3})?")


def check_split_keys(found: int | None) -> None:
    """Raises InvalidArgument unless attention can have splits of so many keys; 0 = all."""
    split = found or 0
    message = f"split_keys is {split}, needs 0 or a multiple of {SPLIT_ALIGN}"
    require(split >= 0 and split % SPLIT_ALIGN == 0, message)


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
            unless FlashMLA attends. Faster from some 64 rows on, slower with 8.
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
