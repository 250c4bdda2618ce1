"""SGLang's pool, allocator and table on the CPU, driven as its scheduler drives a coordinator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator

PAGE, LAYERS, TOPK, HOT, CONTEXT, REQUESTS = 64, 3, 32, 64, 1024, 6
DEVICE_PAGES, RATIO = 40, 3
ROW_BYTES = {"bf16": 1152, "fp8": 656}


@dataclass(eq=False)
class Request:
    """A request as both versions of SGLang have it, with the rows that it should find.

    Attributes:
        rows: [LAYERS, tokens, row_bytes] uint8.
    """

    tokens: int
    new_tokens: int
    old_words: bool
    row: int = -1
    slots: list[int] = field(default_factory=list)
    rows: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    hisparse_staging: bool = False

    def __post_init__(self) -> None:
        self.origin_input_ids = [7] * self.tokens
        self.output_ids: list[int] = []
        self.sampling_params = SimpleNamespace(max_new_tokens=self.new_tokens)
        self.to_finish, self.rid = None, f"request-{self.tokens}"
        self.kv = SimpleNamespace(kv_allocated_len=self.tokens)

    def place(self, row: int) -> None:
        """The request's row in the table, under the name that a version has for it."""
        self.row = row
        if self.old_words:
            self.req_pool_idx, self.extend_range = row, SimpleNamespace(end=self.tokens)
        else:
            self.kv.req_pool_idx, self.extend_end = row, self.tokens


class Engine:
    """SGLang's own parts and our coordinator; the scheduler's calls in the scheduler's order."""

    def __init__(
        self,
        kv: str = "bf16",
        *,
        ratio: int = RATIO,
        pool_options: Mapping[str, Any] | None = None,
        **changed: Any,
    ) -> None:
        from sglang.srt.mem_cache.allocator.hisparse import HiSparseTokenToKVPoolAllocator
        from sglang.srt.mem_cache.hisparse_memory_pool import HiSparseDSATokenToKVPool
        from sglang.srt.mem_cache.memory_pool import ReqToTokenPool

        dtype = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}[kv]
        size = DEVICE_PAGES * PAGE
        self.pool = HiSparseDSATokenToKVPool(
            size=size,
            page_size=PAGE,
            kv_lora_rank=512,
            dtype=dtype,
            qk_rope_head_dim=64,
            layer_num=LAYERS,
            device="cpu",
            index_head_dim=128,
            enable_memory_saver=False,
            kv_cache_dim=ROW_BYTES[kv] // dtype.itemsize,
            host_to_device_ratio=ratio,
            **(pool_options or {}),
        )
        self.allocator = HiSparseTokenToKVPoolAllocator(
            size=size,
            page_size=PAGE,
            dtype=dtype,
            device="cpu",
            kvcache=self.pool,
            need_sort=False,
            host_to_device_ratio=ratio,
        )
        self.table = ReqToTokenPool(
            size=REQUESTS, max_context_len=CONTEXT, device="cpu", enable_memory_saver=False
        )
        given = {
            "req_to_token_pool": self.table,
            "token_to_kv_pool_allocator": self.allocator,
            "top_k": TOPK,
            "device_buffer_size": HOT,
            "device": "cpu",
            "tp_group": None,
            "host_to_device_ratio": ratio,
        }
        self.coordinator = HiSparseCoordinator(**given | changed)
        self.memory = [layer.view(torch.uint8).flatten(1) for layer in self.pool.kv_buffer]
        self.row_bytes, self.running = ROW_BYTES[kv], list[Request]()
        self.free_rows = list(range(1, REQUESTS + 1))
        self.random = torch.Generator().manual_seed(1)
        self.at_start = self.free_tokens()

    def free_tokens(self) -> tuple[int, int, int]:
        """Free slots, free rows of the pool, free host pages."""
        logical = self.allocator.logical_attn_allocator.available_size()
        device = self.allocator.hisparse_attn_allocator.available_size()
        return logical, device, self.coordinator.tier.stats().host_pages_free

    def check_nothing_is_held(self) -> None:
        """The leak check after each life."""
        self.coordinator.check_integrity()
        assert self.free_tokens() == self.at_start
        stats = self.coordinator.tier.stats()
        assert (stats.sequences, stats.slots_used, stats.table_tokens_used) == (0, 0, 0)
        assert not self.allocator.full_to_hisparse_device_index_mapping[:-1].any()

    # -- prefill ------------------------------------------------------------------------------

    def prefill(self, tokens: int, new_tokens: int = 200, *, old_words: bool = False) -> Request:
        """A request whose prompt's rows are in pages of the pool, as after its prefill."""
        req = Request(tokens, new_tokens, old_words)
        req.place(self.free_rows.pop(0))
        pages = -(-tokens // PAGE) * PAGE
        slots = self.allocator.logical_attn_allocator.alloc(pages)[:tokens]
        rows = self.allocator.hisparse_attn_allocator.alloc(pages)[:tokens]
        self.allocator.full_to_hisparse_device_index_mapping[slots] = rows
        req.slots = slots.tolist()
        self.table.req_to_token[req.row, :tokens] = slots.int()
        req.rows = self.some_rows(tokens)
        for layer, memory in enumerate(self.memory):
            memory[rows] = req.rows[layer]
        return req

    def some_rows(self, tokens: int) -> torch.Tensor:
        shape = LAYERS, tokens, self.row_bytes
        return torch.randint(256, shape, dtype=torch.uint8, generator=self.random)

    def admit(self, *requests: Request) -> None:
        """Their first token is out: they go to staging."""
        for req in requests:
            req.output_ids.append(1)
            self.coordinator.admit_request_into_staging(req)

    def collect(self) -> list[Request]:
        """Those that are ready join the running batch."""
        ready = self.coordinator.collect_ready_reqs()
        self.running += ready
        return ready

    def start(self, *sizes: int, **named: Any) -> list[Request]:
        """Prefilled requests of so many tokens that decode."""
        made = [self.prefill(tokens, **named) for tokens in sizes]
        self.admit(*made)
        assert self.collect() == made
        return made

    # -- decode -------------------------------------------------------------------------------

    def prepare(self) -> torch.Tensor:
        """`prepare_for_decode`: a slot for each request's next token; the slots."""
        for req in self.running:
            pos = req.kv.kv_allocated_len
            if pos % PAGE == 0:
                req.slots.append(int(self.allocator.logical_attn_allocator.alloc(PAGE)[0]))
            else:
                req.slots.append(req.slots[-1] + 1)
            self.table.req_to_token[req.row, pos] = req.slots[-1]
            req.kv.kv_allocated_len = pos + 1
        rows, lens, slots = self.batch()
        self.coordinator.map_last_loc_to_buffer(lens, slots, rows, lens, rows)
        return slots

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of the table, lengths, and the last slots of the running requests."""
        rows = torch.tensor([req.row for req in self.running])
        lens = torch.tensor([req.kv.kv_allocated_len for req in self.running])
        return rows, lens, torch.tensor([req.slots[-1] for req in self.running])

    def forward(
        self,
        slots: torch.Tensor,
        select: Callable[[int], torch.Tensor] | None = None,
        padding: int = 0,
    ) -> None:
        """A pass over all layers that looks whether every selected row is the one it should be.

        Args:
            slots: of the new tokens.
            select: gives [requests, TOPK] int32 of a layer; default: random ones.
            padding: rows of a captured graph that no request fills.
        """
        rows, lens, _ = self.batch()
        self.coordinator.wait_for_pending_backup()
        self.coordinator.num_real_reqs.fill_(len(self.running))
        new = [self.new_row(req) for req in self.running]
        for req, made in zip(self.running, new, strict=True):
            req.rows = torch.cat([req.rows, made], dim=1)
        at = self.pool.translate_loc_to_hisparse_device(slots)
        fill = torch.zeros(padding, dtype=torch.int64)
        for layer, memory in enumerate(self.memory):
            chosen = self.lists(lens.tolist()) if select is None else select(layer)
            memory[at] = torch.cat([made[layer] for made in new])
            padded = chosen
            if padding:
                some = torch.zeros(padding, chosen.shape[1], dtype=torch.int32)
                padded = torch.cat([chosen, some])
            args = torch.cat([rows, fill]), torch.cat([lens, fill + 1]), padded
            found = self.coordinator.swap_in_selected_pages(*args, layer)
            self.check(layer, chosen, found)

    def new_row(self, req: Request) -> torch.Tensor:
        """[LAYERS, 1, row_bytes] uint8, the row of a request's newest token."""
        return self.some_rows(1)

    def lists(self, lens: Sequence[int]) -> torch.Tensor:
        """[requests, TOPK] int32: positions at random, the newest among them; -1 pads."""
        made = torch.full((len(lens), TOPK), -1, dtype=torch.int32)
        for row, length in enumerate(lens):
            before = torch.randperm(length - 1, generator=self.random)[: TOPK - 1]
            chosen = torch.cat([before, torch.tensor([length - 1])]).int()
            made[row, : len(chosen)] = chosen
        return made

    def check(self, layer: int, chosen: torch.Tensor, found: torch.Tensor) -> None:
        """Byte for byte; and nothing where nothing was selected."""
        assert found.dtype == torch.int32
        assert (found[len(chosen) :] == -1).all()
        for req, positions, rows in zip(self.running, chosen, found[: len(chosen)], strict=True):
            some = positions >= 0
            assert ((rows >= 0) == some).all()
            wanted = req.rows[layer][positions[some].long()]
            assert torch.equal(self.memory[layer][rows[some].long()], wanted)

    def decode(self, steps: int = 1, padding: int = 0) -> None:
        """So many steps of the running batch."""
        for _ in range(steps):
            self.forward(self.prepare(), padding=padding)
            for req in self.running:
                req.output_ids.append(1)

    # -- ends ---------------------------------------------------------------------------------

    def release(self, req: Request) -> None:
        """`release_kv_cache`: after the coordinator's own call."""
        end = req.kv.kv_allocated_len
        self.allocator.free(self.table.req_to_token[req.row, :end].long())
        self.free_rows.append(req.row)
        if req in self.running:
            self.running.remove(req)

    def finish(self, req: Request) -> None:
        """A request's ordinary end."""
        self.coordinator.request_finished(req)
        self.release(req)

    def retract(self, req: Request) -> None:
        """A request that SGLang will compute again."""
        self.coordinator.retract_req(req)
        self.release(req)
