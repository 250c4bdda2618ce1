from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IndexSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INDEX_SOURCE_UNSPECIFIED: _ClassVar[IndexSource]
    INDEX_SOURCE_FLAT: _ClassVar[IndexSource]
    INDEX_SOURCE_HISA: _ClassVar[IndexSource]
    INDEX_SOURCE_MISA: _ClassVar[IndexSource]
    INDEX_SOURCE_MISA_DAGGER: _ClassVar[IndexSource]
    INDEX_SOURCE_GIVEN: _ClassVar[IndexSource]
INDEX_SOURCE_UNSPECIFIED: IndexSource
INDEX_SOURCE_FLAT: IndexSource
INDEX_SOURCE_HISA: IndexSource
INDEX_SOURCE_MISA: IndexSource
INDEX_SOURCE_MISA_DAGGER: IndexSource
INDEX_SOURCE_GIVEN: IndexSource

class Selection(_message.Message):
    __slots__ = ("index_source", "num_kept_blocks", "routed_heads", "candidates")
    INDEX_SOURCE_FIELD_NUMBER: _ClassVar[int]
    NUM_KEPT_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ROUTED_HEADS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    index_source: IndexSource
    num_kept_blocks: int
    routed_heads: int
    candidates: int
    def __init__(self, index_source: _Optional[_Union[IndexSource, str]] = ..., num_kept_blocks: _Optional[int] = ..., routed_heads: _Optional[int] = ..., candidates: _Optional[int] = ...) -> None: ...
