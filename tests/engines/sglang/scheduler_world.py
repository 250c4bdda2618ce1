"""SGLang's own scheduler, requests and prefix cache around the parts of `offload_world`."""

from array import array
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from hisparse_sidecar.engines.sglang.install import install
from hisparse_sidecar.engines.sglang.offload.beside import keep_coordinator
from hisparse_sidecar.engines.sglang.offload.coordinator import HiSparseCoordinator
from hisparse_sidecar.engines.sglang.offload.scheduler_hooks import SCHEDULER_HOOKS
from hisparse_sidecar.engines.sglang.targets import SCHEDULER_TARGETS
from tests.engines.sglang.offload_world import PAGE, Engine


class SchedulerWorld:
    """A scheduler that has hooks of ours and no model; requests are prefilled by hand.

    Attributes:
        engine: pool, allocator, table and our coordinator.
        scheduler: SGLang's `Scheduler`, with what these tests' calls look at.
        tree_cache: the engine's, or SGLang's, disabled: it gives a request's slots back.
    """

    def __init__(self, engine: Engine | None = None, **named: Any) -> None:
        from sglang.srt.managers.scheduler import Scheduler

        install(SCHEDULER_TARGETS, SCHEDULER_HOOKS)
        self.engine = Engine(**named) if engine is None else engine
        keep_coordinator(self.engine.allocator, self.coordinator)
        self.tree_cache = getattr(engine, "tree", None) or make_tree_cache(self.engine)
        self.scheduler = Scheduler.__new__(Scheduler)
        for name, value in self._attributes().items():
            setattr(self.scheduler, name, value)

    @property
    def coordinator(self) -> HiSparseCoordinator:
        return self.engine.coordinator

    def _attributes(self) -> dict[str, Any]:
        """Of a scheduler that is idle, in both versions of SGLang."""
        from sglang.srt.disaggregation.utils import DisaggregationMode
        from sglang.srt.managers.schedule_batch import ScheduleBatch

        nothing = SimpleNamespace(
            current_scheduler_metrics_enabled=False,
            last_gen_throughput=0.0,
            publish_kv_events=lambda: None,
            abort_requests=lambda recv_req: None,
            retire_group=lambda req: None,
            pp_size=1,
        )
        self.sent: list[Any] = []
        reporters = "metrics_reporter", "kv_events_publisher", "grammar_manager"
        send = SimpleNamespace(send_output=lambda out, req: self.sent.append(out))
        return {
            "hisparse_coordinator": self.coordinator,
            "req_to_token_pool": self.engine.table,
            "token_to_kv_pool_allocator": self.engine.allocator,
            "tree_cache": self.tree_cache,
            "running_batch": ScheduleBatch(reqs=[], hisparse_coordinator=self.coordinator),
            "last_batch": None,
            "chunked_req": None,
            "waiting_queue": [],
            "result_queue": deque(),
            "disaggregation_mode": DisaggregationMode.NULL,
            "server_args": SimpleNamespace(disaggregation_mode="null"),
            "max_queued_requests": None,
            "_pause_started_at": None,
            "ipc_channels": SimpleNamespace(send_to_tokenizer=send),
            "send_abort_output": send.send_output,
            **dict.fromkeys(_OFF, False),
            **dict.fromkeys(_ABSENT),
            **dict.fromkeys((*reporters, "beam_coordinator", "ps"), nothing),
            "processed_tokens_counter": 0,
        }

    def prefill(self, tokens: int, new_tokens: int = 200, rid: str = "") -> Any:
        """A request of SGLang's whose prompt's rows are in pages of the pool."""
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        sampling = SamplingParams(max_new_tokens=new_tokens)
        req = Req(
            rid or f"request-{tokens}", "", array("q", [7] * tokens), sampling, vocab_size=1000
        )
        made = self.engine.prefill(tokens)
        self.engine.table.free_slots.remove(made.row)
        hold(req, made.row, tokens)
        return req

    def admit(self, *requests: Any) -> None:
        """Their first token is out: they go to staging."""
        for req in requests:
            req.output_ids.append(1)
            self.coordinator.admit_request_into_staging(req)

    def run(self, *requests: Any) -> None:
        """Collects requests that are ready into the running batch."""
        assert self.coordinator.collect_ready_reqs() == list(requests)
        self.scheduler.running_batch.reqs += requests

    def finish(self, req: Any) -> None:
        """A request's ordinary end."""
        from sglang.srt.mem_cache.common import release_kv_cache

        self.scheduler.running_batch.reqs = [
            one for one in self.scheduler.running_batch.reqs if one is not req
        ]
        self.coordinator.request_finished(req)
        has_old_name = hasattr(req, "set_extend_range")  # 0.5.17
        kept = {"is_insert" if has_old_name else "checkpoint": False}
        release_kv_cache(req, self.tree_cache, **kept)

    def give_what_batches_need(self, patch: pytest.MonkeyPatch, module: Any) -> None:
        """What SGLang's scheduler makes a batch of, besides requests."""
        model = SimpleNamespace(is_encoder_decoder=False, vocab_size=1000)
        relay = SimpleNamespace(stash=lambda *_: None)
        none = SimpleNamespace(is_none=lambda: True)
        values = {"device": "cpu", "model_config": model, "spec_algorithm": none}
        for name, value in (values | {"future_map": relay}).items():
            setattr(self.scheduler, name, value)
        sampling = SimpleNamespace(from_schedule_batch=lambda *_: None)
        patch.setattr(module, "SamplingBatchInfo", sampling)

    def check_nothing_is_held(self) -> None:
        """The leak check after each life."""
        self.engine.check_nothing_is_held()
        assert len(self.engine.table.free_slots) == self.engine.table.size


_OFF = (
    "enable_continuous_input_polling",
    "enable_hicache_storage",
    "enable_hisparse",
    "enable_lmcache",
    "enable_overlap",
    "enable_overlap_mlx",
    "enable_priority_scheduling",
    "enable_unified_cache_external_linker",
)
_ABSENT = ("mm_receiver", "dllm_config", "decode_offload_manager", "_pending_chunked_abort_req")


def make_tree_cache(engine: Engine) -> Any:
    """SGLang's prefix cache, disabled."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams

    params = CacheInitParams(
        disable=True,
        req_to_token_pool=engine.table,
        token_to_kv_pool_allocator=engine.allocator,
        page_size=PAGE,
    )
    try:
        from sglang.srt.mem_cache.chunk_cache import ChunkCache
    except ImportError:  # 0.5.17 alone has it
        from sglang.srt.mem_cache.unified_cache.components import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        params.tree_components = (ComponentType.FULL,)
        return UnifiedRadixCache(params=params)
    return ChunkCache(params)


def hold(req: Any, row: int, tokens: int) -> None:
    """A request has this row of the table and so many tokens, in the words of its version."""
    from sglang.srt.managers.schedule_batch import ReqKvInfo

    if hasattr(req, "set_extend_range"):  # 0.5.17
        req.set_extend_range(0, tokens)
        req.req_pool_idx, req.kv = row, ReqKvInfo(kv_allocated_len=tokens, swa_evicted_seqlen=0)
        req.kv_committed_len = tokens
    else:
        req.extend_end, req.kv.req_pool_idx = tokens, row
        req.kv.kv_allocated_len = req.kv.kv_committed_len = tokens
