from hisparse_sidecar._proto.hisparse.v1 import selection_pb2 as _selection_pb2
from hisparse_sidecar._proto.hisparse.v1 import sequence_pb2 as _sequence_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TierCondition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TIER_CONDITION_UNSPECIFIED: _ClassVar[TierCondition]
    TIER_CONDITION_SERVING: _ClassVar[TierCondition]
    TIER_CONDITION_DEGRADED: _ClassVar[TierCondition]
    TIER_CONDITION_FULL: _ClassVar[TierCondition]
TIER_CONDITION_UNSPECIFIED: TierCondition
TIER_CONDITION_SERVING: TierCondition
TIER_CONDITION_DEGRADED: TierCondition
TIER_CONDITION_FULL: TierCondition

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "core_version", "backend", "config", "row_sizes", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CORE_VERSION_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    ROW_SIZES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    core_version: str
    backend: str
    config: SidecarConfig
    row_sizes: RowSizes
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., core_version: _Optional[str] = ..., backend: _Optional[str] = ..., config: _Optional[_Union[SidecarConfig, _Mapping]] = ..., row_sizes: _Optional[_Union[RowSizes, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class SidecarConfig(_message.Message):
    __slots__ = ("model", "host_pages", "max_sequences", "kv_layout", "index_layout", "device", "backend", "hot_slots", "window_blocks", "max_step_rows", "stage_rows", "block_tokens", "max_logits_bytes", "selection", "huge_pages", "numa_node", "layer_profile", "tiers", "split_keys", "warm_rows", "overlap_rows")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    INDEX_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    HOT_SLOTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_ROWS_FIELD_NUMBER: _ClassVar[int]
    STAGE_ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGITS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    HUGE_PAGES_FIELD_NUMBER: _ClassVar[int]
    NUMA_NODE_FIELD_NUMBER: _ClassVar[int]
    LAYER_PROFILE_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_KEYS_FIELD_NUMBER: _ClassVar[int]
    WARM_ROWS_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_ROWS_FIELD_NUMBER: _ClassVar[int]
    model: ModelShape
    host_pages: int
    max_sequences: int
    kv_layout: str
    index_layout: str
    device: str
    backend: str
    hot_slots: int
    window_blocks: int
    max_step_rows: int
    stage_rows: int
    block_tokens: int
    max_logits_bytes: int
    selection: _selection_pb2.Selection
    huge_pages: bool
    numa_node: int
    layer_profile: str
    tiers: TiersConfig
    split_keys: int
    warm_rows: int
    overlap_rows: int
    def __init__(self, model: _Optional[_Union[ModelShape, _Mapping]] = ..., host_pages: _Optional[int] = ..., max_sequences: _Optional[int] = ..., kv_layout: _Optional[str] = ..., index_layout: _Optional[str] = ..., device: _Optional[str] = ..., backend: _Optional[str] = ..., hot_slots: _Optional[int] = ..., window_blocks: _Optional[int] = ..., max_step_rows: _Optional[int] = ..., stage_rows: _Optional[int] = ..., block_tokens: _Optional[int] = ..., max_logits_bytes: _Optional[int] = ..., selection: _Optional[_Union[_selection_pb2.Selection, _Mapping]] = ..., huge_pages: bool = ..., numa_node: _Optional[int] = ..., layer_profile: _Optional[str] = ..., tiers: _Optional[_Union[TiersConfig, _Mapping]] = ..., split_keys: _Optional[int] = ..., warm_rows: _Optional[int] = ..., overlap_rows: _Optional[int] = ...) -> None: ...

class TiersConfig(_message.Message):
    __slots__ = ("file_directory", "file_bytes", "segment_bytes", "strict_recovery", "remote_master", "remote_segment_bytes", "secret_file", "model_name", "free_share", "io_threads", "staging_bytes", "load_seconds", "call_seconds", "probe_seconds", "recompute_tokens_per_second")
    FILE_DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRICT_RECOVERY_FIELD_NUMBER: _ClassVar[int]
    REMOTE_MASTER_FIELD_NUMBER: _ClassVar[int]
    REMOTE_SEGMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECRET_FILE_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    FREE_SHARE_FIELD_NUMBER: _ClassVar[int]
    IO_THREADS_FIELD_NUMBER: _ClassVar[int]
    STAGING_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PROBE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    file_directory: str
    file_bytes: int
    segment_bytes: int
    strict_recovery: bool
    remote_master: str
    remote_segment_bytes: int
    secret_file: str
    model_name: str
    free_share: float
    io_threads: int
    staging_bytes: int
    load_seconds: float
    call_seconds: float
    probe_seconds: float
    recompute_tokens_per_second: float
    def __init__(self, file_directory: _Optional[str] = ..., file_bytes: _Optional[int] = ..., segment_bytes: _Optional[int] = ..., strict_recovery: bool = ..., remote_master: _Optional[str] = ..., remote_segment_bytes: _Optional[int] = ..., secret_file: _Optional[str] = ..., model_name: _Optional[str] = ..., free_share: _Optional[float] = ..., io_threads: _Optional[int] = ..., staging_bytes: _Optional[int] = ..., load_seconds: _Optional[float] = ..., call_seconds: _Optional[float] = ..., probe_seconds: _Optional[float] = ..., recompute_tokens_per_second: _Optional[float] = ...) -> None: ...

class ModelShape(_message.Message):
    __slots__ = ("num_layers", "anchor_of", "index_heads", "topk", "softmax_scale")
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    ANCHOR_OF_FIELD_NUMBER: _ClassVar[int]
    INDEX_HEADS_FIELD_NUMBER: _ClassVar[int]
    TOPK_FIELD_NUMBER: _ClassVar[int]
    SOFTMAX_SCALE_FIELD_NUMBER: _ClassVar[int]
    num_layers: int
    anchor_of: _containers.RepeatedScalarFieldContainer[int]
    index_heads: int
    topk: int
    softmax_scale: float
    def __init__(self, num_layers: _Optional[int] = ..., anchor_of: _Optional[_Iterable[int]] = ..., index_heads: _Optional[int] = ..., topk: _Optional[int] = ..., softmax_scale: _Optional[float] = ...) -> None: ...

class RowSizes(_message.Message):
    __slots__ = ("kv_row_bytes", "index_row_bytes", "query_dim", "latent_dim", "page_tokens")
    KV_ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    INDEX_ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUERY_DIM_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    kv_row_bytes: int
    index_row_bytes: int
    query_dim: int
    latent_dim: int
    page_tokens: int
    def __init__(self, kv_row_bytes: _Optional[int] = ..., index_row_bytes: _Optional[int] = ..., query_dim: _Optional[int] = ..., latent_dim: _Optional[int] = ..., page_tokens: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_region_bytes", "max_regions", "max_message_bytes", "max_call_seconds", "max_step_idle_seconds", "max_silent_seconds")
    MAX_REGION_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REGIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    max_region_bytes: int
    max_regions: int
    max_message_bytes: int
    max_call_seconds: float
    max_step_idle_seconds: float
    max_silent_seconds: float
    def __init__(self, max_region_bytes: _Optional[int] = ..., max_regions: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_call_seconds: _Optional[float] = ..., max_step_idle_seconds: _Optional[float] = ..., max_silent_seconds: _Optional[float] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("core", "groups", "steps", "aborted_steps", "held", "tiers", "tenants", "degraded", "ended_clients", "engines")
    CORE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ABORTED_STEPS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    ENDED_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    ENGINES_FIELD_NUMBER: _ClassVar[int]
    core: CoreStats
    groups: _containers.RepeatedCompositeFieldContainer[GroupTraffic]
    steps: int
    aborted_steps: int
    held: _sequence_pb2.TierBytes
    tiers: _containers.RepeatedCompositeFieldContainer[TierState]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    degraded: bool
    ended_clients: int
    engines: _containers.RepeatedCompositeFieldContainer[EngineStats]
    def __init__(self, core: _Optional[_Union[CoreStats, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupTraffic, _Mapping]]] = ..., steps: _Optional[int] = ..., aborted_steps: _Optional[int] = ..., held: _Optional[_Union[_sequence_pb2.TierBytes, _Mapping]] = ..., tiers: _Optional[_Iterable[_Union[TierState, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ..., degraded: bool = ..., ended_clients: _Optional[int] = ..., engines: _Optional[_Iterable[_Union[EngineStats, _Mapping]]] = ...) -> None: ...

class EngineStats(_message.Message):
    __slots__ = ("engine", "rank", "pid", "is_alive", "age_seconds", "core", "groups", "held", "steps", "refused", "requests", "prompt_rows_total", "prompt_rows_free", "selections")
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    IS_ALIVE_FIELD_NUMBER: _ClassVar[int]
    AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CORE_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_ROWS_FREE_FIELD_NUMBER: _ClassVar[int]
    SELECTIONS_FIELD_NUMBER: _ClassVar[int]
    engine: str
    rank: int
    pid: int
    is_alive: bool
    age_seconds: float
    core: CoreStats
    groups: _containers.RepeatedCompositeFieldContainer[GroupTraffic]
    held: _sequence_pb2.TierBytes
    steps: int
    refused: int
    requests: EngineRequests
    prompt_rows_total: int
    prompt_rows_free: int
    selections: _containers.RepeatedCompositeFieldContainer[SelectionCalls]
    def __init__(self, engine: _Optional[str] = ..., rank: _Optional[int] = ..., pid: _Optional[int] = ..., is_alive: bool = ..., age_seconds: _Optional[float] = ..., core: _Optional[_Union[CoreStats, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupTraffic, _Mapping]]] = ..., held: _Optional[_Union[_sequence_pb2.TierBytes, _Mapping]] = ..., steps: _Optional[int] = ..., refused: _Optional[int] = ..., requests: _Optional[_Union[EngineRequests, _Mapping]] = ..., prompt_rows_total: _Optional[int] = ..., prompt_rows_free: _Optional[int] = ..., selections: _Optional[_Iterable[_Union[SelectionCalls, _Mapping]]] = ...) -> None: ...

class EngineRequests(_message.Message):
    __slots__ = ("waiting", "copying", "decoding")
    WAITING_FIELD_NUMBER: _ClassVar[int]
    COPYING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    waiting: int
    copying: int
    decoding: int
    def __init__(self, waiting: _Optional[int] = ..., copying: _Optional[int] = ..., decoding: _Optional[int] = ...) -> None: ...

class SelectionCalls(_message.Message):
    __slots__ = ("kind", "outcome", "count")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    outcome: str
    count: int
    def __init__(self, kind: _Optional[str] = ..., outcome: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class TierState(_message.Message):
    __slots__ = ("name", "condition", "pages", "used_bytes", "capacity_bytes", "demoted", "promoted", "missed", "corrupt", "failed", "refused", "left", "bytes_down", "bytes_up")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEMOTED_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    CORRUPT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    name: str
    condition: TierCondition
    pages: int
    used_bytes: int
    capacity_bytes: int
    demoted: int
    promoted: int
    missed: int
    corrupt: int
    failed: int
    refused: int
    left: int
    bytes_down: int
    bytes_up: int
    def __init__(self, name: _Optional[str] = ..., condition: _Optional[_Union[TierCondition, str]] = ..., pages: _Optional[int] = ..., used_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., demoted: _Optional[int] = ..., promoted: _Optional[int] = ..., missed: _Optional[int] = ..., corrupt: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., left: _Optional[int] = ..., bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("name", "pages", "quota_pages")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_PAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    pages: int
    quota_pages: int
    def __init__(self, name: _Optional[str] = ..., pages: _Optional[int] = ..., quota_pages: _Optional[int] = ...) -> None: ...

class CoreStats(_message.Message):
    __slots__ = ("sequences", "host_pages_total", "host_pages_free", "host_pages_reserved", "host_pages_shared", "host_pages_leased", "slots_total", "slots_used", "window_slots_total", "window_slots_used", "table_tokens_total", "table_tokens_used", "table_blocks_total", "table_blocks_used", "pooled_keys_total", "pooled_keys_used", "state_rows_total", "state_rows_used", "opened", "closed", "forked", "truncated", "refused", "appended_tokens", "copied_pages")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_FREE_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_RESERVED_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_SHARED_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGES_LEASED_FIELD_NUMBER: _ClassVar[int]
    SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_USED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SLOTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    WINDOW_SLOTS_USED_FIELD_NUMBER: _ClassVar[int]
    TABLE_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TABLE_TOKENS_USED_FIELD_NUMBER: _ClassVar[int]
    TABLE_BLOCKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TABLE_BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    POOLED_KEYS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    POOLED_KEYS_USED_FIELD_NUMBER: _ClassVar[int]
    STATE_ROWS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STATE_ROWS_USED_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    FORKED_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    APPENDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COPIED_PAGES_FIELD_NUMBER: _ClassVar[int]
    sequences: int
    host_pages_total: int
    host_pages_free: int
    host_pages_reserved: int
    host_pages_shared: int
    host_pages_leased: int
    slots_total: int
    slots_used: int
    window_slots_total: int
    window_slots_used: int
    table_tokens_total: int
    table_tokens_used: int
    table_blocks_total: int
    table_blocks_used: int
    pooled_keys_total: int
    pooled_keys_used: int
    state_rows_total: int
    state_rows_used: int
    opened: int
    closed: int
    forked: int
    truncated: int
    refused: int
    appended_tokens: int
    copied_pages: int
    def __init__(self, sequences: _Optional[int] = ..., host_pages_total: _Optional[int] = ..., host_pages_free: _Optional[int] = ..., host_pages_reserved: _Optional[int] = ..., host_pages_shared: _Optional[int] = ..., host_pages_leased: _Optional[int] = ..., slots_total: _Optional[int] = ..., slots_used: _Optional[int] = ..., window_slots_total: _Optional[int] = ..., window_slots_used: _Optional[int] = ..., table_tokens_total: _Optional[int] = ..., table_tokens_used: _Optional[int] = ..., table_blocks_total: _Optional[int] = ..., table_blocks_used: _Optional[int] = ..., pooled_keys_total: _Optional[int] = ..., pooled_keys_used: _Optional[int] = ..., state_rows_total: _Optional[int] = ..., state_rows_used: _Optional[int] = ..., opened: _Optional[int] = ..., closed: _Optional[int] = ..., forked: _Optional[int] = ..., truncated: _Optional[int] = ..., refused: _Optional[int] = ..., appended_tokens: _Optional[int] = ..., copied_pages: _Optional[int] = ...) -> None: ...

class GroupTraffic(_message.Message):
    __slots__ = ("rows", "blocks", "prefill_blocks", "prefill_row_bytes", "spilled_bytes", "selection")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPILLED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    rows: Traffic
    blocks: Traffic
    prefill_blocks: Traffic
    prefill_row_bytes: int
    spilled_bytes: int
    selection: SelectionCounts
    def __init__(self, rows: _Optional[_Union[Traffic, _Mapping]] = ..., blocks: _Optional[_Union[Traffic, _Mapping]] = ..., prefill_blocks: _Optional[_Union[Traffic, _Mapping]] = ..., prefill_row_bytes: _Optional[int] = ..., spilled_bytes: _Optional[int] = ..., selection: _Optional[_Union[SelectionCounts, _Mapping]] = ...) -> None: ...

class SelectionCounts(_message.Message):
    __slots__ = ("doubled_rows", "doublings", "capped_rows", "flat_calls", "audited_rows", "skipped_audits", "audited_tokens", "found_tokens")
    DOUBLED_ROWS_FIELD_NUMBER: _ClassVar[int]
    DOUBLINGS_FIELD_NUMBER: _ClassVar[int]
    CAPPED_ROWS_FIELD_NUMBER: _ClassVar[int]
    FLAT_CALLS_FIELD_NUMBER: _ClassVar[int]
    AUDITED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_AUDITS_FIELD_NUMBER: _ClassVar[int]
    AUDITED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FOUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    doubled_rows: int
    doublings: int
    capped_rows: int
    flat_calls: int
    audited_rows: int
    skipped_audits: int
    audited_tokens: int
    found_tokens: int
    def __init__(self, doubled_rows: _Optional[int] = ..., doublings: _Optional[int] = ..., capped_rows: _Optional[int] = ..., flat_calls: _Optional[int] = ..., audited_rows: _Optional[int] = ..., skipped_audits: _Optional[int] = ..., audited_tokens: _Optional[int] = ..., found_tokens: _Optional[int] = ...) -> None: ...

class Traffic(_message.Message):
    __slots__ = ("requests", "misses", "bytes_in", "bytes_read_in_place")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_IN_PLACE_FIELD_NUMBER: _ClassVar[int]
    requests: int
    misses: int
    bytes_in: int
    bytes_read_in_place: int
    def __init__(self, requests: _Optional[int] = ..., misses: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_read_in_place: _Optional[int] = ...) -> None: ...
