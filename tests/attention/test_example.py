import re
import runpy

import pytest

from tests.repo.repository import ROOT


def test_the_example_attends_to_its_selection_in_every_layer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(ROOT / "examples/sparse_mla_wrapper.py"), run_name="__main__")

    lines = capsys.readouterr().out.splitlines()
    assert [re.match(r"step (\d) layer (\d)", line)[0] for line in lines] == [
        f"step {step} layer {layer}" for step in range(3) for layer in range(2)
    ]
    assert "layer 1: [256, 256, 132] of [2002, 902, 132] tokens" in lines[-1]
    assert "nan" not in lines[-1]
