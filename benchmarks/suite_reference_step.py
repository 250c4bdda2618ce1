"""Suite `reference_step`: one decode step of one layer by the reference on the CPU, by context.

The peer is plain PyTorch on the same CPU: dense attention over all latents, held in memory as
fp32, with no selection and no offload.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.bench.rows import Measurement
from hisparse_sidecar.cli.bench.suite import Suite
from hisparse_sidecar.cli.bench.timing import Stopwatch, Timing
from hisparse_sidecar.config import IndexSource, ModelShape, SelectionConfig, SidecarConfig
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.sidecar import Sidecar
from hisparse_sidecar.step.step import StepKind

# the small model's layer: 8 heads, 32 index heads, topk 512, HISA with m * B = 4 * topk
_HEADS, _INDEX_HEADS, _TOPK = 8, 32, 512
_BLOCK_TOKENS, _NUM_KEPT_BLOCKS, _WINDOW_BLOCKS = 64, 32, 64
_LATENT_DIM, _QUERY_DIM, _INDEX_DIM = 512, 576, 128
_CHUNK_TOKENS = 512
_PEER = "torch dense MLA"


@dataclass(frozen=True)
class _Case:
    """One selection at one context length."""

    index_source: IndexSource
    context: int

    @property
    def name(self) -> str:
        return f"{self.index_source}, context {self.context}"


# flat prefill is quadratic: 65,536 tokens would take minutes to fill
_CASES = (
    _Case("flat", 4096),
    _Case("hisa", 4096),
    _Case("flat", 16384),
    _Case("hisa", 16384),
    _Case("hisa", 65536),
)


def _measure(stopwatch: Stopwatch) -> Iterator[Measurement]:
    num_steps = stopwatch.num_warm_ups + stopwatch.num_runs
    for case in _CASES:
        torch.manual_seed(0)
        peer = _time_dense(stopwatch, case.context)
        with Sidecar(_config(case.context + num_steps)) as sidecar:
            sequence = _fill(sidecar, case, num_steps)
            ours = _time_steps(stopwatch, sidecar, sequence, num_steps)
        for statistic in ("median", "p99"):
            ours_us, peer_us = (
                getattr(timing, f"{statistic}_seconds") * 1e6 for timing in (ours, peer)
            )
            yield Measurement(case.name, f"{statistic} us", ours_us, "lower", _PEER, peer_us)


def _config(tokens: int) -> SidecarConfig:
    return SidecarConfig(
        model=ModelShape(1, (0,), _INDEX_HEADS, _TOPK, _QUERY_DIM**-0.5),
        host_pages=-(-tokens // PAGE_TOKENS) + 1,
        max_sequences=1,
        window_blocks=_WINDOW_BLOCKS,
        block_tokens=_BLOCK_TOKENS,
    )


def _fill(sidecar: Sidecar, case: _Case, num_steps: int) -> int:
    """A sequence of random rows, `case.context` tokens long."""
    selection = SelectionConfig(case.index_source, num_kept_blocks=_NUM_KEPT_BLOCKS)
    sequence = sidecar.open(case.context, num_steps, selection=selection)
    for _ in range(case.context // _CHUNK_TOKENS):
        _run_step(sidecar, sequence, _random_inputs(_CHUNK_TOKENS), "prefill")
    return sequence


def _time_steps(stopwatch: Stopwatch, sidecar: Sidecar, sequence: int, num_steps: int) -> Timing:
    inputs = iter([_random_inputs(1) for _ in range(num_steps)])
    return stopwatch.time(lambda: _run_step(sidecar, sequence, next(inputs), "decode"))


def _run_step(sidecar: Sidecar, sequence: int, inputs: LayerInputs, kind: StepKind) -> None:
    sidecar.begin_step([(sequence, inputs.query.shape[0])], kind)
    sidecar.run_layer(0, inputs)
    sidecar.commit_step()


def _random_inputs(num_rows: int) -> LayerInputs:
    return LayerInputs(
        query=torch.randn(num_rows, _HEADS, _QUERY_DIM),
        kv=torch.randn(num_rows, _QUERY_DIM),
        index_q=torch.randn(num_rows, _INDEX_HEADS, _INDEX_DIM),
        index_weights=torch.rand(num_rows, _INDEX_HEADS),
        index_k=torch.randn(num_rows, _INDEX_DIM),
    )


def _time_dense(stopwatch: Stopwatch, context: int) -> Timing:
    keys = torch.randn(context, _QUERY_DIM)
    query = torch.randn(_HEADS, _QUERY_DIM)

    def attend() -> torch.Tensor:
        weights = torch.softmax(query @ keys.T * _QUERY_DIM**-0.5, dim=-1)  # [heads, context]
        return weights @ keys[:, :_LATENT_DIM]

    return stopwatch.time(attend)


SUITE = Suite(
    name="reference_step",
    summary="one decode step of one layer on the CPU (us), beside dense attention in plain PyTorch",
    device="cpu",
    measure=_measure,
)
