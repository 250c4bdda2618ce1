"""What a plan promises to its runs: checked once, then looked up."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict, get_args

import torch

from hisparse_kernels.layouts import PAGE_TOKENS, KvLayout, kv_layout
from hisparse_kernels.sparse_mla import decode_split_keys, split_workspace_size
from hisparse_sidecar.config import IndexSource, ModelShape, SelectionConfig, check_split_keys
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.requirements import require, require_one_of, required_finite, required_int
from hisparse_sidecar.tensor_checks import check_tensor

LseMode = Literal["none", "base2", "basee"]
InputLayout = Literal["packed", "split"]
_QUERIES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_HEADS = 128
# by dtype of the cache and whether it has a rope part
_LAYOUTS = {
    (torch.bfloat16, 64): "bf16",
    (torch.float32, 64): "fp32",
    (torch.uint8, 64): "fp8_ds_mla",
    (torch.float8_e4m3fn, 64): "fp8_ds_mla",
    (torch.uint8, 0): "fp8",
    (torch.float8_e4m3fn, 0): "fp8",
}
# what FlashInfer's backends can and these cannot: legal where it asks for nothing
_NOT_OFFERED = {
    "use_profiler": (False,),
    "output_scale": ("none",),
    "scale_mode": ("default",),
    "skip_softmax": (False,),
    "enable_pdl": (None, False),
}
_SIZES = "num_heads", "head_dim_ckv", "head_dim_kpe", "page_size"
_BUSY_PROGRAMS = 264  # two for each processor of an H100: then its keys need no sharing out


class FlashInferOptions(TypedDict, total=False):
    """Further options of FlashInfer's `plan`.

    Attributes:
        lse_mode: base of the `lse` that runs return: "base2", "basee" or "none"; left out, a run
            says so itself.
        use_sinks: whether runs are given sinks; left out, they may be.
        output_dtype: must be `q_data_type`.
        query_layout: "packed" or "split"; runs may have either.
        kv_cache_layout: the same of the cache.
        use_profiler: False; this and what follows is not offered.
        output_scale: "none".
        scale_mode: "default".
        skip_softmax: False.
        enable_pdl: None or False.
    """

    lse_mode: LseMode
    use_sinks: bool
    output_dtype: torch.dtype | None
    query_layout: InputLayout
    kv_cache_layout: InputLayout
    use_profiler: bool
    output_scale: str
    scale_mode: str
    skip_softmax: bool
    enable_pdl: bool | None


@dataclass(frozen=True)
class PlanContract:
    """See `BatchHiSparseMLAPagedAttentionWrapper.plan` for each of these.

    Attributes:
        layout: how the KV rows are stored, by `kv_data_type` and `head_dim_kpe`.
    """

    num_heads: int
    head_dim_ckv: int
    head_dim_kpe: int
    page_size: int
    causal: bool
    sm_scale: float
    q_data_type: torch.dtype
    kv_data_type: torch.dtype
    selection: SelectionConfig
    topk: int
    max_seq_len: int | None
    block_tokens: int
    split_keys: int | None
    lse_mode: LseMode | None
    use_sinks: bool | None

    def __post_init__(self) -> None:
        heads = self.num_heads
        require(1 <= heads <= _MAX_HEADS, f"num_heads is {heads}, needs 1 to {_MAX_HEADS}")
        for name in ("page_size", "topk"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, needs >= 1")
        names = ", ".join(map(str, _QUERIES))
        dtype = self.q_data_type
        require(dtype in _QUERIES, f"q_data_type is {dtype}, needs one of {names}")
        self._check_layout()
        check_split_keys(self.split_keys)
        if self.lse_mode is not None:
            require_one_of("lse_mode", self.lse_mode, get_args(LseMode))
        if self.selects:
            self._check_selection()

    def _check_layout(self) -> None:
        kind = self.kv_data_type, self.head_dim_kpe
        if self.head_dim_ckv != 512 or kind not in _LAYOUTS:
            found = f"{self.kv_data_type} rows of {self.head_dim_ckv} + {self.head_dim_kpe}"
            known = ", ".join(f"{dtype} rows of 512 + {rope}" for dtype, rope in _LAYOUTS)
            raise InvalidArgument(f"the KV cache has {found}, needs one of: {known}")

    def _check_selection(self) -> None:
        if self.max_seq_len is None or self.max_seq_len < 1:
            needed = "needs the most tokens of a sequence: the device is not asked"
            raise InvalidArgument(f"max_seq_len is {self.max_seq_len}, a selection {needed}")
        page_size, block_tokens = self.page_size, self.block_tokens
        message = f"page_size is {page_size}, index keys lie in pages of {PAGE_TOKENS}"
        require(page_size == PAGE_TOKENS, message)
        message = f"block_tokens is {block_tokens}, needs a multiple of {PAGE_TOKENS}"
        require(block_tokens > 0 and block_tokens % PAGE_TOKENS == 0, message)
        audited = self.selection.audit_one_in
        require(audited == 0, f"audit_one_in is {audited}, a wrapper audits nothing: needs 0")
        self.selection.check_for(self.model(self.selection.routed_heads), block_tokens)

    @property
    def selects(self) -> bool:
        """Whether runs are given index queries, rather than lists."""
        return self.selection.index_source != "given"

    @property
    def layout(self) -> KvLayout:
        """How a KV row is stored."""
        return kv_layout(_LAYOUTS[self.kv_data_type, self.head_dim_kpe])

    @property
    def query_dim(self) -> int:
        """Values of one query head."""
        return self.head_dim_ckv + self.head_dim_kpe

    def model(self, index_heads: int) -> ModelShape:
        """A model of one layer, for checks that need one."""
        return ModelShape(1, (0,), index_heads, self.topk, self.sm_scale)

    def lse_base(self, *, is_wanted: bool, is_e: bool) -> Literal["e", 2] | None:
        """Base of the lse that a run asks for; None = it asks for none.

        Raises:
            InvalidArgument: the plan says otherwise.
        """
        asked: LseMode = "none"
        if is_wanted or is_e:
            asked = "basee" if is_e else "base2"
        message = f"lse_mode of the plan is {self.lse_mode!r}, the run asks for {asked!r}"
        require(self.lse_mode in (None, asked), message)
        if asked == "none":
            return None
        return "e" if is_e else 2

    def check_sinks(self, sinks: torch.Tensor | None, device: torch.device) -> None:
        """Raises InvalidArgument unless a run may have these sinks."""
        has_sinks = sinks is not None
        message = f"use_sinks of the plan is {self.use_sinks}, the run has sinks: {has_sinks}"
        require(self.use_sinks in (None, has_sinks), message)
        if sinks is not None:
            check_tensor("sinks", sinks, (self.num_heads,), torch.float32, device=device)

    def split_for(self, rows: int, topk: int, workspace_values: int) -> int | None:
        """Keys of one split for a run of `rows` rows with lists of `topk`; None = one for all.

        Splits that were not asked for are made where rows and heads alone leave the GPU idle, and
        the workspace holds their parts.

        Raises:
            InvalidArgument: splits were asked for, and the workspace is too small for them.
        """
        split = self.split_keys or decode_split_keys(self.num_heads)
        if self.split_keys == 0 or topk <= split:
            return None
        needed = split_workspace_size(rows, self.num_heads, topk, self.layout, split)
        if self.split_keys is None:
            is_busy = rows * -(-self.num_heads // 64) >= _BUSY_PROGRAMS
            return None if is_busy or needed > workspace_values else split
        if needed > workspace_values:
            found = f"float_workspace_buffer holds {workspace_values} fp32 values"
            raise InvalidArgument(f"{found}, {rows} rows in splits of {split} need {needed}")
        return split


def contract_of(
    sizes: tuple[int, int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    causal: bool,
    sm_scale: float,
    source: IndexSource | SelectionConfig,
    bounds: tuple[int, int | None, int, int | None],
    options: tuple[tuple[str, object], ...],
) -> PlanContract:
    """The contract of one set of arguments, checked the first time; sizes are made integers.

    Args:
        sizes: num_heads, head_dim_ckv, head_dim_kpe, page_size.
        dtypes: of queries and cache.
        causal: whether rows see tokens up to their own alone.
        sm_scale: factor of the logits.
        source: where the selection comes from.
        bounds: topk, max_seq_len, block_tokens, split_keys.
        options: those of `FlashInferOptions` that were given.

    Raises:
        InvalidArgument: something is of another kind, or does not fit; says what was found.
    """
    topk, max_seq_len, block_tokens, split_keys = bounds
    heads, ckv, kpe, page = (required_int(*one) for one in zip(_SIZES, sizes, strict=True))
    whole_bounds = (
        required_int("topk", topk),
        None if max_seq_len is None else required_int("max_seq_len", max_seq_len),
        required_int("block_tokens", block_tokens),
        None if split_keys is None else required_int("split_keys", split_keys),
    )
    needed = "a name or a SelectionConfig"
    if not isinstance(source, str | SelectionConfig):
        raise InvalidArgument(f"index_source is a {type(source).__name__}, needs {needed}")
    for name, value in options:
        if not isinstance(value, Hashable):
            raise InvalidArgument(f"{name} is a {type(value).__name__}, which no option is")
    scale = required_finite("sm_scale", sm_scale)
    whole_sizes = heads, ckv, kpe, page
    return _kept_contract(whole_sizes, dtypes, causal, scale, source, whole_bounds, options)


@lru_cache(maxsize=64)
def _kept_contract(
    sizes: tuple[int, int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    causal: bool,
    sm_scale: float,
    source: IndexSource | SelectionConfig,
    bounds: tuple[int, int | None, int, int | None],
    options: tuple[tuple[str, object], ...],
) -> PlanContract:
    """See `contract_of`; by now equal numbers are of one type, which one key of the cache needs."""
    given = dict(options)
    _check_options(given, dtypes[0])
    selection = source if isinstance(source, SelectionConfig) else SelectionConfig(source)
    return PlanContract(
        *sizes,
        causal,
        sm_scale,
        *dtypes,
        selection,
        *bounds,
        lse_mode=given.get("lse_mode"),  # type: ignore[arg-type]
        use_sinks=given.get("use_sinks"),  # type: ignore[arg-type]
    )


def _check_options(given: dict[str, object], q_data_type: torch.dtype) -> None:
    known = FlashInferOptions.__annotations__
    unknown = sorted(set(given) - set(known))
    message = f"plan has no argument {', '.join(unknown)}; further ones are {', '.join(known)}"
    require(not unknown, message)
    for name, legal in _NOT_OFFERED.items():
        found = given.get(name, legal[0])
        require(found in legal, f"{name} is {found!r}, these backends need {legal[0]!r}")
    for name in ("query_layout", "kv_cache_layout"):
        require_one_of(name, str(given.get(name, "packed")), get_args(InputLayout))
    dtype = given.get("output_dtype")
    message = f"output_dtype is {dtype}, needs that of the query, {q_data_type}"
    require(dtype is None or dtype == q_data_type, message)
