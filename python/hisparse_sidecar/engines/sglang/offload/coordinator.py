"""In the place of SGLang's `HiSparseCoordinator`: its calls, on a tier of ours."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from hisparse_sidecar.engine_rows.counters import CounterReading
from hisparse_sidecar.engine_stats import EngineStats
from hisparse_sidecar.engines.sglang.calls import CallCounts
from hisparse_sidecar.engines.sglang.offload.engine_tier import make_tier
from hisparse_sidecar.engines.sglang.offload.no_prefixes import NoPrefixes
from hisparse_sidecar.engines.sglang.offload.rank_agreement import agree, shared_place
from hisparse_sidecar.engines.sglang.offload.requests import (
    end_as_unavailable,
    most_tokens,
    prefilled_tokens,
    table_row_of,
)
from hisparse_sidecar.engines.sglang.offload.staging import StagedRequest, StagingQueue
from hisparse_sidecar.engines.sglang.offload.stats import Listener, StatsReporter, stats_of
from hisparse_sidecar.engines.sglang.offload.timeouts import RUNNING_TIMEOUT, in_time
from hisparse_sidecar.engines.sglang.offload.token_stats import HiSparseTokenStats, token_stats
from hisparse_sidecar.engines.sglang.pool.offloaded_keys import OffloadedKeys
from hisparse_sidecar.engines.sglang.pool.pool_part import PoolPart, part_size
from hisparse_sidecar.engines.sglang.unsupported import check_offload, layer_groups
from hisparse_sidecar.errors import WrongState

_LOG = logging.getLogger("hisparse_sidecar.sglang")
_NONE = 0  # no handle of the core's is 0


class HiSparseCoordinator:
    """KV rows of decoding requests are on the host, hot ones in a part of SGLang's device pool.

    A request is admitted when its prefill is done: the core reserves host pages and a hot buffer
    for all its tokens, or it waits, first come, first served, and keeps its pages of the pool until
    then. So nothing is ever full in the middle of decoding.

    Attributes:
        num_real_reqs: [1] int32, requests of a running step; SGLang fills it.
        device_buffer_size: rows of a hot buffer, a layer.
        tier: host pool and hot buffers.
        offloaded_keys: where index keys lie that do not stay at SGLang's slots; None = they do.
        rank: this process's, of those that must agree.
        selections: counts of the backends that choose the tokens.
        prefixes: the prefix cache, which SGLang makes after the coordinator, or `NoPrefixes`.
    """

    def __init__(  # noqa: PLR0913  (SGLang's parameters)
        self,
        req_to_token_pool: Any,  # noqa: ANN401
        token_to_kv_pool_allocator: Any,  # noqa: ANN401
        top_k: int,
        device_buffer_size: int,
        device: str,
        tp_group: Any,  # noqa: ANN401
        host_to_device_ratio: int = 2,
        swap_in_block_size: int = 960,
        shared_index_layers: Sequence[bool] | None = None,
        num_draft_tokens: int = 0,
        *,
        hot_share: float = 0.5,
        window_pages: int | None = None,
        share_host_pool: bool = True,
        listeners: Sequence[Listener] = (),
    ) -> None:
        """Takes its part of the pool and makes the host pool.

        Args:
            req_to_token_pool: SGLang's table of slots.
            token_to_kv_pool_allocator: SGLang's allocator for HiSparse.
            top_k: tokens that a layer attends to.
            device_buffer_size: rows of a hot buffer.
            device: where the pool lies.
            tp_group: process group on the CPU of the ranks that must agree; None = this one alone.
            host_to_device_ratio: is in the allocator already: it has slots for so many tokens.
            swap_in_block_size: of a kernel that does not run here.
            shared_index_layers: for each layer whether it uses the selection of the one before.
            num_draft_tokens: must be 0.
            hot_share: most of the pool's rows that hot buffers may take.
            window_pages: pages of index keys on the device, of a request and anchor layer, in a
                pool that was made for it (`pool_hooks`); None = index keys stay at SGLang's slots.
            share_host_pool: ranks of `tp_group` have one host pool, where they are on one host.
            listeners: who is told now and then what offload holds and has done.

        Raises:
            InvalidArgument: the settings do not fit; says what was found and needed.
            RegionError: the host pool is not to be had.
            DeadlinePassed, TierDown, WrongState: the ranks of a pool did not come together.
        """
        allocator = token_to_kv_pool_allocator
        pool = allocator.get_kvcache()
        check_offload(allocator, pool, device_buffer_size, top_k, num_draft_tokens)
        self.req_to_token_pool, self.token_to_kv_pool_allocator = req_to_token_pool, allocator
        self.device_buffer_size, self.device = device_buffer_size, torch.device(device)
        self._mapping = allocator.full_to_hisparse_device_index_mapping
        num_requests = req_to_token_pool.req_to_token.shape[0]
        device_pages = allocator.hisparse_attn_allocator
        self._device_rows = device_pages.size
        rows = part_size(self._device_rows, num_requests, device_buffer_size, hot_share)
        most = most_tokens(req_to_token_pool.max_context_len, allocator.size_full)
        self._part = PoolPart(device_pages, rows)
        with shared_place(tp_group, is_wanted=share_host_pool) as place:
            self.tier = make_tier(
                allocator,
                self._part,
                layer_groups(len(pool.kv_buffer), shared_index_layers),
                topk=top_k,
                hot_slots=device_buffer_size,
                num_requests=num_requests,
                most_tokens=most,
                window_pages=window_pages,
                place=place,
            )
        self.num_real_reqs = torch.zeros(1, dtype=torch.int32, device=self.device)
        self._queue = StagingQueue(self.tier, self._rows_of, most, self._open_for)
        self._first_layer = first = pool.start_layer or 0
        self.offloaded_keys: OffloadedKeys | None = None
        if window_pages is not None:
            keys = self.tier, self._mapping, self.num_real_reqs, first
            self.offloaded_keys = OffloadedKeys(*keys)
        self.prefixes: Any = NoPrefixes()
        self._sequences = [_NONE] * num_requests
        self._producer: Any = None
        self._new_rows = self.tier.new_rows.long()
        self._tp_group = tp_group
        self.rank = 0 if tp_group is None else torch.distributed.get_rank(tp_group)
        self.selections: list[CallCounts] = []
        self._reporter = StatsReporter(self, listeners)

    @property
    def prompt_rows(self) -> int:
        """Rows of the pool that are left for prompts."""
        return int(self._device_rows) - self._part.num_rows

    # -- from prefill to decode ---------------------------------------------------------------

    @property
    def ack_staging_queue(self) -> list[StagedRequest]:
        """Requests between prefill and decode, in the order in which they came."""
        return self._queue.requests

    def admit_request_into_staging(self, req: Any) -> None:  # noqa: ANN401
        """Queues a request whose prefill is done; its rows go to the host when there is room."""
        req.hisparse_staging = True
        self._queue.add(req)

    def has_ongoing_staging(self) -> bool:
        """Whether requests are between prefill and decode."""
        return bool(self._queue.requests)

    def collect_ready_reqs(self) -> list[Any]:
        """Takes the requests out of the queue that may decode; their pages of the pool are free.

        A prompt's rows are on the host on all ranks then: where they share the pool, rank 0 has
        copied them, and the others see its event by the agreement.

        Raises:
            WrongState: the ranks have taken other decisions.
        """
        self._reporter.tick()
        self.prefixes.end_left_loads()
        if not self._queue.requests:
            return []
        requests = [staged.req for staged in self._queue.requests]
        self._queue.copy_where_room()
        ready = self._queue.num_ready(), *in_time(requests)
        num_ready, *are_in_time = agree(self._tp_group, ready, self.tier.num_compared)
        for req, is_in_time in zip(requests, are_in_time, strict=False):  # none without a limit
            if not is_in_time:
                end_as_unavailable(req, RUNNING_TIMEOUT)
        found = self._queue.take(num_ready)
        for staged in found:
            self._free_rows(staged.req)
            self._sequences[table_row_of(staged.req)] = staged.sequence
            staged.req.hisparse_staging = False
            self.prefixes.keep_prompt(staged.req, staged.sequence)
        return [staged.req for staged in found]

    def _open_for(self, req: Any, to_come: int) -> int:  # noqa: ANN401
        return int(self.prefixes.open_for(self.tier, req, to_come))

    def _free_rows(self, req: Any) -> None:  # noqa: ANN401
        """Of the pool: the prompt's own, and a prefix that nobody else has loaded."""
        own = self._slots_of(req)[self.prefixes.loaded_tokens(req) :]
        self.token_to_kv_pool_allocator.free_hisparse(own)
        self.prefixes.end_load(req)

    def _rows_of(self, req: Any) -> torch.Tensor:  # noqa: ANN401
        """[prefilled tokens] int64, rows of the pool."""
        rows: torch.Tensor = self._mapping[self._slots_of(req)]
        return rows

    def _slots_of(self, req: Any) -> torch.Tensor:  # noqa: ANN401
        """[prefilled tokens] int64, SGLang's slots of the request."""
        table = self.req_to_token_pool.req_to_token
        slots: torch.Tensor = table[table_row_of(req), : prefilled_tokens(req)].long()
        return slots

    # -- decode -------------------------------------------------------------------------------

    def set_decode_producer_stream(self, stream: Any) -> None:  # noqa: ANN401
        """Tells the stream that forward passes run on."""
        self._producer = stream

    def map_last_loc_to_buffer(
        self,
        seq_lens: torch.Tensor,
        out_cache_loc: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        req_pool_indices_cpu: torch.Tensor,
    ) -> None:
        """Appends a token to every request of the next step, whose slots get the step's own rows.

        Raises:
            WrongState: a request has another length than SGLang says.
        """
        sequences = [self._sequences[row] for row in req_pool_indices_cpu.tolist()]
        lengths = torch.tensor(self.tier.append(sequences)) + 1
        if not torch.equal(lengths, seq_lens_cpu.long()):
            known = seq_lens_cpu.tolist()
            raise WrongState(f"requests have {lengths.tolist()} tokens, SGLang says {known}")
        self._mapping[out_cache_loc] = self._new_rows[: len(sequences)]

    def wait_for_pending_backup(self) -> None:
        """Before a forward pass, on its stream: brings the step's tables to their place."""
        self.tier.load_step()

    def fetch(self, layer_id: int, positions: torch.Tensor) -> None:
        """Begins to copy in what a decode pass has selected, while SGLang makes queries and rows.

        Args:
            layer_id: number of a layer that selects.
            positions: [rows, top_k] int32, which SGLang gives to `swap_in_selected_pages` later.
        """
        self.tier.fetch(layer_id - self._first_layer, positions, self.num_real_reqs)

    def swap_in_selected_pages(
        self,
        req_pool_indices: torch.Tensor,
        compressed_seq_lens: torch.Tensor,
        top_k_result: torch.Tensor,
        layer_id: int,
    ) -> torch.Tensor:
        """Rows of the pool [rows, top_k] int32 of the selected positions, all resident."""
        layer = layer_id - self._first_layer
        return self.tier.swap_in(layer, top_k_result, self.num_real_reqs)

    def has_slots_for(self, num_tokens: int) -> bool:
        """Whether decoding requests find slots for so many tokens more.

        SGLang itself looks for rows of the pool, too, which decoding takes none of: prompts that
        fill the pool would make it retract requests for nothing.
        """
        slots = self.token_to_kv_pool_allocator.logical_attn_allocator
        if slots.available_size() < num_tokens:
            self.prefixes.make_slot_room(num_tokens)
        return bool(slots.available_size() >= num_tokens)

    # -- ends ---------------------------------------------------------------------------------

    def abort_staging_request(self, req: Any) -> None:  # noqa: ANN401
        """Takes a request out of the queue; its host pages and its pages of the pool are free."""
        self._queue.remove(req)
        self._free_rows(req)
        req.hisparse_staging = False

    def abort_staged(self, recv_req: Any) -> None:  # noqa: ANN401
        """Marks the requests between prefill and decode that an `AbortReq` means.

        They get no room any more, and `staged_ends` ends them before the next pass.
        """
        from sglang.srt.managers.schedule_batch import FINISH_ABORT

        for staged in self._queue.requests:
            if recv_req.abort_all or staged.req.rid.startswith(recv_req.rid):
                if recv_req.abort_message:
                    end_as_unavailable(staged.req, recv_req.abort_message)
                elif staged.req.to_finish is None:
                    staged.req.to_finish = FINISH_ABORT()

    def marked_requests(self) -> list[Any]:
        """Requests between prefill and decode that are to end, in the order in which they came."""
        return [one.req for one in self._queue.requests if one.req.to_finish is not None]

    def retract_req(self, req: Any) -> None:  # noqa: ANN401
        """As `request_finished`: SGLang computes a retracted request again, or its end at least."""
        self.request_finished(req)

    def request_finished(self, req: Any) -> None:  # noqa: ANN401
        """Gives back all that a request has, whatever state it is in."""
        if req.hisparse_staging:
            self.abort_staging_request(req)
            return
        row = table_row_of(req)
        sequence, self._sequences[row] = self._sequences[row], _NONE
        if sequence == _NONE:  # prefill was its end: its pages are still SGLang's
            return
        self.wait_for_passes()  # a step that was launched ahead may still have it
        self.prefixes.leave(req, sequence, self.tier.length(sequence))
        self.tier.close_sequence(sequence)
        start = self.prefixes.first_own_token(req)  # others may have loaded what is before
        slots = self.req_to_token_pool.req_to_token[row, start : req.kv.kv_allocated_len].long()
        self._mapping[slots] = 0

    def wait_for_passes(self) -> None:
        """Lets the current stream wait for passes that were launched."""
        if self._producer is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._producer)

    def pool_was_cleared(self) -> None:
        """After SGLang has freed every page of an idle pool.

        Raises:
            WrongState: requests are open.
            HisparseError: an invariant is broken.
        """
        num_open = self.tier.stats().sequences
        if num_open:
            raise WrongState(f"SGLang's pool was cleared, {num_open} requests are open")
        self.check_integrity()
        self._part.take_again()

    def destroy(self) -> None:
        """Waits for copies and gives the host pool back."""
        self._reporter.close()
        self._queue.synchronize()
        self.tier.close()
        _LOG.info("hisparse: the host pool is given back")

    # -- what is held -------------------------------------------------------------------------

    def begin_reading(self) -> CounterReading:
        """Launches a transfer of the device's counters, behind the passes that were launched."""
        producer = nullcontext() if self._producer is None else torch.cuda.stream(self._producer)
        with producer:
            return self.tier.counters.begin_reading()

    def stats(self) -> EngineStats:
        """What offload holds and has done; waits for the device."""
        if self._producer is not None:
            self._producer.synchronize()
        return stats_of(self, self.tier.counters.read())

    def get_token_stats(self) -> HiSparseTokenStats:
        """Rows in use of the pool, our free ones not among them, and tokens of the host pool."""
        return token_stats(self.tier.stats(), self.prompt_rows, self.token_to_kv_pool_allocator)

    def check_integrity(self) -> None:
        """Raises HisparseError that names the first invariant found broken; between steps."""
        self.tier.check_integrity()
        self.prefixes.check_integrity()

    # -- not offered --------------------------------------------------------------------------

    def allocate_spec_scratch(self, req_pool_indices: list[int]) -> None:
        """Without draft tokens there is none; SGLang calls it all the same."""
