"""Which selector carries out a selection in one layer of one step, and what is audited."""

import torch

from hisparse_sidecar.backends import find_device
from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.selection.audit import audit, audited_rows
from hisparse_sidecar.selection.contract import IndexKeys, SelectionQuery, Selector
from hisparse_sidecar.selection.flat import FlatSelector
from hisparse_sidecar.selection.gate import Gate, gpu_name
from hisparse_sidecar.selection.gate_table import Setting, find_table
from hisparse_sidecar.selection.profile import read_profile
from hisparse_sidecar.selection.registry import selector_for
from hisparse_sidecar.selection.row_groups import select_in_groups
from hisparse_sidecar.step.step import Step


class SelectionPolicy:
    """The selection of each layer: the profile, the gate, groups of rows, the audit.

    Attributes:
        gate: chooses between flat and HISA.
    """

    def __init__(self, config: SidecarConfig, gate: Gate) -> None:
        """Reads the layer profile.

        Raises:
            InvalidArgument: see `read_profile`.
        """
        self.gate = gate
        self._default, self._most_bytes = config.selection, config.max_logits_bytes
        self._model, self._block_tokens = config.model, config.block_tokens
        self._of_layer = read_profile(config)

    def select(
        self,
        step: Step,
        layer: int,
        asked: SelectionConfig,
        query: SelectionQuery,
        keys: IndexKeys,
    ) -> torch.Tensor:
        """[rows, topk] int32, token positions, ascending, -1 pads the tail.

        Args:
            step: the open step.
            layer: the anchor layer.
            asked: the selection of the sequences in `query`; not "given".
            query: every row of the step; those of other selections are padding.
            keys: index keys of the layer.
        """
        if keys.num_tokens <= query.topk:  # whatever the scores are
            return keys.all_positions(query)
        selection = self.selection_of(layer, asked)
        selector = self._selector(selection, query, keys)
        selected = select_in_groups(selector, query, keys, self._most_bytes)
        if not isinstance(selector, FlatSelector):
            for rows in audited_rows(step, asked, selection.audit_one_in):
                audit(query, keys, rows, selected, self._most_bytes)
        return selected

    def selection_of(self, layer: int, asked: SelectionConfig) -> SelectionConfig:
        """What `asked` means in a layer: the profile changes the default selection alone."""
        return self._of_layer.get(layer, asked) if asked == self._default else asked

    def _selector(
        self, selection: SelectionConfig, query: SelectionQuery, keys: IndexKeys
    ) -> Selector:
        model, kept = self._model, selection.num_kept_blocks
        setting = Setting(model.index_heads, kept, self._block_tokens, model.topk)
        call = selection, setting, keys.num_tokens, query.num_rows
        if self.gate.prefers_flat(*call) and keys.all_resident:
            keys.count("flat_calls", 1)
            return FlatSelector()
        return selector_for(selection)


def policy_for(config: SidecarConfig) -> SelectionPolicy:
    """The policy of a configuration, with the table that this machine has for its device.

    Raises:
        InvalidArgument: torch lacks the device, or the layer profile or the table does not fit: see
            `read_profile` and `find_table`.
    """
    return SelectionPolicy(config, Gate(find_table(gpu_name(find_device(config.device)))))
