"""Ranks of SGLang's attention TP as processes: `python -m ... LIFE RANKS WIDTH FOLDER`, JSON out.

Each has SGLang's own pool, allocator and requests, a group that SGLang made, and our coordinator.
SGLang is loaded once, in the process that they are forked from, which has no threads then.
"""

import json
import logging
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.ranks.pool_world import file_of, forbid_writes

Life = Callable[["Place"], Any]
_SECONDS = 300.0


class Place:
    """Where a rank stands.

    Attributes:
        rank: of all processes.
        group: SGLang's `GroupCoordinator` of the ranks that run one batch.
        said: lines of our log.
    """

    def __init__(self, rank: int, group: Any) -> None:
        self.rank, self.group, self.said = rank, group, list[str]()
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore
        log = logging.getLogger("hisparse_sidecar.sglang")
        log.setLevel(logging.INFO)
        log.addHandler(handler)

    @property
    def cpu_group(self) -> Any:
        return self.group.cpu_group

    def together(self) -> None:
        """As a layer's sum, or a pass's end: nobody goes on before all have come."""
        dist.barrier(self.cpu_group)

    def guard(self, coordinator: Any) -> tuple[int, int]:
        """Keeps a rank that reads from writing; the file of its host pool."""
        tier = coordinator.tier
        if not tier.writes_host:
            forbid_writes(tier._host.region)
        return file_of(tier._host.region)


def _run(rank: int, life: Life, ranks: int, width: int, folder: Path, said: Connection) -> None:
    from sglang.srt.distributed.parallel_state import (
        init_distributed_environment,
        init_model_parallel_group,
    )

    torch.set_num_threads(1)
    try:
        init_distributed_environment(ranks, rank, f"file://{folder}/meet", rank, "gloo")
        groups = [list(range(first, first + width)) for first in range(0, ranks, width)]
        gpu_parts = {"use_pynccl": False, "use_custom_allreduce": False}
        gpu_parts |= {"use_torch_symm_mem_allreduce": False}
        group = init_model_parallel_group(
            groups, rank, "gloo", group_name="attention_tp", **gpu_parts
        )
        said.send((True, life(Place(rank, group))))
    except BaseException:
        said.send((False, traceback.format_exc()))
        raise


def _reports(life: Life, ranks: int, width: int, folder: Path) -> list[Any]:
    forks = multiprocessing.get_context("fork")
    pipes, started, found = [], [], []
    for rank in range(ranks):
        reports, said = forks.Pipe(duplex=False)
        process = forks.Process(
            target=_run, args=(rank, life, ranks, width, folder, said), daemon=True
        )
        process.start()
        said.close()
        pipes.append(reports)
        started.append(process)
    for rank, reports in enumerate(pipes):
        found.append(reports.recv() if reports.poll(_SECONDS) else (False, f"rank {rank} is late"))
    for process in started:
        process.kill()
        process.join()
    return found


def main(name: str, ranks: str, width: str, folder: str) -> None:
    """Runs a life of `rank_lives` and prints what each rank came to."""
    from tests.engines.sglang.on_the_cpu import sglang_on_the_cpu
    from tests.engines.sglang.world import server_args

    with sglang_on_the_cpu():
        options = "--attention-backend hisparse --enable-hisparse --disable-radix-cache"
        server_args(Path(folder), *options.split(), "--radix-cache-backend", "hisparse")
        from tests.engines.sglang import rank_lives

        life = getattr(rank_lives, name)
        found = _reports(life, int(ranks), int(width), Path(folder))
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
