"""What SGLang's ranks that run one batch have together: numbers that they agree on, a host pool.

They are the ranks of attention TP. Each has all heads' latent rows, so their rows are the same.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hisparse_sidecar.errors import WrongState
from hisparse_sidecar.ranks import RankPlace

_LOG = logging.getLogger("hisparse_sidecar.sglang")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_ROOT = "/dev/shm"  # a short path: a socket's has at most 107 bytes
_SECONDS = 300.0  # as SGLang's watchdog: a rank may compile kernels meanwhile
_JOIN_SECONDS = 600.0


def agree(group: Any, numbers: Sequence[int], num_compared: int) -> list[int]:  # noqa: ANN401
    """The least of each number over all ranks.

    Args:
        group: process group on the CPU; None = this rank alone.
        numbers: of this rank.
        num_compared: decisions that it has compared with the others, who must have as many: one
            that waits for room where others found it would not compare anything.

    Raises:
        WrongState: another rank has compared fewer, or more.
    """
    if _num_ranks(group) == 1:
        return list(numbers)
    least, most, *found = _least(group, [num_compared, -num_compared, *numbers])
    if least != -most:
        raise WrongState(f"ranks have taken {least} to {-most} decisions on host pages")
    return found


def has_same_rows(server_args: Any) -> bool:  # noqa: ANN401
    """Whether ranks of a batch have the same rows: not where they divide prompts among them."""
    return bool(getattr(server_args, "attn_cp_size", 1) == 1)


@contextmanager
def shared_place(group: Any, *, is_wanted: bool) -> Iterator[RankPlace | None]:  # noqa: ANN401
    """This rank's place among those that share a host pool, while they come together.

    Every rank of the group calls it, at the same time.

    Args:
        group: process group on the CPU; None = this rank alone.
        is_wanted: False = each rank has a pool of its own; the same on every rank.

    Returns:
        None where this rank has a pool of its own; the first rank's log says why.
    """
    num_ranks = _num_ranks(group)
    if num_ranks == 1:
        yield None
        return
    own_pools = f"each of {num_ranks} ranks has a host pool of its own"
    if not is_wanted:
        _say(group, logging.INFO, f"{own_pools}: share_host_pool is false, or attn_cp_size above 1")
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="hisparse-ranks-", dir=_ROOT) as own:
        folder = _meeting_place(group, own)
        if folder is None:
            why = "they are on several hosts, or have no folder in common"
            _say(group, logging.WARNING, f"{own_pools}: {why}")
            yield None
            return
        shared = f"{num_ranks} ranks share a host pool, which the first one writes"
        _say(group, logging.INFO, shared)
        rank = torch.distributed.get_rank(group)
        yield RankPlace(rank, num_ranks, folder / "ranks.sock", _SECONDS, _JOIN_SECONDS)


def _meeting_place(group: Any, own: str) -> Path | None:  # noqa: ANN401
    """The first rank's folder; None = not every rank is on its host and sees its files."""
    places: list[Any] = [None] * _num_ranks(group)
    host = _BOOT_ID.read_text().strip(), os.getuid()
    torch.distributed.all_gather_object(places, (host, own), group=group)
    first_host, first = places[0]
    (is_here,) = _least(group, [host == first_host and Path(first).is_dir()])
    return Path(first) if is_here else None


def _least(group: Any, numbers: Sequence[int]) -> list[int]:  # noqa: ANN401
    least = torch.tensor([int(number) for number in numbers], dtype=torch.int64)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN, group=group)
    return [int(number) for number in least]


def _num_ranks(group: Any) -> int:  # noqa: ANN401
    return 1 if group is None else torch.distributed.get_world_size(group=group)


def _say(group: Any, level: int, message: str) -> None:  # noqa: ANN401
    if torch.distributed.get_rank(group) == 0:
        _LOG.log(level, "hisparse: %s", message)
