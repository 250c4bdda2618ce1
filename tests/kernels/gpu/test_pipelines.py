import importlib
import logging
from collections.abc import Callable

import pytest
import torch

from accuracy import assert_bits_equal
from cases import on, paged_keys, queries_of
from hisparse_kernels.gpu import index_logits, pipelines, refine_logits
from hisparse_kernels.gpu.refine_logits import refine_into
from hisparse_kernels.index_rows import pack_index_rows
from hisparse_kernels.layouts import index_layout
from hisparse_kernels.refine_logits import HostBlocks
from tests.kernels.gpu.graphs import assert_allocates_nothing, replay
from tests.kernels.gpu.refining import F8, UNTOUCHED, chosen_blocks, int32, untouched

GPU = pytest.mark.gpu
HEADS = pytest.mark.parametrize("heads", [32, 64])
WRITE_ALL = pytest.mark.parametrize("write_all", [False, True])
LAYOUT = index_layout("fp8")
Launcher = Callable[..., torch.Tensor]


@pytest.fixture(params=["as the GPU needs it", "across"])
def pipeline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Gives an op's Gluon launcher; "across" is the structure of sm_100, on every GPU."""

    def launcher_of(op: str) -> Launcher:
        found = pipelines.pipeline_of(op, queries_of(F8, 1, 64)[0].cuda(), LAYOUT)
        if found is None:
            pytest.skip("no Gluon pipeline for this GPU")
        if request.param == "across":
            module = importlib.import_module(found.__module__)
            options = module.pipeline_options()
            monkeypatch.setattr(module, "pipeline_options", lambda: {**options, "ACROSS": True})
        return found

    return launcher_of


@pytest.fixture
def no_pipelines(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (index_logits, refine_logits):
        monkeypatch.setattr(module, "pipeline_of", lambda *_: None)


def ragged_inputs(rows: int, num_keys: int, heads: int, ranges: str) -> list[torch.Tensor]:
    """Rows that end at the last keys one after the other, or anywhere, or hold nothing."""
    index_q, weights = queries_of(F8, rows, heads)
    keys = pack_index_rows(torch.randn(num_keys, 128), LAYOUT)
    start, end = torch.zeros(rows).int(), num_keys - torch.arange(rows).flip(0)
    if ranges == "anywhere":
        start = torch.randint(0, num_keys, (rows,)).int()
        end = (start + torch.randint(-num_keys // 2 - 1, num_keys, (rows,))).clamp(max=num_keys)
    elif ranges == "nothing":
        end = start - 1
    return on("cuda", index_q, weights, keys, start, end.int())


@GPU
@HEADS
@pytest.mark.parametrize(
    ("rows", "num_keys", "ranges"),
    [
        (1, 1, "all"),
        (3, 300, "all"),
        (7, 129, "anywhere"),
        (70, 1000, "anywhere"),
        (5, 400, "nothing"),
        (301, 5000, "anywhere"),
        (1000, 4097, "all"),
    ],
)
@pytest.mark.usefixtures("no_pipelines")
def test_ragged_logits_have_the_bits_of_the_triton_body_on_cuda(
    rows: int, num_keys: int, ranges: str, heads: int, pipeline: Launcher
) -> None:
    inputs = ragged_inputs(rows, num_keys, heads, ranges)
    found = torch.full((rows, num_keys), torch.nan, device="cuda")
    launcher = pipeline("index_logits")

    assert launcher(*inputs, LAYOUT, out=found) is found

    assert_bits_equal(found, index_logits.index_logits_triton(*inputs, LAYOUT))


def refine_inputs(
    rows: int, m: int, heads: int, block_tokens: int, holes: str
) -> list[torch.Tensor]:
    """Random blocks of one sequence for rows anywhere in it; "holes" are blocks without a slot."""
    num_blocks = m + 3
    length = num_blocks * block_tokens - 70  # NaN from there on: nobody may see it
    stored = paged_keys((length,), LAYOUT, block_tokens=block_tokens)
    row_pos = torch.randint(-1, length, (rows,)).int()
    slots, ids = chosen_blocks(stored, torch.zeros(rows).int(), m, block_tokens)
    if holes == "some":
        slots[torch.rand(rows, m) < 0.3] = -1
        ids[:, 1:][torch.rand(rows, m - 1) < 0.1] = -1  # whatever the slot: no block
    elif holes == "outside":  # as a stream holds them
        slots[:, : m // 3], slots[:, m // 2 :] = -1, -1
    elif holes == "all":
        slots[:] = -1
    query = queries_of(F8, rows, heads)
    return on("cuda", *query, stored.index_pages, slots, ids, row_pos)


@GPU
@HEADS
@WRITE_ALL
@pytest.mark.parametrize(
    ("rows", "m", "block_tokens", "holes"),
    [
        (1, 1, 128, "none"),
        (3, 5, 128, "some"),
        (2, 4, 384, "some"),
        (5, 131, 128, "outside"),
        (4, 9, 256, "all"),
        (1030, 7, 128, "some"),
        (1030, 33, 128, "none"),
        (1030, 5, 256, "outside"),
    ],
)
@pytest.mark.usefixtures("no_pipelines")
def test_refined_logits_have_the_bits_of_the_triton_body_on_cuda(
    rows: int,
    m: int,
    block_tokens: int,
    holes: str,
    write_all: bool,
    heads: int,
    pipeline: Launcher,
) -> None:
    inputs = refine_inputs(rows, m, heads, block_tokens, holes)
    found, expected = (untouched(rows, m * block_tokens, "cuda") for _ in range(2))
    launcher = pipeline("refine_logits")

    assert launcher(*inputs, block_tokens, LAYOUT, found, write_all=write_all) is found

    refine_into(*inputs, block_tokens, LAYOUT, expected, None, write_all=write_all)
    assert_bits_equal(found, expected)


@GPU
@HEADS
@pytest.mark.usefixtures("no_pipelines")
def test_full_sizes_have_the_bits_of_the_triton_body_twenty_times(
    heads: int, pipeline: Launcher
) -> None:
    ragged = ragged_inputs(4096, 16384, heads, "all")
    expected = index_logits.index_logits_triton(*ragged, LAYOUT)
    blocks = refine_inputs(4096, 64, heads, 128, "none")
    refined = untouched(4096, 64 * 128, "cuda")
    refine_logits.refine_logits_triton(*blocks, 128, LAYOUT, refined)
    score, refine = pipeline("index_logits"), pipeline("refine_logits")
    found, tokens = torch.empty_like(expected), torch.empty_like(refined)

    for _ in range(20):
        found.fill_(torch.nan)
        tokens.fill_(UNTOUCHED)
        score(*ragged, LAYOUT, out=found)
        refine(*blocks, 128, LAYOUT, tokens)
        assert torch.equal(found, expected)
        assert torch.equal(tokens, refined)


@GPU
@pytest.mark.usefixtures("no_pipelines")
def test_graphs_replay_pipelines_with_other_rows_and_allocate_nothing_on_cuda(
    pipeline: Launcher,
) -> None:
    ragged, blocks = ragged_inputs(40, 700, 64, "all"), refine_inputs(6, 9, 64, 128, "none")
    found, tokens = torch.empty(40, 700, device="cuda"), untouched(6, 9 * 128, "cuda")
    score, refine = pipeline("index_logits"), pipeline("refine_logits")

    def call() -> None:
        score(*ragged, LAYOUT, out=found)
        refine(*blocks, 128, LAYOUT, tokens)

    other = torch.randint(0, 300, (40,)).int(), torch.randint(200, 701, (40,)).int()
    row_pos = int32(0, 900, -1, 130, 1151, 500)
    replay(call, (*ragged[3:], blocks[5], tokens), (*other, row_pos, untouched(6, 9 * 128)))

    assert_bits_equal(found, index_logits.index_logits_triton(*ragged, LAYOUT))
    expected = untouched(6, 9 * 128, "cuda")
    refine_logits.refine_logits_triton(*blocks, 128, LAYOUT, expected)
    assert_bits_equal(tokens, expected)
    assert_allocates_nothing(call)


@GPU
@HEADS
def test_many_rows_of_ragged_logits_run_as_a_pipeline(
    heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ragged_inputs(64, 500, heads, "all")
    if pipelines.pipeline_of("index_logits", inputs[0], LAYOUT) is None:
        pytest.skip("no Gluon pipeline for this GPU")
    launches: list[str] = []
    launched = lambda *_, out: launches.append("pipeline") or out  # noqa: E731
    monkeypatch.setattr(pipelines, "_launcher", lambda *_: launched)

    index_logits.index_logits_triton(*inputs, LAYOUT)
    assert launches == ["pipeline"]
    picked = torch.zeros(64, 4).int().cuda()
    index_logits.index_logits_triton(*inputs, LAYOUT, heads=picked)
    index_logits.index_logits_triton(inputs[0].bfloat16(), *inputs[1:], LAYOUT)
    assert launches == ["pipeline"]


@GPU
@HEADS
@WRITE_ALL
def test_many_rows_of_blocks_run_as_a_pipeline(
    heads: int, write_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = refine_inputs(300, 64, heads, 128, "some")
    launcher = pipelines.pipeline_of("refine_logits", inputs[0], LAYOUT)
    if launcher is None:
        pytest.skip("no Gluon pipeline for this GPU")
    launches: list[bool] = []

    def launch(*args: object, write_all: bool) -> torch.Tensor:
        launches.append(write_all)
        return launcher(*args, write_all=write_all)

    monkeypatch.setattr(pipelines, "_launcher", lambda *_: launch)
    found, expected = (untouched(300, 64 * 128, "cuda") for _ in range(2))

    refine_into(*inputs, 128, LAYOUT, found, None, write_all=write_all)
    assert launches == [write_all]

    monkeypatch.setattr(refine_logits, "pipeline_of", lambda *_: None)
    refine_into(*inputs, 128, LAYOUT, expected, None, write_all=write_all)
    assert launches == [write_all]
    assert_bits_equal(found, expected)


@WRITE_ALL
@pytest.mark.parametrize(
    ("tiles", "block_tokens", "first_byte", "from_host", "launched"),
    [
        pytest.param(32, 128, 0, False, True, id="a long run"),
        pytest.param(33, 384, 16, False, True, id="three tiles a block"),
        pytest.param(31, 128, 0, False, False, id="a short run"),
        pytest.param(32, 64, 0, False, False, id="two blocks a tile"),
        pytest.param(32, 128, 8, False, False, id="no copies of 16 bytes"),
        pytest.param(32, 128, 0, True, False, id="with a host"),
    ],
)
def test_refine_runs_as_a_pipeline_where_that_pays(
    tiles: int,
    block_tokens: int,
    first_byte: int,
    from_host: bool,
    launched: bool,
    write_all: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = paged_keys((block_tokens,), LAYOUT, block_tokens=block_tokens)
    behind = torch.nn.functional.pad(stored.index_pages.flatten(), (first_byte, 0)).to(device)
    pages = behind[first_byte:].view(stored.index_pages.shape)
    held = on(device, *chosen_blocks(stored, int32(0, 0), 1, block_tokens), int32(50, 0))
    host = HostBlocks(pages, *on(device, stored.page_table, int32(0, 0))) if from_host else None
    launches: list[bool] = []
    launch = lambda *_, write_all: launches.append(write_all)  # noqa: E731
    monkeypatch.setattr(refine_logits, "pipeline_of", lambda *_: launch)
    monkeypatch.setattr(refine_logits, "tiles_per_program", lambda *_: tiles)
    out = untouched(2, block_tokens, device)
    query = on(device, *queries_of(F8, 2, 32))

    refine_into(*query, pages, *held, block_tokens, LAYOUT, out, host, write_all=write_all)

    assert launches == ([write_all] if launched else [])
    assert bool((out == UNTOUCHED).all()) is launched


def test_on_a_cpu_the_triton_bodies_run() -> None:
    index_q, _ = queries_of(F8, 64, 64)

    assert pipelines.pipeline_of("index_logits", index_q, LAYOUT) is None


def test_a_triton_without_gluon_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(pipelines.importlib, "import_module", fail)
    pipelines._launcher.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert pipelines._launcher("index_logits", 64, torch.device("cuda", 0)) is None
    pipelines._launcher.cache_clear()

    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no Gluon pipeline for index_logits" in caplog.text
