"""What a sequence is opened with."""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from hisparse_sidecar.config import SelectionConfig, SidecarConfig
from hisparse_sidecar.requirements import require


class OpenOptions(TypedDict, total=False):
    """Keywords of every call that opens a sequence; what is left out or None is as configured.

    Attributes:
        selection: how its top-k is found.
        hot_slots: KV rows on the device, a layer.
        window_blocks: index-key blocks on the device, an anchor layer.
    """

    selection: SelectionConfig | None
    hot_slots: int | None
    window_blocks: int | None


class DeviceSlots(TypedDict):
    """Ranges of the device that a sequence is given."""

    slots: int
    window_slots: int


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

    @classmethod
    def of(
        cls,
        config: SidecarConfig,
        selection: SelectionConfig | None,
        hot_slots: int | None,
        window_blocks: int | None,
    ) -> "SequenceOptions":
        """What was asked for, the rest as configured; InvalidArgument unless it fits the model."""
        options = cls(
            selection or config.selection,
            config.default_hot_slots if hot_slots is None else hot_slots,
            config.window_blocks if window_blocks is None else window_blocks,
        )
        options.check_for(config)
        return options

    @classmethod
    def of_open(cls, config: SidecarConfig, options: OpenOptions) -> "SequenceOptions":
        """As `of`, from the keywords of a call."""
        names = ("selection", "hot_slots", "window_blocks")
        return cls.of(config, *(options.get(name) for name in names))  # type: ignore[arg-type]

    def check_for(self, config: SidecarConfig) -> None:
        """Raises InvalidArgument unless the selection and the slots fit the model."""
        self.selection.check_for(config.model, config.block_tokens)
        needed = config.model.topk * config.max_step_rows
        message = f"hot_slots is {self.hot_slots}, topk * max_step_rows needs {needed}"
        require(self.hot_slots >= needed, message)
        require(self.window_blocks >= 1, f"window_blocks is {self.window_blocks}, must be >= 1")

    def device_slots(self, config: SidecarConfig) -> DeviceSlots:
        """What the core is asked for."""
        return DeviceSlots(
            slots=self.hot_slots,
            window_slots=self.window_blocks + config.touched_blocks,
        )


@dataclass(frozen=True)
class AdmittedSequence:
    """A sequence that the core has opened, and that has nothing on the device yet.

    Attributes:
        sequence: its handle.
        cached_tokens: what it has of its prompt; None where no prompt was told.
        options: what it was opened with.
    """

    sequence: int
    cached_tokens: int | None
    options: SequenceOptions


class OpenedPrompt(NamedTuple):
    """A sequence, and how many tokens it has already of its prompt."""

    sequence: int
    cached_tokens: int
