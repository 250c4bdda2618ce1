from hisparse_sidecar._proto.hisparse.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_KIND_UNSPECIFIED: _ClassVar[StepKind]
    STEP_KIND_DECODE: _ClassVar[StepKind]
    STEP_KIND_PREFILL: _ClassVar[StepKind]

class StepOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_OUTCOME_UNSPECIFIED: _ClassVar[StepOutcome]
    STEP_OUTCOME_COMMIT: _ClassVar[StepOutcome]
    STEP_OUTCOME_ABORT: _ClassVar[StepOutcome]
STEP_KIND_UNSPECIFIED: StepKind
STEP_KIND_DECODE: StepKind
STEP_KIND_PREFILL: StepKind
STEP_OUTCOME_UNSPECIFIED: StepOutcome
STEP_OUTCOME_COMMIT: StepOutcome
STEP_OUTCOME_ABORT: StepOutcome

class BeginStepRequest(_message.Message):
    __slots__ = ("rows", "kind", "padded_rows", "token_ids")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PADDED_ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[SequenceRows]
    kind: StepKind
    padded_rows: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, rows: _Optional[_Iterable[_Union[SequenceRows, _Mapping]]] = ..., kind: _Optional[_Union[StepKind, str]] = ..., padded_rows: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class SequenceRows(_message.Message):
    __slots__ = ("sequence_id", "num_rows")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    num_rows: int
    def __init__(self, sequence_id: _Optional[int] = ..., num_rows: _Optional[int] = ...) -> None: ...

class BeginStepResponse(_message.Message):
    __slots__ = ("step_id",)
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    def __init__(self, step_id: _Optional[int] = ...) -> None: ...

class RunLayerRequest(_message.Message):
    __slots__ = ("step_id", "layer", "inputs", "outputs")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    layer: int
    inputs: LayerInputRefs
    outputs: LayerOutputRefs
    def __init__(self, step_id: _Optional[int] = ..., layer: _Optional[int] = ..., inputs: _Optional[_Union[LayerInputRefs, _Mapping]] = ..., outputs: _Optional[_Union[LayerOutputRefs, _Mapping]] = ...) -> None: ...

class LayerInputRefs(_message.Message):
    __slots__ = ("query", "kv", "index_q", "index_weights", "index_k", "topk_indices", "sink")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    INDEX_Q_FIELD_NUMBER: _ClassVar[int]
    INDEX_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    INDEX_K_FIELD_NUMBER: _ClassVar[int]
    TOPK_INDICES_FIELD_NUMBER: _ClassVar[int]
    SINK_FIELD_NUMBER: _ClassVar[int]
    query: _tensor_pb2.TensorRef
    kv: _tensor_pb2.TensorRef
    index_q: _tensor_pb2.TensorRef
    index_weights: _tensor_pb2.TensorRef
    index_k: _tensor_pb2.TensorRef
    topk_indices: _tensor_pb2.TensorRef
    sink: _tensor_pb2.TensorRef
    def __init__(self, query: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., kv: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., index_q: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., index_weights: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., index_k: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., topk_indices: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., sink: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ...) -> None: ...

class LayerOutputRefs(_message.Message):
    __slots__ = ("out", "lse", "topk_indices")
    OUT_FIELD_NUMBER: _ClassVar[int]
    LSE_FIELD_NUMBER: _ClassVar[int]
    TOPK_INDICES_FIELD_NUMBER: _ClassVar[int]
    out: _tensor_pb2.TensorRef
    lse: _tensor_pb2.TensorRef
    topk_indices: _tensor_pb2.TensorRef
    def __init__(self, out: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., lse: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ..., topk_indices: _Optional[_Union[_tensor_pb2.TensorRef, _Mapping]] = ...) -> None: ...

class RunLayerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunLayersRequest(_message.Message):
    __slots__ = ("layer",)
    LAYER_FIELD_NUMBER: _ClassVar[int]
    layer: RunLayerRequest
    def __init__(self, layer: _Optional[_Union[RunLayerRequest, _Mapping]] = ...) -> None: ...

class RunLayersResponse(_message.Message):
    __slots__ = ("done", "refused")
    DONE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    done: RunLayerResponse
    refused: Refusal
    def __init__(self, done: _Optional[_Union[RunLayerResponse, _Mapping]] = ..., refused: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("status_code", "error", "message")
    STATUS_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    status_code: int
    error: str
    message: str
    def __init__(self, status_code: _Optional[int] = ..., error: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class EndStepRequest(_message.Message):
    __slots__ = ("step_id", "outcome")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    outcome: StepOutcome
    def __init__(self, step_id: _Optional[int] = ..., outcome: _Optional[_Union[StepOutcome, str]] = ...) -> None: ...

class EndStepResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
