"""SGLang's radix tree over slots whose KV rows are in host pages: the prefix cache of offload.

Imported where the cache was asked for alone. A node keeps its slots, with the index keys that lie
under them, and a lease of host pages. A match counts as a hit of the host: SGLang then asks for the
rows by `init_load_back`, when it has found room for them in its pool.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, EvictResult, MatchResult
from sglang.srt.mem_cache.radix_cache import RadixCache

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import PageLease
from hisparse_sidecar.engine_rows import EngineRowTier
from hisparse_sidecar.engine_rows.cached_rows import CachedRows
from hisparse_sidecar.engines.sglang.offload.requests import (
    has_embeddings,
    may_be_cached,
    prefilled_tokens,
    tree_tokens,
)
from hisparse_sidecar.engines.sglang.prefix.loads import (
    NodeRows,
    PrefixLoads,
    leases_of,
    on_host,
    path_to,
    rows_of,
)
from hisparse_sidecar.errors import HisparseError, WrongState

# SGLang 0.5.17 has slots in a match, where later there is a number, and other words for insertion
_HAS_INDICES = "device_indices" in MatchResult._fields
_HAS_CHECKPOINT = hasattr(RadixCache, "checkpoint")


class HostRadixCache(RadixCache):  # type: ignore[misc]
    """A tree of prompts and answers that are on the host, whole pages of them.

    Nothing is in it before its rows are on the host: what SGLang would insert earlier waits for
    `keep_prompt`, and an answer for `leave`.

    Attributes:
        loads: prefixes that are in SGLang's pool for requests in prefill.
    """

    def __init__(
        self,
        params: Any,  # noqa: ANN401
        cached: CachedRows,
        wait_for_passes: Callable[[], None],
    ) -> None:
        """An empty tree.

        Args:
            params: SGLang's `CacheInitParams`.
            cached: the tier's pages that outlive their sequence.
            wait_for_passes: lets the current stream wait for passes that were launched.
        """
        self._cached, self._num_offered = cached, 0
        self._offered: PageLease | None = None
        self._left: dict[Any, PageLease] = {}
        allocator = params.token_to_kv_pool_allocator
        self.loads = PrefixLoads(cached, allocator, self, wait_for_passes)
        super().__init__(params)

    # -- what coordinators ask for ------------------------------------------------------------

    def keep_prompt(self, req: Any, sequence: int) -> None:  # noqa: ANN401
        """Inserts a prompt whose rows are on the host; its slots may be the tree's from now on."""
        if not may_be_cached(req):
            return
        pages = prefilled_tokens(req) // PAGE_TOKENS
        with self._offering(self._cached.keep(sequence, 0, pages)):
            if _HAS_CHECKPOINT:
                super().checkpoint(req, up_to=prefilled_tokens(req))
            else:
                super().cache_unfinished_req(req)
        self._bring_back(req.last_node, sequence)

    def _bring_back(self, node: Any, sequence: int) -> None:  # noqa: ANN401
        """Nodes that gave their host pages up have those of a sequence with the same tokens."""
        start = 0
        for one in path_to(node):
            num_pages = len(one.value) // PAGE_TOKENS
            if rows_of(one).lease is None:
                rows_of(one).lease = self._cached.keep(sequence, start, num_pages)
            start += num_pages

    def leave(self, req: Any, sequence: int, num_tokens: int) -> None:  # noqa: ANN401
        """Keeps the pages of a request that ends until SGLang inserts it, or releases it."""
        if may_be_cached(req):
            self._left[req] = self._cached.keep(sequence, 0, num_tokens // PAGE_TOKENS)

    def open_for(self, tier: EngineRowTier, req: Any, to_come: int) -> int:  # noqa: ANN401
        """Admits a request on the prefix that it has loaded; cached pages make room for it.

        Prefixes that others have loaded hold pages that cannot be evicted. Where nothing decodes,
        nothing would ever be free beside them: then these pages go, and their requests copy all
        their rows when their turn comes, which are in SGLang's pool. Another rank may still be
        loading from these pages, and no pass stands between that and what is written to them next:
        so ranks wait for each other here.

        Raises:
            HostPoolFull, DeviceArenaFull: not admitted; nothing is held.
        """
        tokens, path = prefilled_tokens(req), on_host(self.loads.path_of(req))
        shared = sum(len(node.value) for node in path) // PAGE_TOKENS
        needed = -(-(tokens + to_come) // PAGE_TOKENS) - shared
        self.make_host_room(needed)
        if needed > self._cached.num_free_pages and not tier.stats().sequences:
            tier.end_reads()
            self.loads.give_up_others(req)
        return tier.open(tokens, to_come, leases_of(path))

    def loaded_tokens(self, req: Any) -> int:  # noqa: ANN401
        """Tokens of the prefix that a request has loaded."""
        return sum(len(node.value) for node in self.loads.path_of(req))

    def end_load(self, req: Any) -> None:  # noqa: ANN401
        """The request needs the rows of its prefix in the pool no more."""
        self.loads.end(req)

    def end_left_loads(self) -> None:
        """Ends loads of requests that were not let in."""
        self.loads.end_left()

    def first_own_token(self, req: Any) -> int:  # noqa: ANN401
        """Tokens from the first on whose slots are the tree's."""
        return tree_tokens(req)

    def make_host_room(self, num_pages: int) -> None:
        """Evicts until so many host pages are free, or nothing is left that may go."""
        while (missing := num_pages - self._cached.num_free_pages) > 0:
            if not self._evict(missing * PAGE_TOKENS):
                return

    def make_slot_room(self, num_slots: int) -> None:
        """Evicts for so many free slots."""
        self._evict(num_slots - self._free_slots())

    def check_integrity(self) -> None:
        """Raises HisparseError that names the first invariant found broken; between steps."""
        nodes, stack = [], [self.root_node]
        while stack:
            children = list(stack.pop().children.values())
            nodes += children
            stack += children
        self.loads.check_integrity(nodes)
        found, needed = sum(len(node.value) for node in nodes), self._num_slots()
        if found != needed:
            raise HisparseError(f"the tree has {found} slots, counts {needed}")

    def _num_slots(self) -> int:
        return int(self.evictable_size_ + self.protected_size_)

    # -- matches ------------------------------------------------------------------------------

    def match_prefix(self, params: Any) -> Any:  # noqa: ANN401
        """Nothing on the device, and on the host whatever the tree has of the key."""
        found = super().match_prefix(params)
        if self._offered is not None:  # SGLang's own insertion asks for its slots
            return found
        path = on_host(path_to(found.best_match_node))
        node = path[-1] if path else self.root_node
        length = sum(len(one.value) for one in path)
        return self._empty_match_result._replace(
            last_host_node=node, best_match_node=node, host_hit_length=length
        )

    def init_load_back(self, params: Any) -> Any:  # noqa: ANN401
        """Brings a prefix to SGLang's pool: (slots or their number, its node); or nothing."""
        node, req = params.best_match_node, params.req
        if has_embeddings(req) or not self.loads.begin(req, node):
            node = self.root_node
        slots = [one.value for one in path_to(node)]
        if _HAS_INDICES:
            return torch.cat([self._empty_match_result.device_indices, *slots]), node
        return sum(map(len, slots)), node

    # -- insertion ----------------------------------------------------------------------------

    def checkpoint(self, req: Any, *, up_to: int, **named: Any) -> None:  # noqa: ANN401
        """SGLang from 0.5.23 on: inserts a request that ended if its pages were left."""
        lease = self._left.pop(req, None)
        if lease is not None:
            with self._offering(lease):
                super().checkpoint(req, up_to=up_to, **named)

    def on_release(self, req: Any, *, checkpointed: bool) -> None:  # noqa: ANN401
        """SGLang from 0.5.23 on: the request has nothing any more."""
        super().on_release(req, checkpointed=checkpointed)
        self._let_go(req)

    def cache_unfinished_req(self, req: Any, chunked: bool = False) -> None:  # noqa: ANN401
        """SGLang 0.5.17: the next chunk finds the request's slots; nothing is inserted."""
        slots = self.req_to_token_pool.req_to_token[req.req_pool_idx, : prefilled_tokens(req)]
        req.prefix_indices = slots.to(dtype=torch.int64, copy=True)

    def cache_finished_req(
        self,
        req: Any,  # noqa: ANN401
        is_insert: bool = True,
        **named: Any,  # noqa: ANN401
    ) -> None:
        """SGLang 0.5.17: as `checkpoint` and `on_release`."""
        lease = self._left.pop(req, None)
        with self._offering(lease):
            super().cache_finished_req(req, is_insert and lease is not None, **named)
        self._let_go(req)

    def insert(self, params: Any) -> Any:  # noqa: ANN401
        """Inserts slots whose host pages are offered; a new node takes its part of the lease.

        Raises:
            WrongState: fewer pages are offered than the key has.
        """
        offered, pages = self._offered, len(params.key) // PAGE_TOKENS
        if self._num_offered < pages:
            found = f"{self._num_offered} host pages are offered"
            raise WrongState(f"{found}, a key of {pages} pages needs one each")
        found = super().insert(params)
        new = pages - found.prefix_len // PAGE_TOKENS
        if new and offered is not None:
            taken = offered.split_off(found.prefix_len // PAGE_TOKENS)
            taken.split_off(new).release()
            found.last_device_node.hisparse_rows = NodeRows(taken)
        return found

    @contextmanager
    def _offering(self, lease: PageLease | None) -> Iterator[None]:
        """Pages from a request's first on, for what is inserted inside; the rest is let go."""
        self._offered, self._num_offered = lease, 0 if lease is None else len(lease.pages)
        try:
            yield
        finally:
            self._offered, self._num_offered = None, 0
            if lease is not None:
                lease.release()

    def _let_go(self, req: Any) -> None:  # noqa: ANN401
        lease = self._left.pop(req, None)
        if lease is not None:
            lease.release()
        self.loads.end(req)

    def _split_node(self, key: Any, child: Any, split_len: int) -> Any:  # noqa: ANN401
        upper, rows = super()._split_node(key, child, split_len), rows_of(child)
        child.hisparse_rows = rows.split_off(split_len)
        upper.hisparse_rows = rows
        return upper

    # -- eviction -----------------------------------------------------------------------------

    @property
    def evictable_slots(self) -> int:
        """Slots that eviction would free."""
        return int(self.evictable_size_)

    def evictable_size(self) -> int:
        """What eviction would add to the allocator's room: its rows are not the tree's."""
        slots, rows = self._free_slots(), self._free_rows()
        return int(min(slots + self.evictable_slots, rows) - min(slots, rows))

    def evict(self, params: Any) -> Any:  # noqa: ANN401
        """Evicts where slots are what is missing; rows of the pool do not come from the tree."""
        wanted = min(self._free_slots(), self._free_rows()) + params.num_tokens
        return EvictResult(num_tokens_evicted=self._evict(wanted - self._free_slots()))

    def _evict(self, num_tokens: int) -> int:
        if num_tokens <= 0:
            return 0
        return int(super().evict(EvictParams(num_tokens=num_tokens)).num_tokens_evicted)

    def _delete_leaf(self, node: Any) -> None:  # noqa: ANN401
        super()._delete_leaf(node)
        rows_of(node).give_up()

    def reset(self) -> None:
        """Forgets everything; the pool is emptied by SGLang after it."""
        root = getattr(self, "root_node", None)
        stack = [] if root is None else list(root.children.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            rows_of(node).give_up()
        self.loads.forget()
        super().reset()

    def _free_slots(self) -> int:
        return int(self.token_to_kv_pool_allocator.logical_attn_allocator.available_size())

    def _free_rows(self) -> int:
        return int(self.token_to_kv_pool_allocator.hisparse_attn_allocator.available_size())
