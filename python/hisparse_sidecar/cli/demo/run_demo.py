"""The whole demo: prompt, reference, server, both runs through it, report."""

import time
from typing import Any, cast

import torch

from hisparse_sidecar.backends import choose_ops, find_device
from hisparse_sidecar.cli.demo.progress import DemoProgress
from hisparse_sidecar.cli.demo.prompt import build_prompt, read_text
from hisparse_sidecar.cli.demo.report import DemoReport
from hisparse_sidecar.cli.demo.runs import Workload, run_reference, run_session
from hisparse_sidecar.cli.demo.server_process import ServerProcess
from hisparse_sidecar.cli.demo.settings import (
    INDEX_LAYOUT,
    KV_LAYOUT,
    DemoSettings,
    demo_config,
    hisa_selection,
)
from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.engines.transformers import GreedyOptions, RowLayouts, model_shape
from hisparse_sidecar.engines.transformers.checkpoint import checkpoint_shape, load_checkpoint


def run_demo(
    settings: DemoSettings,
    progress: DemoProgress,
    *,
    flat_selection: SelectionConfig | None = None,
) -> DemoReport:
    """Run everything; takes minutes at the default size.

    Args:
        settings: what to run.
        progress: where it is shown.
        flat_selection: what to run in flat's place; for tests that the comparison can fail.

    Raises:
        ValueError: the prompt does not fit the model, or a size does not fit the selection.
        InvalidArgument: this machine does not have the device or the backend.
        OSError: the model, the text or the server cannot be had.
    """
    start = time.perf_counter()
    workload = _prepare(settings, progress)
    config = demo_config(settings, model_shape(workload.model.config), workload.total_tokens)
    _announce(workload, config, progress)
    reference = run_reference(workload)
    selections = (flat_selection or SelectionConfig("flat"), hisa_selection(config.model))
    with ServerProcess(config) as server, server.connect() as session:
        backend = session.client.server_info().backend
        flat, hisa = (
            run_session(workload, session, selection, reference.token_ids)
            for selection in selections
        )
    return DemoReport(
        prompt=workload.prompt,
        backend=backend,
        device=device_words(config.device),
        reference=reference,
        flat=flat,
        hisa=hisa,
        plain_device_bytes_per_token=plain_bytes_per_token(config),
        stage_bytes=config.stage_rows * config.kv.row_bytes,
        total_seconds=time.perf_counter() - start,
    )


def device_words(device: str) -> str:
    """A device as the report names it: "cpu", or the GPU's own name too."""
    return device if device == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def plain_bytes_per_token(config: SidecarConfig) -> int:
    """Device bytes of a token where every layer's row and every anchor's index row stay there."""
    model = config.model
    return model.num_layers * config.kv.row_bytes + len(model.anchors) * config.index.row_bytes


def _prepare(settings: DemoSettings, progress: DemoProgress) -> Workload:
    from tokenizers import Tokenizer

    vocabulary = settings.model_dir / "tokenizer.json"
    if not vocabulary.is_file():  # the tokenizer's own error names no file
        raise FileNotFoundError(f"{vocabulary} not found")
    _check_early(settings)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    prompt = build_prompt(
        tokenizer, read_text(settings.text), settings.prompt_tokens, seed=settings.seed
    )
    workload = Workload(
        model=load_checkpoint(settings.model_dir, settings.chosen_device),
        tokenizer=tokenizer,
        prompt=prompt,
        options=GreedyOptions(settings.new_tokens, settings.prefill_chunk),
        layouts=RowLayouts(KV_LAYOUT, INDEX_LAYOUT),
        view=progress,
    )
    context = int(cast(Any, workload.model.config).max_position_embeddings)
    if workload.total_tokens > context:
        found = f"{workload.total_tokens} tokens asked for"
        raise ValueError(f"{found}, the model's context has {context}")
    return workload


def _check_early(settings: DemoSettings) -> None:
    """Refuses a device or a backend that is not there, before a model is loaded for it."""
    shape = checkpoint_shape(settings.model_dir)
    config = demo_config(settings, shape, settings.prompt_tokens)
    find_device(config.device)
    choose_ops(config)


def _announce(workload: Workload, config: SidecarConfig, progress: DemoProgress) -> None:
    total, blocks = workload.total_tokens, -(-workload.total_tokens // config.block_tokens)
    rows = f"{config.default_hot_slots:,} KV rows of {total:,}"
    keys = f"{config.window_blocks} index-key blocks of {blocks}"
    progress.remark(f"on the device, for each layer: {rows}, {keys}; the rest in host memory")
