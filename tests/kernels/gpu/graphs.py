"""What only a GPU can show of an op: graph replay, no allocation, reads of pinned memory."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch


def replay(
    call: Callable[[], object], held: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]
) -> None:
    """Captures `call`, then gives the tensors that it reads or changes new values, and replays it.

    Args:
        call: one or several ops on tensors that stay where they are; runs once before the capture.
        held: CUDA tensors of `call`.
        wanted: a value for each of them, at the time of the replay; anywhere.
    """
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):  # compiles the kernels: nothing may be loaded while capturing
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for tensor, value in zip(held, wanted, strict=True):
        tensor.copy_(value)
    graph.replay()
    torch.cuda.synchronize()


def assert_allocates_nothing(call: Callable[[], object]) -> None:
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    call()
    torch.cuda.synchronize()
    made = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    assert made == 0, f"{made} allocations, needs 0"


def pinned_on_gpu(values: torch.Tensor) -> torch.Tensor:
    """Pinned host memory as a CUDA tensor: the address is the same on both sides."""
    pinned = values.pin_memory()
    interface = {
        "shape": tuple(pinned.shape),
        "typestr": "|u1",
        "data": (pinned.data_ptr(), False),
        "version": 3,
    }
    owner = SimpleNamespace(__cuda_array_interface__=interface, pinned=pinned)
    return torch.as_tensor(owner, device="cuda")
