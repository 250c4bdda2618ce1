"""What stands in for a GPU, its pinned memory and the peers, so that cases can be checked here."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.ops.case import PeerAbsentError
from benchmarks.ops.inputs import INDEX
from benchmarks.ops.peer_sglang import SglangHotBuffers
from hisparse_kernels.index_logits import index_logits_ref, paged_index_logits_ref
from hisparse_kernels.layouts import KV_LAYOUTS, PAGE_TOKENS
from hisparse_kernels.sparse_mla import sparse_mla_ref

_Tensors = tuple[torch.Tensor, ...]
_Spoil = Callable[[torch.Tensor], torch.Tensor]


class CudaIsCpu(TorchFunctionMode):
    """Tensors that are asked for on "cuda" are made on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


class HostPool:
    """A small `PinnedPool` that is not pinned."""

    def __init__(self, num_bytes: int = 1 << 20) -> None:
        self.host = torch.randint(256, (num_bytes,), dtype=torch.uint8)

    def rows(self, row_bytes: int, multiple: int = 64) -> torch.Tensor:
        count = self.host.numel() // row_bytes // multiple * multiple
        return self.host[: count * row_bytes].view(count, row_bytes)


class StandInPeers:
    """Peers that answer with the references, through the interfaces of `benchmarks/ops/peer_*`.

    Attributes:
        spoil: changes every result, as a broken peer would.
    """

    def __init__(self, spoil: _Spoil = lambda found: found) -> None:
        self.spoil = spoil

    def deep_gemm(self) -> SimpleNamespace:
        return SimpleNamespace(prefill=self._prefill_logits, paged=self._paged_logits)

    def flash_mla(self) -> SimpleNamespace:
        return SimpleNamespace(
            prefill=self._attend_values, decode=self._attend_rows, dense=self._attend_pages
        )

    def sglang(self) -> SimpleNamespace:
        return SimpleNamespace(
            fast_topk=lambda rows, columns, k: self._choose(k),
            deep_select=self._choose,
            deep_select_until=self._choose_until,
            swap_in=lambda topk, hot_slots, row_bytes: partial(_GatheredRows, self.spoil),
        )

    def _prefill_logits(
        self, query: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, *rest: torch.Tensor
    ) -> torch.Tensor:
        weights, start, end = rest
        parts = codes.contiguous().view(torch.uint8), scales[:, None].view(torch.uint8)
        logits = index_logits_ref(query, weights, torch.cat(parts, dim=1), start, end, INDEX)
        return self.spoil(logits.nan_to_num(neginf=7.0))  # DeepGEMM leaves anything outside

    def _paged_logits(
        self,
        query: torch.Tensor,
        pages: torch.Tensor,
        weights: torch.Tensor,
        lengths: torch.Tensor,
        most: int,
        next_n: int = 1,
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        row_seq = torch.arange(len(lengths), dtype=torch.int32) // next_n

        def score(table: torch.Tensor) -> torch.Tensor:
            where = pages, table, row_seq, lengths
            return self.spoil(paged_index_logits_ref(query, weights, *where, INDEX)[:, :most])

        return score

    def _attend_values(self, values: torch.Tensor, scale: float) -> Callable[..., _Tensors]:
        return self._attend_rows(values.view(torch.uint8), scale, "bf16")

    def _attend_pages(
        self, values: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor, scale: float
    ) -> Callable[[torch.Tensor], _Tensors]:
        ids = (table[:, :, None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS)).flatten(1).int()
        assert bool((lengths == ids.shape[1]).all())
        attend = self._attend_values(values, scale)
        return lambda query: attend(query, ids)

    def _attend_rows(
        self, rows: torch.Tensor, scale: float, layout: str = "fp8_ds_mla"
    ) -> Callable[..., _Tensors]:
        def attend(query: torch.Tensor, row_ids: torch.Tensor) -> _Tensors:
            assert query.shape[1] >= 64, "FlashMLA takes 64 or 128 heads"
            out, lse = sparse_mla_ref(query, rows, row_ids, KV_LAYOUTS[layout], scale)
            return self.spoil(out), lse

        return attend

    def _choose(self, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda scores: self.spoil(scores.topk(k, dim=1).indices.int())

    def _choose_until(self, k: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def choose(scores: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
            outside = torch.arange(scores.shape[1]) >= end[:, None]
            return self.spoil(scores.masked_fill(outside, -torch.inf).topk(k).indices.int())

        return choose


class NoPeers:
    """None of them loaded."""

    def __getattr__(self, name: str) -> Callable[[], object]:
        def absent() -> object:
            raise PeerAbsentError(name)

        return absent


class LruPeers(StandInPeers):
    """Stand-ins of which SGLang's swap-in keeps slots, as the real one does."""

    def sglang(self) -> SimpleNamespace:
        def swap_in(*sizes: int) -> Callable[..., SglangHotBuffers]:
            return partial(SglangHotBuffers, load_by_lru, sizes)

        return SimpleNamespace(**vars(super().sglang()) | {"swap_in": swap_in})


class IdleOps:
    """A file of ops of which none does anything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class _GatheredRows:
    """SGLang's swap-in without slots: each step's rows, in the order of its items."""

    def __init__(self, spoil: _Spoil, *made_of: torch.Tensor) -> None:
        self._spoil = spoil
        self._host, self._row_ids, _ = made_of
        self.device_rows = self._host[:0]

    def step(self, items: torch.Tensor) -> torch.Tensor:
        rows = self._host[self._row_ids.gather(1, items.long()).flatten()]
        self.device_rows = self._spoil(rows)
        return torch.arange(items.numel()).view(items.shape)

    def saved(self) -> None:
        return None

    def restore(self, saved: None) -> None:
        del saved

    def refill(self) -> None:
        return None


def load_by_lru(**given: Any) -> None:
    """What `SglangHotBuffers` calls, in plain loops: slots go to misses by their last use."""
    for request, items in enumerate(given["top_k_tokens"].tolist()):
        tokens = given["device_buffer_tokens"][request]
        order = given["lru_slots"][request].tolist()
        held = {token: slot for slot, token in enumerate(tokens.tolist()) if token >= 0}
        hits = {held[item] for item in items if item in held}
        free = iter([slot for slot in order if slot not in hits])
        used = [held[item] if item in held else next(free) for item in items]
        locations = given["device_buffer_locs"][request, used]
        missed = torch.tensor([item not in held for item in items])
        rows = given["host_cache_locs"][request, items][missed]
        given["device_buffer"][locations[missed].long()] = given["host_cache"][rows]
        tokens[used] = torch.tensor(items, dtype=torch.int32)
        left = [slot for slot in order if slot not in set(used)]
        given["lru_slots"][request] = torch.tensor(left + used, dtype=torch.int16)
        given["top_k_device_locs"][request] = locations
