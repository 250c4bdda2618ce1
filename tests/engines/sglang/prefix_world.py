"""SGLang's own requests, tree, pool and prefill admission on the CPU, with our prefix cache.

A row's bytes follow from the tokens up to it, as a model's do, so whoever finds a prefix has to
find the rows that its own tokens make. Index keys are one number a slot here.
"""

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hisparse_sidecar.engines.sglang.hooks import install_hooks
from hisparse_sidecar.engines.sglang.install import install
from hisparse_sidecar.engines.sglang.offload.beside import keep_coordinator
from hisparse_sidecar.engines.sglang.offload.scheduler_hooks import SCHEDULER_HOOKS
from hisparse_sidecar.engines.sglang.offload.staged_ends import end_staged
from hisparse_sidecar.engines.sglang.prefix.cache import make_prefix_cache
from hisparse_sidecar.engines.sglang.targets import SCHEDULER_TARGETS
from tests.engines.sglang.offload_world import LAYERS, PAGE, Engine

_MASK = (1 << 64) - 1


def prompt(count: int, seed: int = 0) -> list[int]:
    """Token ids, the same for the same seed; a longer prompt begins as a shorter one."""
    made = torch.Generator().manual_seed(seed)
    return torch.randint(1000, (2048,), generator=made)[:count].tolist()


def prefix_hashes(tokens: Sequence[int]) -> np.ndarray:
    """[tokens] uint64, a number for each token and all before it."""
    found, state = [], 1469598103934665603
    for token in tokens:
        state = ((state ^ (token + 1)) * 1099511628211) & _MASK
        found.append(state)
    return np.array(found, dtype=np.uint64)


class CachingEngine(Engine):
    """An engine whose requests are SGLang's, and find what others have left."""

    def __init__(self, **changed: Any) -> None:
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams

        install(SCHEDULER_TARGETS, SCHEDULER_HOOKS)
        super().__init__(**changed)
        keep_coordinator(self.allocator, self.coordinator)
        params = CacheInitParams(
            disable=True,
            req_to_token_pool=self.table,
            token_to_kv_pool_allocator=self.allocator,
            page_size=PAGE,
        )
        context = {"is_hybrid_swa": False, "is_hybrid_ssm": False}
        context |= {"enable_hierarchical_cache": False, "params": params}
        self.tree = make_prefix_cache(SimpleNamespace(**context))
        odd = np.random.default_rng(0).integers(1 << 62, size=(LAYERS, self.row_bytes))
        self.multipliers = (2 * odd + 1).astype(np.uint64)
        self.index_keys = torch.zeros(self.allocator.size_full + PAGE, dtype=torch.int64)
        self.old_words = hasattr(self.tree, "cache_unfinished_req") and not hasattr(
            type(self.tree).__mro__[1], "checkpoint"
        )

    # -- what a model would compute -----------------------------------------------------------

    def rows_for(self, tokens: Sequence[int]) -> torch.Tensor:
        """[LAYERS, tokens, row_bytes] uint8."""
        made = prefix_hashes(tokens)[None, :, None] * self.multipliers[:, None, :]
        return torch.from_numpy((made >> np.uint64(40)).astype(np.uint8))

    def new_row(self, req: Any) -> torch.Tensor:
        return self.rows_for(self.computed(req))[:, -1:]

    def computed(self, req: Any) -> list[int]:
        """Tokens of a request that have slots."""
        known = [*req.origin_input_ids, *req.output_ids]
        return known[: self.allocated(req)]

    @staticmethod
    def allocated(req: Any) -> int:
        return int(req.kv.kv_allocated_len)

    # -- prefill ------------------------------------------------------------------------------

    def request(self, tokens: Sequence[int], new_tokens: int = 100, **named: Any) -> Any:
        """A request as SGLang's scheduler makes it."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        params = SamplingParams(max_new_tokens=new_tokens)
        params.normalize(None)
        rid = f"request-{len(tokens)}"
        req = Req(rid, "", array("q", tokens), params, vocab_size=1 << 16, **named)
        req.rows, req.slots = torch.zeros(LAYERS, 0, self.row_bytes, dtype=torch.uint8), []
        return req

    def let_in(self, *requests: Any, chunk: int | None = None) -> list[Any]:
        """Those that SGLang's own admission takes into one prefill batch."""
        adder = self.adder(chunk=chunk)
        for req in requests:
            req.init_next_round_input(self.tree)
            adder.add_one_req(req, has_chunked_req=False, truncation_align_size=None)
        return list(adder.can_run_list)

    def adder(self, *running: Any, chunk: int | None = None) -> Any:
        """SGLang's admission of one prefill batch, beside requests that decode."""
        from sglang.srt.managers.schedule_batch import ScheduleBatch
        from sglang.srt.managers.schedule_policy import PrefillAdder

        batch = ScheduleBatch(reqs=list(running)) if running else None
        return PrefillAdder(PAGE, self.tree, self.allocator, batch, 1.0, 1 << 20, chunk)

    def only_load(self, req: Any) -> None:
        """SGLang 0.5.17's admission may load a prefix and then let its request wait."""
        from sglang.srt.mem_cache.base_prefix_cache import InitLoadBackParams

        req.init_next_round_input(self.tree)
        node, length = req.best_match_node, req.host_hit_length
        self.tree.init_load_back(InitLoadBackParams(node, length, req=req))

    def compute(self, req: Any) -> None:
        """A prefill pass over what was let in of a request; looks at the prefix that it reads."""
        from sglang.srt.mem_cache.common import evict_from_tree_cache

        begin, end = self.extent(req)
        has_row = self.row_of(req) is not None
        slots = self.prefix_slots(req)[:begin]
        self.table.alloc([req])
        req.row = self.row_of(req)
        first = -(-begin // PAGE) * PAGE
        pages = max(0, -(-end // PAGE) * PAGE - first)
        evict_from_tree_cache(self.tree, pages)
        new = self.allocator.logical_attn_allocator.alloc(pages)
        rows = self.allocator.hisparse_attn_allocator.alloc(pages)
        assert new is not None
        assert rows is not None
        taken = end - begin
        mapping = self.allocator.full_to_hisparse_device_index_mapping
        mapping[new[:taken]] = rows[:taken]
        table = self.table.req_to_token
        if not has_row:
            table[req.row, :begin] = slots.int()
        table[req.row, begin:end] = new[:taken].int()
        self.set_lengths(req, end)
        tokens = [*req.origin_input_ids, *req.output_ids][:end]
        wanted = self.rows_for(tokens)
        for layer, memory in enumerate(self.memory):
            memory[rows[:taken]] = wanted[layer][begin:end]
        self.index_keys[new[:taken]] = self.keys_of(tokens)[begin:end]
        self.check_prefill(req, tokens, wanted)
        req.rows, req.slots = wanted, table[req.row, :end].tolist()

    def check_prefill(self, req: Any, tokens: Sequence[int], wanted: torch.Tensor) -> None:
        """What an attention over the whole prompt reads in the pool, byte for byte."""
        slots = self.table.req_to_token[req.row, : len(tokens)].long()
        at = self.allocator.full_to_hisparse_device_index_mapping[slots]
        assert (at > 0).all()
        for layer, memory in enumerate(self.memory):
            assert torch.equal(memory[at], wanted[layer])
        assert torch.equal(self.index_keys[slots], self.keys_of(tokens))

    @staticmethod
    def keys_of(tokens: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(prefix_hashes(tokens).astype(np.int64))

    def next_chunk(self, req: Any, chunk: int) -> None:
        """SGLang's admission of a request's next chunk."""
        req.init_next_round_input()
        adder = self.adder(chunk=chunk)
        adder.add_chunked_req(req)
        req.inflight_middle_chunks = 1
        assert adder.can_run_list == [req]

    def stash(self, req: Any) -> None:
        """Behind a pass: SGLang's checkpoint of a request that goes on."""
        if self.old_words:
            self.tree.cache_unfinished_req(req)
        else:
            from sglang.srt.mem_cache.common import checkpoint_kv_cache

            checkpoint_kv_cache(req, self.tree)

    def prefill_tokens(self, tokens: Sequence[int], new_tokens: int = 100, **named: Any) -> Any:
        """A request that has computed its whole prompt in one pass."""
        req = self.request(tokens, new_tokens, **named)
        assert self.let_in(req) == [req]
        self.compute(req)
        return req

    def stage(self, *requests: Any) -> None:
        """Their first token is out."""
        for req in requests:
            req.output_ids.append(self.next_token(req))
            self.stash(req)
            self.coordinator.admit_request_into_staging(req)

    def start_tokens(self, *prompts: Sequence[int], **named: Any) -> list[Any]:
        """Requests that decode."""
        made = [self.prefill_tokens(prompt, **named) for prompt in prompts]
        self.stage(*made)
        assert self.collect() == made
        return made

    @staticmethod
    def next_token(req: Any) -> int:
        return (sum(req.origin_input_ids) + 31 * len(req.output_ids)) % 1000

    # -- decode -------------------------------------------------------------------------------

    def batch(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As the engine's; and every index key is where the table says."""
        for req in self.running:
            tokens = self.computed(req)
            slots = self.table.req_to_token[req.row, : len(tokens)].long()
            self.index_keys[slots[-1]] = self.keys_of(tokens)[-1]
            assert torch.equal(self.index_keys[slots], self.keys_of(tokens))
        return super().batch()

    def decode(self, steps: int = 1, padding: int = 0) -> None:
        for _ in range(steps):
            for req in self.running:
                req.slots = self.table.req_to_token[req.row, : self.allocated(req)].tolist()
            self.forward(self.prepare(), padding=padding)
            for req in self.running:
                self.set_lengths(req, self.allocated(req))
                req.output_ids.append(self.next_token(req))

    # -- ends ---------------------------------------------------------------------------------

    def finish(self, req: Any) -> None:
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH
        from sglang.srt.mem_cache.common import release_kv_cache

        req.finished_reason = FINISH_LENGTH(len(req.output_ids))
        self.coordinator.request_finished(req)
        release_kv_cache(req, self.tree, **({} if self.old_words else {"checkpoint": True}))
        self.drop(req)

    def release_aborted(self, req: Any) -> None:
        """The end of a request that does not decode."""
        from sglang.srt.managers.schedule_batch import FINISH_ABORT
        from sglang.srt.mem_cache.common import release_kv_cache

        req.finished_reason = FINISH_ABORT()
        name = "is_insert" if self.old_words else "checkpoint"
        release_kv_cache(req, self.tree, **{name: False})

    def end_marked(self) -> None:
        """What the scheduler does before a pass with requests in staging that are to end."""
        scheduler = SimpleNamespace(tree_cache=self.tree, send_abort_output=lambda *_: None)
        end_staged(scheduler, self.coordinator)

    def retract(self, req: Any) -> None:
        from sglang.srt.mem_cache.common import release_kv_cache

        self.coordinator.retract_req(req)
        name = "is_insert" if self.old_words else "checkpoint"
        release_kv_cache(req, self.tree, **{name: False})
        req.reset_for_retract()
        self.drop(req)

    def drop(self, req: Any) -> None:
        self.running = [one for one in self.running if one is not req]

    def flush(self) -> None:
        """`flush_cache` of an idle scheduler; our hook of `clear` is in its place."""
        install_hooks()
        self.tree.reset()
        self.table.clear()
        self.allocator.clear()

    def check_all(self) -> None:
        """Every invariant, and every cached page has the bytes that its tokens make."""
        self.coordinator.check_integrity()
        host = self.coordinator.tier._host.on_cpu()
        stack = [([], child) for child in self.tree.root_node.children.values()]
        while stack:
            before, node = stack.pop()
            tokens = [*before, *node.key.token_ids]
            if node.hisparse_rows.lease is not None:
                pages = torch.tensor(node.hisparse_rows.lease.pages)
                self.check_pages(pages, tokens, len(before), host)
            assert torch.equal(self.index_keys[node.value], self.keys_of(tokens)[len(before) :])
            stack += [(tokens, child) for child in node.children.values()]

    def check_pages(
        self, pages: torch.Tensor, tokens: Sequence[int], first: int, host: Any
    ) -> None:
        """Host pages have the rows of tokens from the first on."""
        ids = (pages[:, None] * PAGE + torch.arange(PAGE)).flatten()
        wanted = self.rows_for(tokens)[:, first:]
        assert all(map(torch.equal, (rows[ids] for rows in host.kv_rows), wanted))

    def check_only_the_tree_holds(self) -> None:
        """Behind all requests: what is not free is the tree's, and goes with it."""
        self.check_all()
        slots, rows, pages = self.free_tokens()
        held = self.tree.total_size()
        assert (slots + held, rows) == self.at_start[:2]
        assert pages + held // PAGE == self.at_start[2]
        assert self.tree.protected_size() == 0
        assert self.coordinator.tier.stats().sequences == 0
        assert not self.allocator.full_to_hisparse_device_index_mapping[:-1].any()

    # -- the words of a version ---------------------------------------------------------------

    def row_of(self, req: Any) -> int | None:
        found: int | None = req.req_pool_idx if self.old_words else req.kv.req_pool_idx
        return found

    def extent(self, req: Any) -> tuple[int, int]:
        if self.old_words:
            return req.extend_range.start, req.extend_range.end
        return req.prefix_len, req.extend_end

    def prefix_slots(self, req: Any) -> torch.Tensor:
        if self.old_words:
            found: torch.Tensor = req.prefix_indices
        elif req.kv.holds_kv:
            found = self.table.req_to_token[req.kv.req_pool_idx].long()
        else:
            found = self.tree.prefix_device_indices(req)
        return found

    def set_lengths(self, req: Any, tokens: int) -> None:
        if self.old_words:
            from sglang.srt.managers.schedule_batch import ReqKvInfo

            if req.kv is None:
                req.kv = ReqKvInfo(kv_allocated_len=tokens, swa_evicted_seqlen=0)
            req.kv_committed_len = tokens
        else:
            req.kv.kv_committed_len = tokens
        req.kv.kv_allocated_len = tokens
