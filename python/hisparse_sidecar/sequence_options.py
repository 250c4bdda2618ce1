"""What a sequence is opened with."""

from dataclasses import dataclass

from hisparse_sidecar.config import SelectionConfig, SidecarConfig, require


@dataclass(frozen=True)
class SequenceOptions:
    """How a sequence selects, and what it holds on the device.

    Attributes:
        selection: how its top-k is found.
        hot_slots: KV rows, a layer.
        window_blocks: index-key blocks, an anchor layer.
    """

    selection: SelectionConfig
    hot_slots: int
    window_blocks: int

    def check_for(self, config: SidecarConfig) -> None:
        """Raises InvalidArgument unless the selection and the slots fit the model."""
        self.selection.check_for(config.model, config.block_tokens)
        needed = config.model.topk * config.max_step_rows
        message = f"hot_slots is {self.hot_slots}, topk * max_step_rows needs {needed}"
        require(self.hot_slots >= needed, message)
        require(self.window_blocks >= 1, f"window_blocks is {self.window_blocks}, must be >= 1")

    def device_slots(self, config: SidecarConfig) -> tuple[int, int]:
        """Slots and window slots, those of a step's own rows included."""
        slots = self.hot_slots + config.max_step_rows
        return slots, self.window_blocks + config.touched_blocks
