"""SGLang's ranks share a host pool: processes with its own groups, pools, requests and tree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def reports(folder: Path, life: str, ranks: int, width: int) -> list[Any]:
    """Of each rank what its life came to."""
    command = [sys.executable, "-m", "tests.engines.sglang.rank_processes"]
    ended = subprocess.run(
        [*command, life, str(ranks), str(width), str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    for rank, (ended_well, value) in enumerate(found):
        assert ended_well, f"rank {rank}: {value}\n{ended.stderr}"
    return [value for _, value in found]


def check_groups(found: list[Any], width: int) -> None:
    """One pool for each so many ranks, which the first one of them writes."""
    for first in range(0, len(found), width):
        group = found[first : first + width]
        assert [one["writes"] for one in group] == [True] + [False] * (width - 1)
        for name in ("file", "bytes", "compared", "looked_at"):
            assert [one[name] for one in group] == [group[0][name]] * width
        line = f"hisparse: {width} ranks share a host pool, which the first one writes"
        assert [one["said"] for one in group] == [[line]] + [[]] * (width - 1)
    assert len({tuple(one["file"]) for one in found}) == len(found) // width


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_of_a_batch_read_what_the_first_one_wrote(ranks: int, tmp_path: Path) -> None:
    found = reports(tmp_path, "random_lives", ranks, ranks)
    check_groups(found, ranks)
    assert found[0]["looked_at"] > 10000


def test_ranks_of_a_batch_read_the_index_keys_that_the_first_one_wrote(tmp_path: Path) -> None:
    found = reports(tmp_path, "random_lives_of_index_keys", 2, 2)
    check_groups(found, 2)
    assert found[0]["num_lists"] > 100
    assert found[0]["lists"] == found[1]["lists"]


def test_pages_are_given_up_when_every_rank_has_read_them(tmp_path: Path) -> None:
    """In two groups of two, as with attention DP."""
    found = reports(tmp_path, "pages_that_are_given_up", 4, 2)
    check_groups(found, 2)
    assert found[0]["compared"] > 30
    assert found[0]["met"] == found[1]["met"] != []
    first, other = found[0]["counted"], found[1]["counted"]
    assert min(first) > 0 == max(other)  # who writes tells of the pool and of what went to it


def test_a_rank_that_takes_other_pages_ends_all(tmp_path: Path) -> None:
    first, other = reports(tmp_path, "a_page_too_few", 2, 2)
    assert other.startswith("WrongState: decision 4: rank 1 has a prompt of ")
    assert first.startswith(("TierDown: rank 1 has gone", "RuntimeError: "))  # or gloo's, of agree


@pytest.mark.parametrize(
    ("life", "why"),
    [
        ("ranks_on_two_hosts", "they are on several hosts, or have no folder in common"),
        ("ranks_that_do_not_share", "share_host_pool is false, or attn_cp_size above 1"),
    ],
)
def test_ranks_have_a_pool_each_and_say_why(life: str, why: str, tmp_path: Path) -> None:
    first, other = reports(tmp_path, life, 2, 2)
    assert first["file"] != other["file"]
    assert (first["writes"], other["writes"], first["compared"]) == (True, True, 0)
    assert first["said"] == [f"hisparse: each of 2 ranks has a host pool of its own: {why}"]
