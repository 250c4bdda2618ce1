"""SelectionConfig as a message, and back."""

from typing import cast

from hisparse_sidecar._proto.hisparse.v1 import selection_pb2
from hisparse_sidecar.config import Budget, GateMode, IndexSource, RoutedStages, SelectionConfig
from hisparse_sidecar.errors import InvalidArgument

_PREFIX, _BUDGET_PREFIX, _GATE_PREFIX = "INDEX_SOURCE_", "BUDGET_", "GATE_"
_STAGES_PREFIX = "ROUTED_STAGES_"
_NUMBERS = (
    "num_kept_blocks",
    "routed_heads",
    "candidates",
    "max_blocks",
    "tail_share",
    "audit_one_in",
)


def encode_selection(selection: SelectionConfig) -> selection_pb2.Selection:
    """Every field set."""
    return selection_pb2.Selection(
        index_source=_PREFIX + selection.index_source.upper(),
        budget=_BUDGET_PREFIX + selection.budget.upper(),
        gate=_GATE_PREFIX + selection.gate.upper(),
        routed_stages=_STAGES_PREFIX + selection.routed_stages.upper(),
        **{name: getattr(selection, name) for name in _NUMBERS},
    )


def decode_selection(message: selection_pb2.Selection, default: SelectionConfig) -> SelectionConfig:
    """The selection, with the value of `default` where the message leaves one unset.

    Raises:
        InvalidArgument: the index source is unset, a name is unknown, or a number is out of range.
    """
    known = selection_pb2.IndexSource.values()[1:]
    if message.index_source not in known:
        found = int(message.index_source)
        raise InvalidArgument(f"index_source is number {found}, needs one of {known}")
    name = selection_pb2.IndexSource.Name(message.index_source).removeprefix(_PREFIX).lower()
    numbers = {
        name: getattr(message if message.HasField(name) else default, name) for name in _NUMBERS
    }
    of_hisa = default if name == "hisa" else SelectionConfig()  # others know no budget, no stages
    return SelectionConfig(
        index_source=cast(IndexSource, name),
        budget=_budget(message.budget) or of_hisa.budget,
        gate=_gate(message.gate) or default.gate,
        routed_stages=_stages(message.routed_stages) or of_hisa.routed_stages,
        **numbers,
    )


def _budget(number: selection_pb2.Budget) -> Budget | None:
    known = selection_pb2.Budget.values()
    if number not in known:
        raise InvalidArgument(f"budget is number {int(number)}, needs one of {known}")
    name = selection_pb2.Budget.Name(number).removeprefix(_BUDGET_PREFIX).lower()
    return cast(Budget, name) if number else None


def _gate(number: selection_pb2.Gate) -> GateMode | None:
    known = selection_pb2.Gate.values()
    if number not in known:
        raise InvalidArgument(f"gate is number {int(number)}, needs one of {known}")
    name = selection_pb2.Gate.Name(number).removeprefix(_GATE_PREFIX).lower()
    return cast(GateMode, name) if number else None


def _stages(number: selection_pb2.RoutedStages) -> RoutedStages | None:
    known = selection_pb2.RoutedStages.values()
    if number not in known:
        raise InvalidArgument(f"routed_stages is number {int(number)}, needs one of {known}")
    name = selection_pb2.RoutedStages.Name(number).removeprefix(_STAGES_PREFIX).lower()
    return cast(RoutedStages, name) if number else None
