"""Shared and tensor memory of a Gluon kernel, and the asynchronous work that reads it late."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from tests.kernels.gluon_machine.values import Value


class DeadlockError(Exception):
    """Every partition waits for a barrier, and nothing is under way that would arrive there."""


class _AbandonedError(Exception):
    """Ends the other partitions of a failed run."""


class Memory:
    """Some of a program's memory, twice: as warps see it, and as TMA and tensor cores do.

    What warps write to shared memory is seen by the others after a fence; of tensor memory both are
    one. Fresh memory is NaN.
    """

    def __init__(self, machine: Machine, own: torch.Tensor, fenced: torch.Tensor) -> None:
        self.machine, self.own, self.fenced = machine, own, fenced

    @classmethod
    def shared(cls, machine: Machine, dtype: torch.dtype, shape: list[int]) -> Memory:
        return cls(machine, _fresh(dtype, shape), _fresh(dtype, shape))

    @classmethod
    def tensor_memory(cls, machine: Machine, dtype: torch.dtype, shape: list[int]) -> Memory:
        values = _fresh(dtype, shape)
        return cls(machine, values, values)

    @property
    def shape(self) -> list[int]:
        return list(self.own.shape)

    @property
    def place(self) -> tuple[int, int]:
        """Tells two barriers apart."""
        return self.own.untyped_storage().data_ptr(), self.own.storage_offset()

    def _view(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Memory:
        own = change(self.own)
        return Memory(self.machine, own, own if self.fenced is self.own else change(self.fenced))

    def index(self, at: Any) -> Memory:
        return self._view(lambda values: values[int(at)])

    def slice(self, start: int, length: int, dim: int | None = None) -> Memory:
        if dim is None:  # Gluon's default: rows of shared memory, columns of tensor memory
            dim = 1 if self.fenced is self.own else 0
        return self._view(lambda values: values.narrow(dim, start, length))

    def permute(self, order: tuple[int, ...]) -> Memory:
        return self._view(lambda values: values.permute(order))

    def reinterpret(self, dtype: torch.dtype, shape: list[int], _layout: object) -> Memory:
        size = torch.Size(shape).numel() * dtype.itemsize

        def change(values: torch.Tensor) -> torch.Tensor:
            return values.view(-1).view(torch.uint8)[:size].view(dtype).view(shape)

        return self._view(change)

    _reinterpret = reinterpret

    def load(self, _layout: object = None) -> Value:
        self.machine.pause()
        return Value(self.own.clone())

    def store(self, value: Value) -> None:
        self.machine.pause()
        assert self.shape == value.shape, f"{value.shape} does not fit {self.shape}"
        self.own.copy_(value.tensor)
        if self.fenced is not self.own:
            self.machine.unfenced().append(self)

    def write_async(self, values: torch.Tensor) -> None:
        """As TMA and tensor cores write: whoever waits for it sees it."""
        self.own.copy_(values)
        self.fenced.copy_(values)


def _fresh(dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return torch.full((size,), 0xFF, dtype=torch.uint8).view(dtype).view(shape)


class _Barrier:
    """An mbarrier: a phase ends when all arrivals and all expected bytes have come."""

    def __init__(self, count: int) -> None:
        self.count, self.pending, self.missing_bytes, self.phase = count, count, 0, 0

    def arrive(self, count: int = 1) -> None:
        self.pending -= count
        assert self.pending >= 0, "more arrivals than the barrier's count"
        self.settle()

    def settle(self) -> None:
        if self.pending == 0 and self.missing_bytes == 0:
            self.pending, self.phase = self.count, self.phase ^ 1


class Machine:
    """Runs the partitions of a program in turns that a seed chooses, one operation at a time.

    TMA copies happen in any order and late; products happen in theirs, and late.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._barriers: dict[tuple[int, int], _Barrier] = {}
        self._copies: list[Callable[[], None]] = []
        self._products: deque[Callable[[], None]] = deque()
        self._turns: dict[int, _Turn] = {}
        self._unfenced: dict[int, list[Memory]] = {}

    def init_barrier(self, barrier: Memory, count: int) -> None:
        self._barriers[barrier.place] = _Barrier(count)

    def barrier(self, barrier: Memory) -> _Barrier:
        return self._barriers[barrier.place]

    def wait(self, barrier: Memory, parity: Any) -> None:
        state, parity = self.barrier(barrier), int(parity)
        self.pause(lambda: state.phase != parity)

    def copy_later(self, copy: Callable[[], None]) -> None:
        self._copies.append(copy)
        self.pause()

    def multiply_later(self, product: Callable[[], None]) -> None:
        self._products.append(product)
        self.pause()

    def unfenced(self) -> list[Memory]:
        """What the current partition has written since its last fence."""
        return self._unfenced.setdefault(threading.get_ident(), [])

    def fence(self) -> None:
        self.pause()
        written = self.unfenced()
        for memory in written:
            memory.fenced.copy_(memory.own)
        written.clear()

    def pause(self, until: Callable[[], bool] = lambda: True) -> None:
        """Lets others go first, at least until the condition holds."""
        turn = self._turns.get(threading.get_ident())
        if turn is None:
            assert until(), "a wait outside of all partitions that nobody ends"
        else:
            turn.give(until)

    def run(self, partitions: list[tuple[Callable[[], Any], int]]) -> Any:
        """The result of the first of the partitions, (function, warps).

        Raises:
            DeadlockError: none of them can go on.
        """
        turns = [_Turn(function, warps) for function, warps in partitions]
        for turn in turns:
            turn.thread.start()
            assert turn.thread.ident is not None
            self._turns[turn.thread.ident] = turn
        try:
            while not turns[0].done or any(not turn.done for turn in turns):
                self._step(turns)
        finally:
            for turn in turns:
                turn.end()
            self._turns.clear()
        under_way = len(self._copies) + len(self._products)
        assert not under_way, "work goes on after the program's end"
        return turns[0].result

    def warps(self, default: int) -> int:
        """Of the current partition."""
        turn = self._turns.get(threading.get_ident())
        return default if turn is None else turn.warps

    def _step(self, turns: list[_Turn]) -> None:
        ready: list[Callable[[], None]] = [turn.go for turn in turns if turn.is_ready()]
        if self._products:
            ready.append(lambda: self._products.popleft()())
        if self._copies:
            ready.append(lambda: self._copies.pop(self._random.randrange(len(self._copies)))())
        if not ready:
            raise DeadlockError
        self._random.choice(ready)()


class _Turn:
    """One partition: a thread that runs only while the machine lets it."""

    def __init__(self, function: Callable[[], Any], warps: int) -> None:
        self.function, self.warps = function, warps
        self.done, self.result = False, None
        self._error: BaseException | None = None
        self._until: Callable[[], bool] = lambda: True
        self._abandoned = False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._main, daemon=True)

    def is_ready(self) -> bool:
        return not self.done and self._until()

    def go(self) -> None:
        self._mine.release()
        self._theirs.acquire()
        if self._error is not None:
            raise self._error

    def give(self, until: Callable[[], bool]) -> None:
        self._until = until
        self._theirs.release()
        self._mine.acquire()
        if self._abandoned:
            raise _AbandonedError

    def end(self) -> None:
        if not self.done:
            self._abandoned = True
            self._mine.release()
        self.thread.join()

    def _main(self) -> None:
        self._mine.acquire()
        try:
            if not self._abandoned:
                self.result = self.function()
        except _AbandonedError:
            pass
        except BaseException as error:
            self._error = error
        self.done = True
        self._theirs.release()
