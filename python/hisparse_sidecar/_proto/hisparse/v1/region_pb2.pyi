from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class CreateRegionRequest(_message.Message):
    __slots__ = ("num_bytes", "huge_pages")
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGES_FIELD_NUMBER: _ClassVar[int]
    num_bytes: int
    huge_pages: bool
    def __init__(self, num_bytes: _Optional[int] = ..., huge_pages: bool = ...) -> None: ...

class CreateRegionResponse(_message.Message):
    __slots__ = ("region_id", "num_bytes", "region_token", "huge_pages")
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    REGION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGES_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    num_bytes: int
    region_token: str
    huge_pages: bool
    def __init__(self, region_id: _Optional[int] = ..., num_bytes: _Optional[int] = ..., region_token: _Optional[str] = ..., huge_pages: bool = ...) -> None: ...

class CloseRegionRequest(_message.Message):
    __slots__ = ("region_id",)
    REGION_ID_FIELD_NUMBER: _ClassVar[int]
    region_id: int
    def __init__(self, region_id: _Optional[int] = ...) -> None: ...

class CloseRegionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
