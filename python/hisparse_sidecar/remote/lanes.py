"""Threads for calls that may hang, each with memory of its own that the call may use.

A caller that leaves at its deadline leaves the lane to the call: it comes back when the call ends,
and what the call still writes is nobody else's. There are never more lanes than at the start.
"""

import ctypes
import mmap
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from hisparse_sidecar._core import DeadlinePassed

T = TypeVar("T")


class Lane:
    """One thread and its memory; held by one caller at a time."""

    def __init__(self, lanes: "Lanes", num_bytes: int) -> None:
        self._map = mmap.mmap(-1, num_bytes)
        with suppress(OSError):  # a kernel without huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.memory = memoryview(self._map)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._lanes = lanes
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="hisparse-remote", daemon=True).start()

    def run(self, deadline: float, work: Callable[[], T]) -> T | None:
        """Makes one call in the lane's thread, and gives its answer.

        None where the call had not ended by `deadline`, a time of `time.monotonic()`: the lane is
        the call's then, and its caller must not touch it any more.
        """
        job = _Job(work)
        self._jobs.put(job)
        if job.wait(max(0.0, deadline - time.monotonic())):
            return job.result()
        self._lanes.note_left(1)
        return None

    def end(self) -> None:
        """Ends the thread; the lane must not be used again."""
        self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.run():  # its caller has left
                self._lanes.note_left(-1)
                self._lanes.give_back(self)


class Lanes:
    """A fixed number of lanes."""

    def __init__(self, num_lanes: int, num_bytes: int) -> None:
        self._free: list[Lane] = []  # the last used is the next: its memory is still in the CPU
        self._num_free: queue.SimpleQueue[None] = queue.SimpleQueue()  # one entry a free lane
        self._lock = threading.Lock()
        self._num_left = 0  # below the truth while a call ends just as it is left
        self.all = [Lane(self, num_bytes) for _ in range(num_lanes)]
        for lane in self.all:
            self.give_back(lane)

    @property
    def all_hang(self) -> bool:
        """Whether every lane is left to a call that has not ended by its caller's deadline."""
        return self._num_left >= len(self.all)

    def note_left(self, number: int) -> None:
        """So many more calls go on without their callers."""
        with self._lock:
            self._num_left += number

    def take(self, call: str, deadline: float) -> Lane:
        """A free lane; waits for one, but not beyond the deadline.

        Raises:
            DeadlinePassed: every lane was in use until then.
        """
        try:
            self._num_free.get(timeout=max(0.0, deadline - time.monotonic()))
            return self._free.pop()
        except queue.Empty:
            in_use = f"{len(self.all)} lanes in use, {self._num_left} by calls that hang"
            raise DeadlinePassed(f"{call}: deadline passed, {in_use}") from None

    def give_back(self, lane: Lane) -> None:
        """Ends the caller's use; a lane that was left to a call comes back by itself."""
        self._free.append(lane)
        self._num_free.put(None)

    def end_all(self, seconds: float) -> bool:
        """Ends every lane that becomes free in time; whether that is all of them."""
        deadline = time.monotonic() + seconds
        try:
            for _ in self.all:
                self.take("close", deadline).end()
        except DeadlinePassed:
            return False
        return True


class _Job(Generic[T]):
    """One call: made by the lane's thread, waited for by its caller, left by at most one."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._ended = threading.Lock()
        self._ended.acquire()
        self._mutex = threading.Lock()
        self._has_ended = self._is_left = False
        self._answer: T | None = None
        self._error: BaseException | None = None

    def run(self) -> bool:
        """Makes the call; whether its caller had left by the end."""
        try:
            self._answer = self._work()
        except BaseException as error:  # it belongs to the caller's thread
            self._error = error
        with self._mutex:
            self._has_ended = True
            self._ended.release()
            return self._is_left

    def wait(self, seconds: float) -> bool:
        """Whether the call ended in time; if not, the caller has left."""
        if self._ended.acquire(timeout=seconds):
            return True
        with self._mutex:
            self._is_left = not self._has_ended
            return self._has_ended

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # the call has ended without an error
