"""What the coordinators of several ranks decide together, over a real process group."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hisparse_sidecar.engines.sglang.offload.rank_agreement import has_same_rows

RANK = """
import json, sys
import torch.distributed as dist
from hisparse_sidecar.engines.sglang.offload.rank_agreement import agree

rank, path, numbers = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
print(json.dumps(agree(dist.group.WORLD, numbers, 5)))
dist.destroy_process_group()
"""


def test_ranks_take_the_least_count_and_end_what_is_late_on_any(tmp_path: Path) -> None:
    numbers = [2, True, True, False], [3, True, False, True]  # ready, then who is in time
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "meet"), json.dumps(own)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(numbers)
    ]
    assert [json.loads(rank.communicate(timeout=120)[0]) for rank in started] == [[2, 1, 0, 0]] * 2


@pytest.mark.parametrize(("ranks", "same"), [(1, True), (2, False)])
def test_ranks_that_divide_prompts_have_other_rows(ranks: int, same: bool) -> None:
    assert has_same_rows(SimpleNamespace(attn_cp_size=ranks)) == same
