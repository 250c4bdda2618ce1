"""Prefixes of requests in prefill: rows of cached nodes that lie in SGLang's pool for a while."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import PageLease
from hisparse_sidecar.engine_rows.cached_rows import CachedRows
from hisparse_sidecar.engines.sglang.offload.requests import table_row_or_none
from hisparse_sidecar.errors import HisparseError


@dataclass
class NodeRows:
    """Where the KV rows of a node of the tree are.

    Attributes:
        lease: host pages, one for each 64 slots of the node; None = they were given up, and nobody
            finds the node until another request brings the same.
        num_loads: requests that have them in SGLang's pool, too; they share the rows there.
    """

    lease: PageLease | None = None
    num_loads: int = 0

    def split_off(self, num_tokens: int) -> "NodeRows":
        """Takes what is behind the first tokens; whoever has loaded one half has both."""
        lease = None
        if self.lease is not None:
            lease = self.lease.split_off(num_tokens // PAGE_TOKENS)
        return NodeRows(lease, self.num_loads)

    def give_up(self) -> None:
        """Lets the host pages go; rows in the pool stay."""
        if self.lease is not None:
            self.lease.release()
            self.lease = None


def rows_of(node: Any) -> NodeRows:  # noqa: ANN401
    """Of any node but the root."""
    rows: NodeRows = node.hisparse_rows
    return rows


def path_to(node: Any) -> list[Any]:  # noqa: ANN401
    """Nodes from below the root down to this one."""
    return list(_upwards(node))[::-1]


def on_host(path: list[Any]) -> list[Any]:
    """As much of a path from its first node on as has host pages."""
    return list(takewhile(lambda node: rows_of(node).lease is not None, path))


def leases_of(nodes: list[Any]) -> list[PageLease]:
    """Of nodes that have host pages."""
    leases = (rows_of(node).lease for node in nodes)
    return [lease for lease in leases if lease is not None]


def _upwards(node: Any) -> Iterator[Any]:  # noqa: ANN401
    while node.parent is not None:
        yield node
        node = node.parent


class PrefixLoads:
    """Loads a request's prefix before its prefill, and frees the rows after it.

    A node's slots have one row each in the pool, whoever reads it: the first request that needs the
    node loads it, the last one frees it. A node that is loaded is locked.
    """

    def __init__(
        self,
        cached: CachedRows,
        allocator: Any,  # noqa: ANN401
        tree: Any,  # noqa: ANN401
        wait_for_passes: Callable[[], None],
    ) -> None:
        """Nothing is loaded.

        Args:
            cached: the tier's, which copies.
            allocator: SGLang's allocator for HiSparse.
            tree: whose nodes they are; locks and unlocks them.
            wait_for_passes: lets the current stream wait for passes that were launched: they may
                still use rows that are free by now.
        """
        self._wait_for_passes = wait_for_passes
        self._cached, self._allocator, self._tree = cached, allocator, tree
        self._mapping = allocator.full_to_hisparse_device_index_mapping
        self._node_of: dict[Any, Any] = {}

    def begin(self, req: Any, node: Any) -> bool:  # noqa: ANN401
        """Loads the path to a node for a request; False, and nothing is held, without room."""
        self.end(req)
        path = path_to(node)
        missing = [one for one in path if not rows_of(one).num_loads]
        if missing and not self._load(missing):
            return False
        for one in path:
            rows_of(one).num_loads += 1
        self._tree.inc_lock_ref(node)
        self._node_of[req] = node
        return True

    def _load(self, nodes: list[Any]) -> bool:
        slots = torch.cat([node.value for node in nodes])
        rows = self._allocator.hisparse_attn_allocator.alloc(slots.numel())
        if rows is None:
            return False
        self._wait_for_passes()
        self._cached.load(leases_of(nodes), rows)
        self._mapping[slots] = rows.long()
        return True

    def end(self, req: Any) -> None:  # noqa: ANN401
        """Frees what nobody else has loaded; does nothing for a request that loaded nothing."""
        node = self._node_of.pop(req, None)
        if node is None:
            return
        unused = []
        for one in path_to(node):
            rows_of(one).num_loads -= 1
            if not rows_of(one).num_loads:
                unused.append(one.value)
        if unused:
            self._allocator.free_hisparse(torch.cat(unused))
        self._tree.dec_lock_ref(node)

    def end_left(self) -> None:
        """Ends loads of requests that have no row of SGLang's table: they were not admitted."""
        for req in [one for one in self._node_of if table_row_or_none(one) is None]:
            self.end(req)

    def path_of(self, req: Any) -> list[Any]:  # noqa: ANN401
        """Nodes that a request has loaded, from the root down."""
        node = self._node_of.get(req)
        return [] if node is None else path_to(node)

    def give_up_others(self, req: Any) -> None:  # noqa: ANN401
        """Lets host pages go that requests have loaded, but for those of one request."""
        kept = set(self.path_of(req))
        for node in self._node_of.values():
            for one in path_to(node):
                if one not in kept:
                    rows_of(one).give_up()

    def forget(self) -> None:
        """After the tree and the pool were emptied."""
        self._node_of.clear()

    def check_integrity(self, nodes: list[Any]) -> None:
        """Raises HisparseError that names the first thing found wrong, of all nodes of the tree."""
        wanted: dict[Any, int] = {}
        for node in self._node_of.values():
            for one in path_to(node):
                wanted[one] = wanted.get(one, 0) + 1
        for node in nodes:
            rows, what = rows_of(node), f"node {node.id}"
            slots = len(node.value)
            pages = None if rows.lease is None else len(rows.lease.pages)
            if pages is not None and pages * PAGE_TOKENS != slots:
                raise HisparseError(f"{what} has {slots} slots and {pages} host pages")
            if rows.num_loads != wanted.get(node, 0):
                needed = wanted.get(node, 0)
                raise HisparseError(f"{what} has {rows.num_loads} loads, requests {needed}")
            mapped = int((self._mapping[node.value] > 0).sum())
            needed = slots if rows.num_loads else 0
            if mapped != needed:
                raise HisparseError(f"{what} has {mapped} rows in the pool, needs {needed}")
