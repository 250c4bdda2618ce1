"""What each call comes to on the one manager, and on the tiers below it, as integers."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import Hierarchy, Manager
from hisparse_sidecar.ranks.calls import Call, CallKind
from hisparse_sidecar.ranks.mirror import Mirror
from hisparse_sidecar.ranks.records import range_numbers

_Make = Callable[[Call], Sequence[int]]


class Deciding:
    """Makes calls for all ranks; what comes out is as `CallKind` says."""

    def __init__(self, manager: Manager, hierarchy: Hierarchy, mirror: Mirror) -> None:
        self._manager, self._hierarchy, self._mirror = manager, hierarchy, mirror
        self._makes: dict[CallKind, _Make] = {
            CallKind.OPEN: self._open,
            CallKind.FORK: self._fork,
            CallKind.APPEND: self._append,
            CallKind.TRUNCATE: _without_outcome(manager.truncate),
            CallKind.CLOSE: _without_outcome(manager.close),
            CallKind.CHECK: _without_outcome(manager.check_integrity),
            CallKind.PROMPT: self._open_prompt,
            CallKind.PREEMPT: _without_outcome(manager.preempt),
            CallKind.RESUME: self._resume,
            CallKind.ADD_TENANT: _of_quota(manager.add_tenant),
            CallKind.TENANT_USAGE: self._tenant_usage,
            CallKind.EVICT: lambda call: [manager.evict(*call.arguments)],
            CallKind.SET_QUOTA: _of_quota(manager.set_quota),
            CallKind.FLUSH: self._flush,
            CallKind.DRAIN: self._drain,
        }

    def make(self, call: Call) -> Sequence[int]:
        """Makes the call; raises what the core raises, and then nothing has changed."""
        return self._makes[call.kind](call)

    # -- sequences ----------------------------------------------------------------------------

    def _open(self, call: Call) -> list[int]:
        *counts, slots, window_slots, _ = call.arguments
        held = _held(call, slots, window_slots)
        return self._seen(self._hierarchy.open_sequence(*counts, **held))

    def _fork(self, call: Call) -> list[int]:
        *counts, slots, window_slots, _ = call.arguments
        return self._seen(self._hierarchy.fork(*counts, **_held(call, slots, window_slots)))

    def _open_prompt(self, call: Call) -> list[int]:
        max_new_tokens, slots, window_slots, *_ = call.arguments
        handle, _ = self._hierarchy.open_prompt(
            call.given.tenant,
            call.given.token_ids or (),
            max_new_tokens,
            recompute_tokens_per_second=call.given.tokens_per_second,
            **_held(call, slots, window_slots),
        )
        return self._seen(handle)

    def _resume(self, call: Call) -> list[int]:
        sequence, slots, window_slots, _ = call.arguments
        self._hierarchy.resume(sequence, **_held(call, slots, window_slots))
        return self._seen(sequence)

    def _seen(self, handle: int) -> list[int]:
        """An active sequence as it is now."""
        manager, anchors = self._manager, range(self._mirror.num_anchors)
        pooled = [manager.pooled_state(handle, anchor) for anchor in anchors]
        folded = [closed * self._mirror.block_tokens + open_rows for closed, open_rows in pooled]
        sizes = manager.length(handle), manager.admitted_tokens(handle)
        ranges = range_numbers(manager.ranges(handle))
        return [handle, *sizes, *ranges, *folded, *manager.host_pages(handle)]

    # -- what happens to them -----------------------------------------------------------------

    def _append(self, call: Call) -> list[int]:
        rows = call.rows
        for row in rows:
            if not self._mirror.has_room(*row):
                # alone, the core refuses it; after others, their shared pages would stay copied
                self._manager.append_rows([row])
        copied_before = self._manager.stats().copied_pages
        starts = self._manager.append_rows(rows, call.given.token_ids)
        has_copied = self._manager.stats().copied_pages != copied_before
        outcome: list[int] = []
        for (sequence, count), start in zip(rows, starts, strict=True):
            pages = self._mirror[sequence].pages
            changed: list[int] = []
            if has_copied or start + count > len(pages) * PAGE_TOKENS:
                changed = self._manager.host_pages(sequence)[start // PAGE_TOKENS :]
            outcome += [start, len(changed), *changed]
        return outcome

    def publish(self, sequence: int) -> list[int]:
        """Offers full pages to later prompts; what gave way: sequence, index, page, and so on."""
        if not self._manager.publish(sequence):
            return []
        replaced, before = [], self._mirror[sequence].pages
        for index, new in enumerate(self._manager.host_pages(sequence)):
            if before[index] != new:
                replaced += [sequence, index, new]
        return replaced

    def _tenant_usage(self, call: Call) -> list[int]:
        used, quota = self._manager.tenant_usage(call.given.tenant)
        return [used, -1 if quota is None else quota]

    def _flush(self, call: Call) -> Sequence[int]:
        self._hierarchy.flush(call.deadline_seconds)
        return ()

    def _drain(self, call: Call) -> Sequence[int]:
        return self._hierarchy.drain(call.deadline_seconds)


class _Held(TypedDict):
    """What a sequence holds on the device, and how long it may wait for room."""

    slots: int
    window_slots: int
    deadline_seconds: float


def _held(call: Call, slots: int, window_slots: int) -> _Held:
    return _Held(slots=slots, window_slots=window_slots, deadline_seconds=call.deadline_seconds)


def _without_outcome(method: Callable[..., None]) -> _Make:
    """Calls a method of the manager that takes the arguments as they are."""

    def make(call: Call) -> Sequence[int]:
        method(*call.arguments)
        return ()

    return make


def _of_quota(method: Callable[[str, int | None], None]) -> _Make:
    def make(call: Call) -> Sequence[int]:
        quota, *_ = call.arguments
        method(call.given.tenant, None if quota < 0 else quota)
        return ()

    return make
