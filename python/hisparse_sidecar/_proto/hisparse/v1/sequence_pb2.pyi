from hisparse_sidecar._proto.hisparse.v1 import selection_pb2 as _selection_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenSequenceRequest(_message.Message):
    __slots__ = ("prompt_tokens", "max_new_tokens", "selection", "hot_slots", "window_blocks", "token_ids", "tenant")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    HOT_SLOTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    max_new_tokens: int
    selection: _selection_pb2.Selection
    hot_slots: int
    window_blocks: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    tenant: str
    def __init__(self, prompt_tokens: _Optional[int] = ..., max_new_tokens: _Optional[int] = ..., selection: _Optional[_Union[_selection_pb2.Selection, _Mapping]] = ..., hot_slots: _Optional[int] = ..., window_blocks: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., tenant: _Optional[str] = ...) -> None: ...

class OpenSequenceResponse(_message.Message):
    __slots__ = ("sequence_id", "cached_tokens")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    cached_tokens: int
    def __init__(self, sequence_id: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class ForkSequenceRequest(_message.Message):
    __slots__ = ("sequence_id", "length_tokens", "max_new_tokens")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    length_tokens: int
    max_new_tokens: int
    def __init__(self, sequence_id: _Optional[int] = ..., length_tokens: _Optional[int] = ..., max_new_tokens: _Optional[int] = ...) -> None: ...

class ForkSequenceResponse(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class TruncateSequenceRequest(_message.Message):
    __slots__ = ("sequence_id", "length_tokens")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    LENGTH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    length_tokens: int
    def __init__(self, sequence_id: _Optional[int] = ..., length_tokens: _Optional[int] = ...) -> None: ...

class TruncateSequenceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetSequenceBytesRequest(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class GetSequenceBytesResponse(_message.Message):
    __slots__ = ("held",)
    HELD_FIELD_NUMBER: _ClassVar[int]
    held: TierBytes
    def __init__(self, held: _Optional[_Union[TierBytes, _Mapping]] = ...) -> None: ...

class TierBytes(_message.Message):
    __slots__ = ("hot_buffer", "block_window", "pooled_keys", "hot_tables", "host", "window_tables")
    HOT_BUFFER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_WINDOW_FIELD_NUMBER: _ClassVar[int]
    POOLED_KEYS_FIELD_NUMBER: _ClassVar[int]
    HOT_TABLES_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TABLES_FIELD_NUMBER: _ClassVar[int]
    hot_buffer: int
    block_window: int
    pooled_keys: int
    hot_tables: int
    host: int
    window_tables: int
    def __init__(self, hot_buffer: _Optional[int] = ..., block_window: _Optional[int] = ..., pooled_keys: _Optional[int] = ..., hot_tables: _Optional[int] = ..., host: _Optional[int] = ..., window_tables: _Optional[int] = ...) -> None: ...

class PreemptSequenceRequest(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class PreemptSequenceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeSequenceRequest(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class ResumeSequenceResponse(_message.Message):
    __slots__ = ("length_tokens",)
    LENGTH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    length_tokens: int
    def __init__(self, length_tokens: _Optional[int] = ...) -> None: ...

class CloseSequenceRequest(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class CloseSequenceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
