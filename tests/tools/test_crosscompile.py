"""The checks of tools/crosscompile can fail: each sample kernel with a fault is reported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.repo.repository import ROOT
from tools.crosscompile.coverage import kernels_in
from tools.crosscompile.ptx import Ptx, Widths

SAMPLES = "tests.tools.crosscompile_samples"

# case -> what its failures say, on sm_90 and on sm_100
FAULTS = {
    "clean copy": ([], []),
    "clean product": ([], []),
    "overflow": (
        ["spills ", "wgmma is serialised"],
        ["its code is a trap", " TMEM columns, at most 512 exist", "is not on tcgen05.mma"],
    ),
    "scalar copy": (["moves src_ptr 4 bytes", "moves dst_ptr 4 bytes"],) * 2,
    "widened product": (["no kernel has a low-precision product"],) * 2,
    "tf32 product": (["its fp32 product is rounded to tf32"],) * 2,
    "two warps": (["is not on wgmma"], ["is not on tcgen05.mma"]),
    "one accumulator": ([], [" TMEM columns of products, needs 128"]),
    "no matrix unit": (
        ["has no product on wgmma"],
        ["has no product on tcgen05", " TMEM columns of products, needs 128"],
    ),
    "spill": (["_spilling_kernel: spills "],) * 2,
    "tall grid": (["grid[1] is 70000"],) * 2,
    "fusion unsaid": (["leaves enable_fp_fusion to a default"],) * 2,
    "broken": (["ValueError: heads must be 64"],) * 2,
    "nothing": (["launched no kernel"],) * 2,
    "no gather4": (["has no cp.async.bulk.tensor.2d.tile::gather4"],) * 2,
    "rows read": (["loads src_ptr, which TMA brings"],) * 2,
    "no such argument": (["no kernel reads or writes an argument pages_ptr"],) * 2,
}


def run(*arguments: str, interpret: bool = False) -> subprocess.CompletedProcess[str]:
    """`python -m tools.crosscompile`, without the interpreter that tests/conftest.py asks for."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "tools.crosscompile", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = run("--cases", SAMPLES, "--json")
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_reported_and_a_clean_kernel_passes(found: dict[str, Any], case: str) -> None:
    for arch, expected in zip((90, 100), FAULTS[case], strict=True):
        lines = [line for line in found["failures"] if line.startswith(f"{case}, sm_{arch}: ")]
        assert all(any(text in line for line in lines) for text in expected), lines
        assert len(lines) == len(expected), lines


@pytest.mark.slow
def test_the_gather_of_an_attention_kernel_counts_as_wide(found: dict[str, Any]) -> None:
    for report in found["cases"]:
        if report["case"] == "wide gather":
            (kernel,) = report["kernels"]
            assert report["failures"] == []
            widths = kernel["widths"]
            assert widths["rows_ptr"]["loads"].keys() == {"16"}
            assert widths["ids_ptr"]["loads"].keys() == {"4"}
            assert widths["out_ptr"]["loads"] == {}
            assert widths["out_ptr"]["stores"].keys() == {"16"}


@pytest.mark.slow
def test_a_clean_case_alone_exits_with_0_and_prints_one_line_for_it() -> None:
    done = run("--cases", SAMPLES, "--case", "clean copy", "--arch", "90")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "_copy_kernel" in line]
    assert len(lines) == 1
    assert lines[0].rstrip().endswith("ok")
    assert "FAILED" not in done.stdout


def test_the_interpreter_is_refused() -> None:
    done = run("--cases", SAMPLES, interpret=True)
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stderr


def test_a_filter_that_matches_no_case_is_an_error() -> None:
    done = run("--cases", SAMPLES, "--case", "no such case")
    assert done.returncode == 2
    assert "none of" in done.stderr


def test_kernels_are_the_jitted_functions_that_no_other_one_uses(tmp_path: Path) -> None:
    (tmp_path / "op.py").write_text(
        "@triton.jit\ndef _op_kernel(x): _part(x)\n\n"
        "@triton.jit\ndef _part(x): tl.reduce(x, 0, _add)\n\n"
        "def host(): _op_kernel[(1,)]()\n"
    )
    shared = "@triton.jit(noinline=True)\ndef _add(a, b): return a + b\n"
    (tmp_path / "shared.py").write_text(shared)
    assert kernels_in(tmp_path) == {"op._op_kernel"}


def test_an_instruction_may_follow_a_label() -> None:
    ptx = Ptx.parse(
        """
        {
        waitLoop:
        mbarrier.try_wait.parity.shared.b64 complete, [%r1], %r2;
        @!complete bra.uni waitLoop;
        }
        @%p1 tcgen05.st.sync.aligned.32x32b.x32.b32 [%r3 + 0], {%r4, %r5};
        """
    )
    assert ptx.async_counts() == {"tcgen05.st": 1, "mbarrier.try_wait": 1}


def test_an_access_belongs_to_the_argument_that_its_address_comes_from() -> None:
    ptx = Ptx.parse(
        """
        ld.param.b64 %rd1, [op_param_0];
        ld.param.b64 %rd2, [op_param_1];
        @%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];
        mad.wide.u32 %rd3, %r1, 16, %rd2;
        ld.global.L1::evict_last.v2.b64 { %rd4, %rd5 }, [ %rd3 + 0 ];
        cp.async.cg.shared.global [ %r7 + 0 ], [ %rd3 + 0 ], 0x10, %r8;
        st.global.b8 [%rd3+1], %rs1;
        """
    )
    assert ptx.widths({0: "ids_ptr", 1: "rows_ptr"}) == {
        "ids_ptr": Widths({4: 1}, {}),
        "rows_ptr": Widths({16: 2}, {1: 1}),
    }
    assert ptx.widths({1: "rows_ptr"})["rows_ptr"].wide_share == 32 / 33
    assert not ptx.traps
