"""SGLang's top-k kernels and HiSparse swap-in, from `sglang/kernels`, compiled on first use."""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.ops.hot_buffers import HOT_SLOTS, TOPK
from benchmarks.ops.inputs import FP8_ROWS

# the default of 256 writes past its shared memory: the scan over warps counts on about 30 of them
_BLOCK_SIZE = 960


class SglangHotBuffers:
    """State of the swap-in of some requests, cold: nothing resident, slots in order.

    A request has `hot_slots` slots under LRU and one more, the last, for its newest token.

    Attributes:
        tokens: [requests, hot_slots + 1] int32, position in each slot; -1 = free.
        order: [requests, hot_slots] int16, slots from the one used longest ago to the newest.
        lengths: [requests] int32; the newest token is the last.
        locations: [requests, hot_slots + 1] int32, row of `device_rows` for each slot.
        device_rows: [requests * (hot_slots + 1), row_bytes] uint8.
        miss_rows: [requests, topk] int64, host rows of the last step's misses, if recorded.
        miss_count: [requests] int32.
    """

    def __init__(
        self,
        load: Callable[..., None],
        sizes: tuple[int, int, int],
        host_rows: torch.Tensor,
        host_row_ids: torch.Tensor,
        lengths: torch.Tensor,
    ) -> None:
        requests, (topk, hot_slots, row_bytes) = len(lengths), sizes
        device, slots = lengths.device, hot_slots + 1

        def filled(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.full(shape, -1, dtype=dtype, device=device)

        self._load, self._topk, self._hot_slots = load, topk, hot_slots
        self._host_rows, self._host_row_ids = host_rows, host_row_ids
        self._requests = torch.arange(requests, device=device)
        self._num_requests = torch.tensor([requests], dtype=torch.int32, device=device)
        self._found, self._miss_slots = filled(requests, topk), filled(requests, topk)
        self.tokens = filled(requests, slots)
        self.order = torch.arange(hot_slots, dtype=torch.int16, device=device)
        self.order = self.order.repeat(requests, 1)
        self.lengths = lengths
        self.locations = torch.arange(requests * slots, dtype=torch.int32, device=device)
        self.locations = self.locations.view(requests, slots)
        self.device_rows = host_rows.new_zeros(requests * slots, row_bytes, device=device)
        self.miss_rows = filled(requests, topk, dtype=torch.int64)
        self.miss_count = filled(requests)

    def step(self, items: torch.Tensor, *, record: bool = False) -> torch.Tensor:
        """Rows of `device_rows` [requests, topk] that hold the items when the call has run."""
        plan = (self.miss_rows, self._miss_slots, self.miss_count) if record else (None,) * 3
        self._load(
            top_k_tokens=items,
            device_buffer_tokens=self.tokens,
            host_cache_locs=self._host_row_ids,
            device_buffer_locs=self.locations,
            host_cache=self._host_rows,
            device_buffer=self.device_rows,
            top_k_device_locs=self._found,
            req_pool_indices=self._requests,
            seq_lens=self.lengths,
            lru_slots=self.order,
            item_size_bytes=self.device_rows.shape[1],
            num_top_k=self._topk,
            hot_buffer_size=self._hot_slots,
            block_size=_BLOCK_SIZE,
            num_real_reqs=self._num_requests,
            miss_src=plan[0],
            miss_dst=plan[1],
            miss_count=plan[2],
        )
        return self._found

    def saved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the state."""
        return self.tokens.clone(), self.order.clone()

    def restore(self, saved: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Back to a copy of the state; the rows stay those of the steps since: see `refill`."""
        self.tokens.copy_(saved[0])
        self.order.copy_(saved[1])

    def refill(self) -> None:
        """Gives every slot in use the row of its token; all of them, were they evicted or not."""
        for request, tokens in enumerate(self.tokens):
            held = tokens >= 0
            rows = self._host_row_ids[request][tokens[held].long()]
            self.device_rows[self.locations[request][held].long()] = self._host_rows[rows]


class Sglang:
    """Kernels of SGLang that need nothing of its engine."""

    def __init__(self) -> None:
        from sglang.kernels.ops.attention import deep_select, fast_topk
        from sglang.kernels.ops.kvcache import hisparse

        self._fast_topk, self._deep_select, self._hisparse = fast_topk, deep_select, hisparse
        self._failed: dict[str, Exception] = {}

    def compile_jobs(self) -> Sequence[Callable[[], object]]:
        """The two top-k and the swap-in: each waits for a compiler of its own."""
        scores = torch.zeros(1, 2 * TOPK, device="cuda")
        length = torch.full((1,), 2 * TOPK, dtype=torch.int32, device="cuda")
        sizes = FP8_ROWS.row_bytes, _BLOCK_SIZE, TOPK, HOT_SLOTS
        kind = {"is_mla": True, "is_dsv4_layout": False}
        flags = {"record_miss_plan": False, "skip_io": False}
        jobs: dict[str, Callable[[], object]] = {
            "fast_topk": partial(self._fast_topk.fast_topk, scores, length, TOPK),
            "DeepSelect": partial(self._deep_select.topk, scores, TOPK),
            "swap-in": partial(self._hisparse._jit_sparse_module, *sizes, **kind, **flags),
        }
        return [partial(self._compile, kernel, job) for kernel, job in jobs.items()]

    def fast_topk(self, rows: int, columns: int, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Columns of the k largest of each row, in no order."""
        self._require("fast_topk")
        lengths = torch.full((rows,), columns, dtype=torch.int32, device="cuda")
        starts = torch.zeros(rows, dtype=torch.int32, device="cuda")
        return lambda scores: self._fast_topk.fast_topk(scores, lengths, k, starts)

    def deep_select(self, k: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Columns of the k largest of each row, in no order."""
        self._require("DeepSelect")
        return lambda scores: self._deep_select.topk(scores, k)[1]

    def deep_select_until(self, k: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """As `deep_select`, of the columns before each row's end."""
        self._require("DeepSelect")
        return lambda scores, end: self._deep_select.topk(scores, k, end=end)[1]

    def swap_in(
        self, topk: int, hot_slots: int, row_bytes: int
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], SglangHotBuffers]:
        """Makes cold buffers of (host rows, host row ids [requests, tokens], lengths)."""
        self._require("swap-in")
        load = self._hisparse.load_cache_to_device_buffer_mla
        return partial(SglangHotBuffers, load, (topk, hot_slots, row_bytes))

    def _compile(self, kernel: str, job: Callable[[], object]) -> None:
        try:
            job()
        except Exception as error:  # of a compiler; said where the kernel is used
            self._failed[kernel] = error

    def _require(self, kernel: str) -> None:
        """Refuses at once what did not compile: another try would take as long."""
        if kernel in self._failed:
            raise RuntimeError(f"{kernel} did not compile: {self._failed[kernel]}")
