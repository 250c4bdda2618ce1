"""The index rows that one anchor layer appends in a step: where they go, and what is pooled."""

import torch

from hisparse_kernels.append_rows import IndexSide
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.pipeline.block_window import BlockWindow
from hisparse_sidecar.stats import GroupTraffic
from hisparse_sidecar.step.step import Step
from hisparse_sidecar.tiers.tiers import Tiers


class LayerIndexRows:
    """New index rows of one anchor group during one step.

    In a decode step `begin` comes first, then `append_rows` with what it returned, then `end`. A
    prefill chunk is appended by `append_chunk`.
    """

    def __init__(self, tiers: Tiers, step: Step, group: int, traffic: GroupTraffic) -> None:
        self._tiers, self._step, self._group, self._traffic = tiers, step, group, traffic
        self._layout, self._block_tokens = tiers.config.index, tiers.config.block_tokens
        self._window = BlockWindow(tiers, step, group, traffic)
        self._host_pages = tiers.host.index_pages[group]
        self._host_pooled = tiers.host.pooled_rows[group]
        self._pooled_pages = tiers.device.pooled_pages[group]
        self._open_sums = tiers.device.open_sums[group]

    # -- decode -------------------------------------------------------------------------------

    def begin(self, inputs: LayerInputs) -> IndexSide:
        """What `append_rows` takes; the blocks that the rows lie in are in the window then.

        Raises:
            WrongState: an earlier token has no index row; nothing has changed.
        """
        self.check_complete()
        self._window.hold_touched()
        step, index_k = self._step, inputs.index_k
        assert index_k is not None
        selects = any(one.index_source != "given" for one, _ in step.selections)
        return IndexSide(
            index_k=index_k,
            index_q=inputs.index_q if selects else None,
            index_weights=inputs.index_weights if selects else None,
            largest=torch.empty(3, step.num_rows, device=index_k.device),
            window_pages=self._window.pages,
            slot_table=self._window.slot_table,
            window=step.window_ranges,
            host_pages=self._host_pages,
            host_pooled=self._host_pooled,
            open_sums=self._open_sums,
            state_rows=step.state_rows,
            pooled_pages=self._pooled_pages,
            pooled_base=step.pooled_base,
            block_tokens=self._block_tokens,
            layout=self._layout,
        )

    def end(self) -> None:
        """Counts the rows, which `append_rows` has written, in the core and in the traffic."""
        self._advance()
        spilled = self._step.num_spilled_rows + self._step.num_spilled_blocks
        self._traffic.spilled_bytes += spilled * self._layout.row_bytes

    def check_complete(self) -> None:
        """Raises WrongState unless every token before the step's rows has its index row."""
        for sequence in self._step.sequences:
            closed, open_tokens = self._tiers.manager.pooled_state(sequence.handle, self._group)
            found = closed * self._block_tokens + open_tokens
            if found != sequence.start:
                held = f"sequence {sequence.handle} has index keys of {found} tokens"
                raise WrongState(f"{held}, its new rows start at {sequence.start}")

    # -- prefill ------------------------------------------------------------------------------

    def append_chunk(self, index_k: torch.Tensor) -> None:
        """Writes the keys [rows, 128] of a chunk to the host, from where its tiles stream.

        Raises:
            WrongState: an earlier token has no index row; nothing has changed.
        """
        self.check_complete()
        self._forget_touched_blocks()
        step, index_rows = self._step, self._tiers.ops.pack_index_rows(index_k, self._layout)
        self._tiers.ops.append_index_rows(
            index_rows,
            step.host_row_ids,
            self._host_pages,
            step.row_seq,
            step.row_pos,
            self._open_sums,
            step.state_rows,
            self._pooled_pages,
            step.pooled_base,
            self._block_tokens,
            self._layout,
        )
        self._advance()
        self._traffic.spilled_bytes += step.num_spilled_rows * self._layout.row_bytes
        self._spill_closed_blocks()

    def _forget_touched_blocks(self) -> None:
        self._window.forget_loaded(self._step.sequences)
        state, ranges = self._tiers.device.window[self._group], self._step.window_ranges
        for number, sequence in enumerate(self._step.sequences):
            first = sequence.start // self._block_tokens
            self._tiers.ops.release_items(state, ranges, number, first)

    def _spill_closed_blocks(self) -> None:
        step = self._step
        if not step.closed_rows.numel():
            return
        rows = self._tiers.ops.read_index_rows(self._pooled_pages, step.closed_rows, self._layout)
        self._tiers.ops.spill(rows, step.closed_pages, self._host_pooled)
        self._traffic.spilled_bytes += step.num_spilled_blocks * self._layout.row_bytes

    # -- the core -----------------------------------------------------------------------------

    def _advance(self) -> None:
        for sequence in self._step.sequences:
            self._tiers.manager.advance_pooled(sequence.handle, self._group, sequence.num_rows)
