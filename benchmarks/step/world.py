"""A sidecar whose sequences are long, with a decode step open that can be run again and again."""

import gc
from dataclasses import replace
from functools import partial

import torch

from benchmarks.ops.compare import ATTENTION, LSE, check_equal, check_near
from benchmarks.ops.inputs import index_queries, sample_rows
from benchmarks.select.check_chosen import check_ascending
from benchmarks.step.record import OpCall, Recorder
from benchmarks.step.residency import Wanted, fill_slots
from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_kernels.sparse_mla import sparse_mla_ref
from hisparse_sidecar import LayerInputs, LayerOutputs, ModelShape, SelectionConfig, Sidecar
from hisparse_sidecar.backends import choose_ops
from hisparse_sidecar.config import Backend, SidecarConfig
from hisparse_sidecar.pipeline.pipeline import LayerPipeline
from hisparse_sidecar.step.step import GroupStep, StepKind
from hisparse_sidecar.step.watch import StepWatch

CONTEXT, TOPK, KEPT, INDEX_HEADS = 128 * 1024, 2048, 64, 64
QUERY_DIM, SCALE = 576, 576**-0.5
_BLOCK_TOKENS, _CHUNK_ROWS = 128, 4096
_MOST_LAYERS = 16
# the step's row lies within a page and a block that are its sequence's already: it ends neither
_BEFORE_END = 32
_DEVICE: str = "cuda"
_BACKEND: Backend = "triton"


def num_layers(batch: int) -> int:
    """Layers, each an anchor: as many rows together as keep launches from weighing much."""
    return max(1, min(_MOST_LAYERS, 64 // batch))


class World:
    """`batch` forks of one random prompt and an open decode step of one row each.

    Every block of index keys is on the device.

    Attributes:
        batch: sequences.
        layers: of the model.
    """

    def __init__(self, batch: int) -> None:
        self.batch, self.layers = batch, range(num_layers(batch))
        self._sidecar = Sidecar(_config(batch))
        self._tiers = self._sidecar._tiers
        self._start = CONTEXT - _BEFORE_END
        self._sequences = self._open()
        self._rows = [(sequence, 1) for sequence in self._sequences]
        self._inputs = [self._random_inputs(batch, 1) for _ in self.layers]
        self._run_step(self._rows, "decode", batch)  # each sequence then owns its open page
        self._step = self._sidecar.begin_step(self._rows, "decode")
        self._outputs = [self.run_layer(layer) for layer in self.layers]
        self._selected = [outputs.topk_indices.clone() for outputs in self._outputs]
        self._save()

    def set_up(
        self,
        heads: int,
        misses: int,
        split_keys: int | None = None,
        backend: Backend | None = None,
        *,
        overlap_rows: int = 0,
    ) -> None:
        """Queries of so many heads, and hot buffers in which so many of their rows are missing.

        Attention goes over splits of so many keys, ops are those of a backend, and so many rows
        come in beside attention, as the settings of these names say; None = the suite's backend.
        """
        sidecar, backend = self._sidecar, backend or _BACKEND
        config = replace(self._tiers.config, split_keys=split_keys, backend=backend)
        config = replace(config, overlap_rows=overlap_rows)
        self._tiers = replace(self._tiers, config=config, ops=choose_ops(config))
        sidecar._pipeline = LayerPipeline(self._tiers, sidecar._traffic, sidecar._policy)
        self._inputs = [replace(one, query=self._queries(heads)) for one in self._inputs]
        for layer, selected in enumerate(self._selected):
            self._fill(layer, Wanted(selected, self._start, misses))
        self._misses = misses
        self._save()

    def reset(self) -> None:
        """Back to before the step, with the same tensors."""
        for sequence in self._sequences:
            self._tiers.manager.truncate(sequence, self._start)
        self._tiers.ranks.append_rows(self._rows)
        step, device = self._step, self._tiers.device
        step.layers_done.clear()
        step.groups[:] = [GroupStep() for _ in step.groups]
        step.watch, step.held = StepWatch(), []
        for layer, (state, sums) in enumerate(zip(device.hot, device.open_sums, strict=True)):
            for name, saved in self._saved[layer].items():
                (sums if name == "open_sums" else getattr(state, name)).copy_(saved)

    def run_layer(self, layer: int) -> LayerOutputs:
        """One layer of the step, through the sidecar."""
        return self._sidecar.run_layer(layer, self._inputs[layer])

    def record(self) -> list[list[OpCall]]:
        """The calls of ops of each layer, on tensors that a run after `reset` may use again."""
        self.reset()
        return [self._recorded(layer) for layer in self.layers]

    def check(self) -> None:
        """The step's misses, order of positions, and some rows against the reference."""
        self.reset()
        for layer in self.layers:
            outputs = self.run_layer(layer)
            plan = self._step.groups[layer].plan
            assert plan is not None
            positions = outputs.topk_indices
            counts = plan.miss_count - (positions >= self._start).sum(1).int()  # of the host's rows
            check_equal("misses", counts, torch.full_like(counts, self._misses))
            check_equal("positions", positions, self._selected[layer])
            check_ascending("positions", outputs.topk_indices)
            self._check_attention(layer, outputs)

    def close(self) -> None:
        """Gives everything back; no recorded call may be held any more."""
        self._outputs, self._step.held = [], []
        self._step.groups[:] = []
        gc.collect()
        self._sidecar._step = None  # its host state has been moved about: nothing to put back
        self._sidecar.close()

    def _open(self) -> list[int]:
        """The prompt and its forks, one token short of the step before the open one."""
        length = self._start - 1
        first = self._sidecar.open(length, 2)
        done = 0
        while done < length:
            count = min(_CHUNK_ROWS, length - done)
            self._run_step([(first, count)], "prefill", count)
            done += count
        return [first, *(self._sidecar.fork(first, length, 2) for _ in range(1, self.batch))]

    def _run_step(self, rows: list[tuple[int, int]], kind: StepKind, count: int) -> None:
        self._sidecar.begin_step(rows, kind)
        for layer in self.layers:
            self._sidecar.run_layer(layer, self._random_inputs(count, 1))
        self._sidecar.commit_step()

    def _random_inputs(self, rows: int, heads: int) -> LayerInputs:
        index_q, index_weights = index_queries(rows, INDEX_HEADS)
        normal = partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        return LayerInputs(
            query=normal(rows, heads, QUERY_DIM),
            kv=normal(rows, QUERY_DIM),
            index_q=index_q,
            index_weights=index_weights,
            index_k=normal(rows, index_q.shape[2]),
        )

    def _queries(self, heads: int) -> torch.Tensor:
        return torch.randn(self.batch, heads, QUERY_DIM, device="cuda", dtype=torch.bfloat16)

    def _fill(self, layer: int, wanted: Wanted) -> None:
        """Slots and the rows in them, as on the host."""
        device, ranges = self._tiers.device, self._step.hot_ranges
        state, slots = device.hot[layer], self._slots_each
        fill_slots(state, ranges, slots, wanted, int(self._step.select_stamps[0]))
        where = ranges.slot_base[:, None] + torch.arange(slots, device=ranges.slot_base.device)
        for some in torch.arange(self.batch, device=where.device).split(8):
            ids = self._host_rows(some, state.slot_item[where[some]])
            host_rows = self._tiers.host.kv_rows[layer]
            device.hot_rows[layer][where[some]] = host_rows[ids]

    @property
    def _slots_each(self) -> int:
        return min(sequence.ranges.slot_count for sequence in self._step.sequences)

    def _save(self) -> None:
        device = self._tiers.device
        self._saved = [
            {name: tensor.clone() for name, tensor in vars(state).items()}
            | {"open_sums": sums.clone()}
            for state, sums in zip(device.hot, device.open_sums, strict=True)
        ]

    def _recorded(self, layer: int) -> list[OpCall]:
        recorder = Recorder(self._tiers.ops)
        tiers = replace(self._tiers, ops=recorder.ops)
        sidecar = self._sidecar
        pipeline = LayerPipeline(tiers, sidecar._traffic, sidecar._policy)
        with torch.no_grad():
            pipeline.run_layer(self._step, layer, self._inputs[layer])
        return recorder.calls

    def _host_rows(self, some: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[some, n] int64, host row of each position of the sequences."""
        pages = self._step.page_table[some].gather(1, positions.long() // PAGE_TOKENS)
        return pages.long() * PAGE_TOKENS + positions % PAGE_TOKENS

    def _check_attention(self, layer: int, outputs: LayerOutputs) -> None:
        some = sample_rows(self.batch)
        ids = self._host_rows(some, outputs.topk_indices[some]).int()
        query, layout = self._inputs[layer].query[some], self._sidecar.config.kv
        expected = sparse_mla_ref(query, self._tiers.host.kv_rows[layer], ids, layout, SCALE)
        check_near("out", outputs.out[some], expected[0], ATTENTION)
        check_near("lse", outputs.lse[some], expected[1], LSE)


class Worlds:
    """One world at a time: of another batch than the last one's it is made anew."""

    def __init__(self) -> None:
        self._world: World | None = None

    def of(self, batch: int) -> World:
        """The world of a batch."""
        if self._world is None or self._world.batch != batch:
            self.close()
            self._world = World(batch)
        return self._world

    def close(self) -> None:
        """Closes the world, if there is one."""
        world, self._world = self._world, None
        if world is not None:
            world.close()


def _config(batch: int) -> SidecarConfig:
    layers, pages = num_layers(batch), CONTEXT // PAGE_TOKENS
    return SidecarConfig(
        model=ModelShape(layers, tuple(range(layers)), INDEX_HEADS, TOPK, SCALE),
        host_pages=pages * (batch + 1) // 2 + pages + 2 * batch,  # tables take twice as many tokens
        max_sequences=batch,
        device=_DEVICE,
        backend=_BACKEND,
        window_blocks=CONTEXT // _BLOCK_TOKENS + 1,
        stage_rows=CONTEXT,
        block_tokens=_BLOCK_TOKENS,
        selection=SelectionConfig("hisa", num_kept_blocks=KEPT, gate="off"),
    )
