"""Sidecars sized for one test prompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hisparse_sidecar import LocalSession, SelectionConfig, Sidecar, SidecarConfig
from hisparse_sidecar.config import Backend
from hisparse_sidecar.engines.transformers import model_shape

FLAT = SelectionConfig("flat")
FP32, QUANTISED = ("fp32", "fp32"), ("fp8_ds_mla", "fp8")


@dataclass(frozen=True)
class Room:
    """How much a test's sidecar holds.

    Attributes:
        tokens: of each sequence.
        sequences: open at once.
        layouts: of KV rows and of index rows.
        hot_slots: KV rows on the device; None = 2 * topk.
        window_blocks: 64-token blocks of index keys on the device.
        device: where the device tier is.
        backend: as in `SidecarConfig`.
    """

    tokens: int
    sequences: int = 1
    layouts: tuple[str, str] = FP32
    hot_slots: int | None = None
    window_blocks: int = 8
    device: str = "cpu"
    backend: Backend = "auto"


def sidecar_config(model, room: Room) -> SidecarConfig:
    """Flat selection unless a sequence asks for another; blocks of 64 tokens."""
    return SidecarConfig(
        model=model_shape(model.config),
        host_pages=room.sequences * -(-room.tokens // 64),
        max_sequences=room.sequences,
        kv_layout=room.layouts[0],
        index_layout=room.layouts[1],
        hot_slots=room.hot_slots,
        window_blocks=room.window_blocks,
        stage_rows=65536,
        device=room.device,
        backend=room.backend,
        block_tokens=64,
        selection=FLAT,
    )


@contextmanager
def local_session(model, room: Room) -> Iterator[LocalSession]:
    """A session on a sidecar of its own."""
    with Sidecar(sidecar_config(model, room)) as sidecar:
        yield LocalSession(sidecar)
        sidecar.check_integrity()
