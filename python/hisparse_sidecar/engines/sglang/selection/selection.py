"""Selection of one attention backend: whether a call is ours, and the list in SGLang's form."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from hisparse_kernels.backends import Ops
from hisparse_kernels.layouts import INDEX_DIM, PAGE_TOKENS, index_layout
from hisparse_kernels.paged_batch import PagedBatch
from hisparse_sidecar.engines.sglang.calls import SELECTED, CallCounts
from hisparse_sidecar.engines.sglang.pool.offloaded_keys import OffloadedKeys
from hisparse_sidecar.engines.sglang.pool.pooled_pages import PooledPages
from hisparse_sidecar.engines.sglang.selection.index_plan import IndexPlan, LayerKeys
from hisparse_sidecar.engines.sglang.settings import SglangSettings
from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.requirements import require
from hisparse_sidecar.selection.contract import Selector
from hisparse_sidecar.selection.registry import selector_for
from hisparse_sidecar.tensor_checks import check_tensor

LAYOUT = index_layout("fp8")
Fetch: TypeAlias = Callable[[int, torch.Tensor], None]
_Asked = tuple[Selector, torch.Tensor, torch.Tensor, LayerKeys, int]  # see `IndexPlan.select`


@dataclass(frozen=True)
class IndexerCall:
    """One call of SGLang's indexer for the lists of a layer, with SGLang's objects as they are.

    Attributes:
        kind: "paged" in decode, verify and draft-extend passes, whose rows have a line of the page
            table each; "ragged" in extend passes, whose rows are the last of their sequences.
        indexer: its `Indexer`.
        pool: its `DSATokenToKVPool`.
        forward_batch: its `ForwardBatch`.
        metadata: its `DSAIndexerMetadata`.
        layer: number of the layer.
        query: [rows, heads, 128] e4m3; rows beyond those of the batch are padding.
        weights: [rows, heads, 1] fp32.
    """

    kind: Literal["paged", "ragged"]
    indexer: Any
    pool: Any
    forward_batch: Any
    metadata: Any
    layer: int
    query: torch.Tensor
    weights: torch.Tensor

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return len(self.metadata.attn_metadata.dsa_seqlens_expanded)

    def batch(self) -> PagedBatch:
        """Whose rows and pages these are."""
        attn = self.metadata.attn_metadata
        if self.kind == "paged":
            spans = attn.cu_seqlens_q[: self.num_rows + 1], attn.dsa_seqlens_expanded
        else:
            spans = attn.cu_seqlens_q, attn.cache_seqlens_int32
        table = attn.real_page_table.contiguous()
        return PagedBatch(*spans, table, None, PAGE_TOKENS, causal=True)


class BackendSelection:
    """Chooses the tokens of one backend's layers.

    Attributes:
        counts: what became of the calls.
        offloaded: where index keys lie that do not stay at SGLang's slots; None = they do.
    """

    def __init__(
        self,
        ops: Ops,
        settings: SglangSettings,
        pooled: PooledPages | None,
        uncovered: str | None,
        offloaded: OffloadedKeys | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        """A selection over one pool.

        Args:
            ops: the ops to use.
            settings: what is asked for.
            pooled: pooled keys of the pool; None where `uncovered`.
            uncovered: why no call of this process can be ours; None = some can.
            offloaded: see the attribute; then every decode call is ours.
            fetch: is given layer and lists of decode passes as soon as they are known; None = KV
                rows stay, or the lists are not final.
        """
        require((pooled is None) == (uncovered is not None), "pooled keys, or why there are none")
        self._ops, self._settings, self._pooled = ops, settings, pooled
        self._uncovered, self.offloaded, self._fetch = uncovered, offloaded, fetch
        self._selector = selector_for(settings.selection)
        self._last: tuple[object, int, IndexPlan] | None = None
        self.counts = CallCounts()

    def select(self, call: IndexerCall) -> torch.Tensor | None:
        """The lists of a call as SGLang's `topk_transform` gives them, or None: SGLang's way.

        Returns:
            [query rows, topk] int32, -1 pads: positions, or physical slots, or places among the
            extend batch's keys, whatever the metadata ask for. None = not ours, and counted.

        Raises:
            WrongState: index keys do not stay, and the call is one that only SGLang's way covers.
        """
        lists = self._lists(call)
        if lists is not None and len(lists) and self._fetch and _is_of_decode(call):
            self._fetch(call.layer, lists)
        return lists

    def _lists(self, call: IndexerCall) -> torch.Tensor | None:
        if self.offloaded is not None and call.kind == "paged":
            return self._select_offloaded(call, self.offloaded)
        reason = self._uncovered or _uncovered_call(call, self._settings.min_tokens)
        self.counts.add(call.kind, reason or SELECTED)
        if reason is not None:
            return None
        assert self._pooled is not None
        pages = call.pool.get_index_k_with_scale_buffer(call.layer)
        keys = LayerKeys(pages, self._pooled.of_layer(call.layer))
        query, weights = _inputs(call)
        asked = self._selector, query, weights, keys, call.indexer.index_topk
        num_pages = len(pages) if self.offloaded is None else self.offloaded.num_slot_pages
        return _padded(_in_engine_form(call, self._plan(call), asked, num_pages), len(call.query))

    def _select_offloaded(self, call: IndexerCall, offloaded: OffloadedKeys) -> torch.Tensor:
        """Lists of a decode call, whose keys only we know the place of."""
        reason = _uncovered_model(call)
        if reason is None and not call.metadata.force_unfused_topk:
            reason = "lists that are no positions"
        if reason is not None:
            raise WrongState(f"{reason}: offload_index_keys does not cover it")
        self.counts.add(call.kind, SELECTED)
        topk, table = call.indexer.index_topk, call.metadata.attn_metadata.real_page_table
        query = _inputs(call)
        if not call.num_rows:
            found = query[0].new_empty(0, topk, dtype=torch.int32)
        else:
            which = self._selector, call.layer, query, topk, table.shape[1]
            found = offloaded.select(*which)
        return _padded(found, len(call.query))

    def _plan(self, call: IndexerCall) -> IndexPlan:
        """The plan of the running pass.

        A pass visits layers in ascending order, so a layer that does not come after the last one
        begins another: a CUDA graph is captured after runs with the same metadata, and must hold
        the launches that lay them out.
        """
        attn = call.metadata.attn_metadata
        if self._last is not None and self._last[0] is attn and self._last[1] < call.layer:
            plan = self._last[2]
        else:
            slots = call.batch()
            batch = slots
            if self.offloaded is not None:
                batch = replace(slots, kv_pages=self.offloaded.index_pages(slots.kv_pages))
            plan = IndexPlan(self._ops, LAYOUT, batch, call.num_rows, slots)
        self._last = attn, call.layer, plan
        return plan


def _is_of_decode(call: IndexerCall) -> bool:
    """And so attends, with what it fetches: SGLang's attention does nothing of an idle pass."""
    return call.kind == "paged" and bool(call.forward_batch.forward_mode.is_decode())


def _uncovered_call(call: IndexerCall, min_tokens: int) -> str | None:
    """Why a call is not ours, by what the host knows; None = it is."""
    reason = _uncovered_model(call)
    if reason is not None:
        return reason
    if call.num_rows == 0:
        return "no rows"
    most = max(min_tokens, call.indexer.index_topk)
    if call.metadata.attn_metadata.max_seq_len_k <= most:
        return "no sequence above min_tokens"
    return None


def _uncovered_model(call: IndexerCall) -> str | None:
    indexer = call.indexer
    if call.forward_batch.attn_cp_metadata is not None:
        return "context parallel"
    if indexer.num_init_tokens or indexer.num_local_tokens:
        return "tokens that the model always selects"
    return None


def _inputs(call: IndexerCall) -> tuple[torch.Tensor, torch.Tensor]:
    rows, (found, heads) = call.num_rows, call.query.shape[:2]
    require(found >= rows, f"the indexer has {found} queries, the batch has {rows} rows")
    check_tensor("q_fp8", call.query, (-1, -1, INDEX_DIM), torch.float8_e4m3fn)
    check_tensor("weights", call.weights, (found, heads, 1), torch.float32)
    return call.query[:rows], call.weights[:rows, :, 0]


def _in_engine_form(
    call: IndexerCall, plan: IndexPlan, asked: _Asked, num_pages: int
) -> torch.Tensor:
    metadata = call.metadata
    is_ragged = metadata.topk_transform_method.name == "RAGGED"
    if not (metadata.force_unfused_topk or is_ragged):
        return plan.select_slots(*asked, num_pages)
    positions = plan.select(*asked)
    if metadata.force_unfused_topk:
        return positions
    offset = metadata.attn_metadata.topk_indices_offset[: len(positions), None]
    return torch.where(positions >= 0, positions + offset, -1).int()


def _padded(lists: torch.Tensor, rows: int) -> torch.Tensor:
    missing = rows - len(lists)
    if missing == 0:
        return lists
    return torch.cat([lists, lists.new_full((missing, lists.shape[1]), -1)])
