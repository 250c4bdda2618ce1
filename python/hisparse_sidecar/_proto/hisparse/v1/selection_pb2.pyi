from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Budget(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BUDGET_UNSPECIFIED: _ClassVar[Budget]
    BUDGET_FIXED: _ClassVar[Budget]
    BUDGET_RATIO: _ClassVar[Budget]
    BUDGET_ADAPTIVE: _ClassVar[Budget]

class RoutedStages(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTED_STAGES_UNSPECIFIED: _ClassVar[RoutedStages]
    ROUTED_STAGES_NONE: _ClassVar[RoutedStages]
    ROUTED_STAGES_BLOCKS: _ClassVar[RoutedStages]
    ROUTED_STAGES_TOKENS: _ClassVar[RoutedStages]
    ROUTED_STAGES_BOTH: _ClassVar[RoutedStages]

class Gate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GATE_UNSPECIFIED: _ClassVar[Gate]
    GATE_AUTO: _ClassVar[Gate]
    GATE_OFF: _ClassVar[Gate]

class IndexSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_SOURCE_UNSPECIFIED: _ClassVar[IndexSource]
    INDEX_SOURCE_FLAT: _ClassVar[IndexSource]
    INDEX_SOURCE_HISA: _ClassVar[IndexSource]
    INDEX_SOURCE_MISA: _ClassVar[IndexSource]
    INDEX_SOURCE_MISA_DAGGER: _ClassVar[IndexSource]
    INDEX_SOURCE_GIVEN: _ClassVar[IndexSource]
BUDGET_UNSPECIFIED: Budget
BUDGET_FIXED: Budget
BUDGET_RATIO: Budget
BUDGET_ADAPTIVE: Budget
ROUTED_STAGES_UNSPECIFIED: RoutedStages
ROUTED_STAGES_NONE: RoutedStages
ROUTED_STAGES_BLOCKS: RoutedStages
ROUTED_STAGES_TOKENS: RoutedStages
ROUTED_STAGES_BOTH: RoutedStages
GATE_UNSPECIFIED: Gate
GATE_AUTO: Gate
GATE_OFF: Gate
INDEX_SOURCE_UNSPECIFIED: IndexSource
INDEX_SOURCE_FLAT: IndexSource
INDEX_SOURCE_HISA: IndexSource
INDEX_SOURCE_MISA: IndexSource
INDEX_SOURCE_MISA_DAGGER: IndexSource
INDEX_SOURCE_GIVEN: IndexSource

class Selection(_message.Message):
    __slots__ = ("index_source", "num_kept_blocks", "routed_heads", "candidates", "budget", "max_blocks", "tail_share", "gate", "audit_one_in", "routed_stages")
    INDEX_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_KEPT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROUTED_HEADS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TAIL_SHARE_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_ONE_IN_FIELD_NUMBER: _ClassVar[int]
    ROUTED_STAGES_FIELD_NUMBER: _ClassVar[int]
    index_source: IndexSource
    num_kept_blocks: int
    routed_heads: int
    candidates: int
    budget: Budget
    max_blocks: int
    tail_share: float
    gate: Gate
    audit_one_in: int
    routed_stages: RoutedStages
    def __init__(self, index_source: _Optional[_Union[IndexSource, str]] = ..., num_kept_blocks: _Optional[int] = ..., routed_heads: _Optional[int] = ..., candidates: _Optional[int] = ..., budget: _Optional[_Union[Budget, str]] = ..., max_blocks: _Optional[int] = ..., tail_share: _Optional[float] = ..., gate: _Optional[_Union[Gate, str]] = ..., audit_one_in: _Optional[int] = ..., routed_stages: _Optional[_Union[RoutedStages, str]] = ...) -> None: ...
