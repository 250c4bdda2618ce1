"""The server under stress: a small model, few host pages, and tiers in one directory."""

from pathlib import Path

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig, TiersConfig

HEADS = 1
HOST_PAGES = 56
LOAD_SECONDS = 1.0
QUOTA_PAGES = {"north": HOST_PAGES, "south": HOST_PAGES // 2}
TENANTS = ("", *QUOTA_PAGES)
_INDEX_HEADS, _TOPK = 2, 8  # attention is not what is tested
_SEQUENCES_PER_SESSION = 2.5
_SEGMENT_BYTES = 4 << 20
# so large that a run with kills hardly evicts, so small that one without does all the time
_FILE_BYTES, _FEW_FILE_BYTES = 4 << 30, 20 << 20


def server_config(settings: StressSettings, directory: Path) -> SidecarConfig:
    """Three layers of which two select; KV rows of bf16 and index rows of fp32 hold integers."""
    return SidecarConfig(
        model=ModelShape(3, (0, 0, 2), _INDEX_HEADS, _TOPK, 0.01),
        host_pages=HOST_PAGES,
        max_sequences=int(settings.sessions * _SEQUENCES_PER_SESSION) + 2,
        kv_layout="bf16",
        index_layout="fp32",
        backend="reference",
        hot_slots=64,
        window_blocks=6,
        stage_rows=4096,
        block_tokens=64,
        selection=SelectionConfig("hisa", num_kept_blocks=4, gate="off"),
        tiers=_tiers(settings, directory),
    )


def _tiers(settings: StressSettings, directory: Path) -> TiersConfig:
    return TiersConfig(
        file_directory=str(directory / "pages") if "file" in settings.tiers else None,
        file_bytes=_FILE_BYTES if "kill" in settings.faults else _FEW_FILE_BYTES,
        segment_bytes=_SEGMENT_BYTES,
        secret_file=str(directory / "secret"),
        model_name="stress",
        free_share=0.1,
        io_threads=2,
        load_seconds=LOAD_SECONDS,
        call_seconds=0.25,
        probe_seconds=0.0,  # what is there is loaded, whatever it takes
    )


def stored_page_bytes(config: SidecarConfig) -> int:
    """Bytes of a page in a lower tier: rows of every layer, index rows and pooled keys."""
    rows = config.model.num_layers * PAGE_TOKENS * config.kv.row_bytes
    return rows + len(config.model.anchors) * (config.index.page_bytes + config.index.row_bytes)
