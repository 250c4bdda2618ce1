"""The order of the steps: what happens to one layer of a decode step or of a prefill chunk."""

import torch

from hisparse_kernels.sparse_mla import AttentionOptions, empty_results
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.pipeline.block_window import BlockWindow
from hisparse_sidecar.pipeline.index_keys import LayerIndexKeys
from hisparse_sidecar.pipeline.index_rows import LayerIndexRows
from hisparse_sidecar.pipeline.kv_rows import LayerKvRows
from hisparse_sidecar.selection import SelectionQuery
from hisparse_sidecar.selection.policy import SelectionPolicy
from hisparse_sidecar.stats import GroupTraffic
from hisparse_sidecar.step.checks import check_inputs
from hisparse_sidecar.step.step import Step
from hisparse_sidecar.tiers.tiers import Tiers


class LayerPipeline:
    """Runs layers of a step over the tiers; holds no state of its own."""

    def __init__(self, tiers: Tiers, traffic: list[GroupTraffic], policy: SelectionPolicy) -> None:
        self._tiers, self._traffic, self._policy = tiers, traffic, policy

    def run_layer(self, step: Step, layer: int, inputs: LayerInputs) -> LayerOutputs:
        """Appends the rows of `layer`, selects, brings the selected rows in, attends.

        On CUDA, with the Triton backend and inputs that are there, a decode step without given
        positions never waits for the device: whether the index inputs are finite, and what moved,
        is looked at when the step ends (`StepWatch`).

        Raises:
            InvalidArgument: a shape, dtype or position does not fit; nothing has changed.
            WrongState: the layer ran already, or its anchor has not.
        """
        config, model = self._tiers.config, self._tiers.config.model
        if not 0 <= layer < model.num_layers:
            raise InvalidArgument(
                f"layer is {layer}, the model has layers 0..{model.num_layers - 1}"
            )
        step.enter_layer(layer, model.anchor_of[layer])
        check_inputs(config, step, layer, inputs)
        traffic = self._traffic[model.group(layer)]
        kv_rows = LayerKvRows(self._tiers, step, layer, traffic)
        run = self._decode if step.kind == "decode" else self._prefill
        out, lse = run(step, layer, inputs, kv_rows)
        step.layers_done.add(layer)
        topk_indices = kv_rows.shared.topk_indices
        assert topk_indices is not None
        return LayerOutputs(out, lse, topk_indices)

    def note_layer(self, step: Step, layer: int) -> None:
        """What `run_layer` of a decode step leaves with the host, where a graph does the rest.

        Raises:
            WrongState: see `run_layer`.
        """
        model = self._tiers.config.model
        step.enter_layer(layer, model.anchor_of[layer])
        traffic = self._traffic[model.group(layer)]
        if model.is_anchor(layer):
            index_rows = self._index_rows(step, layer)
            index_rows.check_complete()
            index_rows.end()
        LayerKvRows(self._tiers, step, layer, traffic).count_appended()
        step.layers_done.add(layer)

    def load_windows(self, step: Step) -> None:
        """Gives every block of a decode step's sequences a window slot, where there is room."""
        for group, traffic in enumerate(self._traffic):
            BlockWindow(self._tiers, step, group, traffic).load()

    def join_side(self) -> None:
        """What is launched from now on begins after what layers left beside them is done."""
        self._tiers.side.join()

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self._tiers.config.model.num_layers

    @property
    def device(self) -> torch.device:
        """Where the layers run."""
        return self._tiers.device.device

    @property
    def gate_epoch(self) -> int:
        """Of the table that chooses between flat and HISA: with it, the path may change."""
        return self._policy.gate.epoch

    def _decode(
        self, step: Step, layer: int, inputs: LayerInputs, kv_rows: LayerKvRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        index = None
        if inputs.index_k is not None:
            index_rows = self._index_rows(step, layer)
            index = index_rows.begin(inputs)
        packed = kv_rows.append(inputs.kv, index)
        if index is not None:
            index_rows.end()
            step.watch.see_largest(layer, index)
        self._select(step, layer, inputs)
        return self._attend_selected(kv_rows, packed, inputs)

    def _prefill(
        self, step: Step, layer: int, inputs: LayerInputs, kv_rows: LayerKvRows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if inputs.query.is_cuda:
            step.watch.see_inputs(layer, inputs)
        kv_rows.append_chunk(inputs.kv)
        if inputs.index_k is not None:
            self._index_rows(step, layer).append_chunk(inputs.index_k)
        self._select(step, layer, inputs)
        results = self._attend_staged(step, kv_rows, inputs)
        kv_rows.warm_up()
        return results

    # -- selection ----------------------------------------------------------------------------

    def _index_rows(self, step: Step, layer: int) -> LayerIndexRows:
        group = self._tiers.config.model.group(layer)
        return LayerIndexRows(self._tiers, step, group, self._traffic[group])

    def _select(self, step: Step, layer: int, inputs: LayerInputs) -> None:
        """Leaves the selection of the group in the step, if the layer is its anchor."""
        model = self._tiers.config.model
        if not model.is_anchor(layer):
            return
        group = model.group(layer)
        keys = LayerIndexKeys(self._tiers, step, group, self._traffic[group])
        step.groups[group].topk_indices = self._selected(step, layer, keys, inputs)

    def _selected(
        self, step: Step, layer: int, keys: LayerIndexKeys, inputs: LayerInputs
    ) -> torch.Tensor:
        """[rows, topk] int32; rows of sequences with different selections are done in turn."""
        result = None
        for selection, mine in step.selections:
            found = self._selected_by(selection, step, layer, keys, inputs, mine)
            if len(step.selections) == 1 and selection.index_source != "given":
                return found  # padding rows have selected nothing
            result = torch.where(mine[:, None], found, -1 if result is None else result)
        assert result is not None
        return result

    def _selected_by(
        self,
        selection: SelectionConfig,
        step: Step,
        layer: int,
        keys: LayerIndexKeys,
        inputs: LayerInputs,
        mine: torch.Tensor,
    ) -> torch.Tensor:
        if selection.index_source == "given":
            assert inputs.topk_indices is not None
            return inputs.topk_indices
        assert inputs.index_q is not None
        assert inputs.index_weights is not None
        query = SelectionQuery(
            inputs.index_q,
            inputs.index_weights,
            step.row_seq,
            step.row_pos,
            self._tiers.config.model.topk,
            step.row_block,
            step.row_end,
        )
        if len(step.selections) > 1:
            query = query.only(mine)
        return self._policy.select(step, layer, selection, query, keys)

    # -- attention ----------------------------------------------------------------------------

    def _attend_selected(
        self, kv_rows: LayerKvRows, packed: torch.Tensor, inputs: LayerInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hot_rows, slots, groups = kv_rows.swap_in(packed)
        query, split_keys = inputs.query, self._tiers.config.decode_split(inputs.query.shape[1])
        if len(groups) == 1:
            return self._attend(query, hot_rows, slots, inputs.sink, split_keys)
        out, lse = empty_results(query, self._tiers.config.kv)
        for group in groups:
            some, to = group.rows, (out[group.rows], lse[group.rows])
            group.ready.wait()
            self._attend(query[some], hot_rows, slots[some], inputs.sink, split_keys, to)
        return out, lse

    def _attend_staged(
        self, step: Step, kv_rows: LayerKvRows, inputs: LayerInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, heads = inputs.query.shape[:2]
        out = inputs.query.new_zeros(rows, heads, self._tiers.config.kv.latent_dim)
        lse = torch.full((rows, heads), float("-inf"), device=out.device)
        for number in range(len(step.sequences)):
            for group, stage, row_ids in kv_rows.staged(number):
                found = self._attend(inputs.query[group], stage, row_ids, inputs.sink)
                out[group], lse[group] = found
        return out, lse

    def _attend(
        self,
        query: torch.Tensor,
        rows: torch.Tensor,
        row_ids: torch.Tensor,
        sink: torch.Tensor | None,
        split_keys: int | None = None,
        out: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._tiers.config
        scale = config.model.softmax_scale
        options = AttentionOptions(sink=sink, split_keys=split_keys, out=out)
        return self._tiers.ops.sparse_mla(query, rows, row_ids, config.kv, scale, options)
