"""What the demo runs, and the sidecar that it needs for that."""

from dataclasses import dataclass
from pathlib import Path

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.backends import best_device
from hisparse_sidecar.config import Backend, ModelShape, SelectionConfig, SidecarConfig

KV_LAYOUT, INDEX_LAYOUT = "fp8_ds_mla", "fp8"
_BLOCK_TOKENS = 64
_CANDIDATES_PER_TOPK = 4  # HISA: m * B = 4 * topk, the paper's 64 * 128 = 4 * 2048


@dataclass(frozen=True)
class DemoSettings:
    """What the demo runs.

    Attributes:
        model_dir: a transformers checkpoint of a DSA model, with its tokenizer.json.
        text: a text file, or a folder of .txt files.
        prompt_tokens: length of the prompt.
        new_tokens: tokens to generate greedily.
        seed: chooses the planted facts.
        window_blocks: index-key blocks of one layer on the device.
        hot_slots: KV rows of one layer on the device; None = 2 * topk.
        prefill_chunk: prompt tokens of one forward.
        device: of the model and of the sidecar's device tier; "auto" = cuda where there is one.
        backend: the sidecar's, see `SidecarConfig`.
    """

    model_dir: Path
    text: Path
    prompt_tokens: int = 12000
    new_tokens: int = 64
    seed: int = 0
    window_blocks: int = 48
    hot_slots: int | None = None
    prefill_chunk: int = 512
    device: str = "auto"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be >= 1")

    @property
    def chosen_device(self) -> str:
        """`device`, or the best that torch finds."""
        return best_device() if self.device == "auto" else self.device


def demo_config(settings: DemoSettings, model: ModelShape, num_tokens: int) -> SidecarConfig:
    """The server's configuration: room for one sequence of `num_tokens`, stored as fp8."""
    pages = -(-num_tokens // PAGE_TOKENS)
    return SidecarConfig(
        model=model,
        host_pages=pages,
        max_sequences=1,
        kv_layout=KV_LAYOUT,
        index_layout=INDEX_LAYOUT,
        hot_slots=settings.hot_slots,
        window_blocks=settings.window_blocks,
        stage_rows=max(model.topk, pages * PAGE_TOKENS),
        block_tokens=_BLOCK_TOKENS,
        device=settings.chosen_device,
        backend=settings.backend,
    )


def hisa_selection(model: ModelShape) -> SelectionConfig:
    """HISA scaled to the model as in the paper."""
    num_kept = max(2, _CANDIDATES_PER_TOPK * model.topk // _BLOCK_TOKENS)
    return SelectionConfig("hisa", num_kept_blocks=num_kept, gate="off")
