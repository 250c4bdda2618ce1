"""Byte layouts of stored rows: what one token costs, in a KV row and in an index row."""

from dataclasses import dataclass
from typing import TypeVar

PAGE_TOKENS = 64
INDEX_DIM = 128
SCALE_DIM = 128  # latent values that share one fp32 scale


@dataclass(frozen=True)
class KvLayout:
    """One token's KV row of one layer.

    `fp8_ds_mla`: 512 e4m3 | 4 fp32 scales | 64 bf16 rope (FlashMLA's row). `fp8`: 512 e4m3 | 4 fp32
    scales. `bf16`, `fp32`: 512 latent | 64 rope values.
    """

    name: str
    latent_dim: int
    rope_dim: int
    row_bytes: int

    @property
    def query_dim(self) -> int:
        """Values of one query head, and of one unpacked row: latent, then rope."""
        return self.latent_dim + self.rope_dim


@dataclass(frozen=True)
class IndexLayout:
    """One token's index row, in pages of 64 tokens.

    `fp8` row: 128 e4m3 | fp32 scale; its page holds the 64 x 128 codes, then the 64 scales.
    `fp32` row: 128 fp32; its page holds 64 of them.
    """

    name: str
    row_bytes: int
    head_dim: int = INDEX_DIM

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: 64 rows."""
        return PAGE_TOKENS * self.row_bytes


KV_LAYOUTS = {
    "fp8_ds_mla": KvLayout("fp8_ds_mla", 512, 64, 512 + 4 * 4 + 64 * 2),
    "bf16": KvLayout("bf16", 512, 64, 576 * 2),
    "fp8": KvLayout("fp8", 512, 0, 512 + 4 * 4),
    "fp32": KvLayout("fp32", 512, 64, 576 * 4),
}
INDEX_LAYOUTS = {
    "fp8": IndexLayout("fp8", INDEX_DIM + 4),
    "fp32": IndexLayout("fp32", INDEX_DIM * 4),
}

_Layout = TypeVar("_Layout")


def kv_layout(name: str) -> KvLayout:
    """The KV layout of that name; ValueError names the known ones."""
    return _lookup("KV", KV_LAYOUTS, name)


def index_layout(name: str) -> IndexLayout:
    """The index layout of that name; ValueError names the known ones."""
    return _lookup("index", INDEX_LAYOUTS, name)


def _lookup(kind: str, layouts: dict[str, _Layout], name: str) -> _Layout:
    if name not in layouts:
        raise ValueError(f"unknown {kind} layout {name!r}: needs one of {', '.join(layouts)}")
    return layouts[name]
