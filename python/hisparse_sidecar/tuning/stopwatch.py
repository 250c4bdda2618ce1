"""Time two calls in turn, so that what slows the machine slows both."""

import time
from collections.abc import Callable
from statistics import median

import torch

Call = Callable[[], object]


def time_in_turn(
    calls: tuple[Call, Call], num_warm_ups: int, num_runs: int, device: torch.device
) -> tuple[float, float]:
    """Median microseconds of each call, each waited for, launches included."""
    for _ in range(num_warm_ups):
        for call in calls:
            call()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(num_runs):
        for call, seconds in zip(calls, times, strict=True):
            seconds.append(_time_once(call, device))
    first, second = (median(seconds) * 1e6 for seconds in times)
    return first, second


def captured(call: Call) -> Call:
    """The replay of a CUDA graph of `call`, which must not wait for the device."""
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):  # compiles the kernels: nothing may be loaded while capturing
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _time_once(call: Call, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
