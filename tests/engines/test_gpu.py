"""On a GPU: a model whose sidecar runs Triton says what the references say, and finds its needles.

The device tier is on the GPU and holds a part of the context; every row is in pinned host memory.
"""

import copy
import functools
from pathlib import Path

import pytest
import torch

from hisparse_sidecar import SelectionConfig, Session
from hisparse_sidecar.client import RemoteSession
from hisparse_sidecar.config import Backend
from hisparse_sidecar.engines.transformers import (
    GreedyOptions,
    ReferenceModel,
    RowLayouts,
    attach,
    generate,
    greedy,
)
from hisparse_sidecar.server import SidecarServer
from tests.engines.models import tiny_dsa, tokenizer
from tests.engines.needles import asked, needle_prompt
from tests.engines.sidecars import FLAT, FP32, QUANTISED, Room, local_session, sidecar_config
from tests.oracle.lockstep import run_lockstep

pytestmark = pytest.mark.gpu

# the likeliest token of the 16 leads the second by 0.33 logits or more: near-ties do not matter
PROMPT, NEW = 1024, 16
HISA = SelectionConfig("hisa", num_kept_blocks=32, gate="off")  # of 64 tokens: four times topk
LAYOUTS = pytest.mark.parametrize("layouts", [FP32, QUANTISED], ids=["fp32", "quantised"])

LED_ATOL = 1e-4  # of logits, with the same rows and the same selection
ROW_GAP = 1e-4  # rows before rounding, relative to the row's largest value
CODE_SHARE = 1e-3  # index query codes that noise in the last bit rounds the other way
# Distance from the k-th score as a share of the row's largest: Hopper's tensor cores sum e4m3
# products in 14 bits, and two keys that change places may both be off.
NEAR_TIE = {FP32: 1e-5, QUANTISED: 2e-3}


@functools.cache
def model_on_gpu() -> torch.nn.Module:
    return copy.deepcopy(tiny_dsa()).to("cuda")


def room(layouts: tuple[str, str], backend: Backend) -> Room:
    """Half of the prompt's rows and of its index keys fit the device, in each layer."""
    return Room(
        PROMPT + NEW,
        layouts=layouts,
        hot_slots=512,
        window_blocks=8,
        device="cuda",
        backend=backend,
    )


def tokens_of(model: torch.nn.Module, session: Session) -> list[int]:
    with attach(model, session) as attached:
        return generate(attached, needle_prompt(PROMPT).token_ids, GreedyOptions(NEW))


def tokens_through(
    backend: Backend, layouts: tuple[str, str], model: torch.nn.Module | None = None
) -> list[int]:
    model = model or model_on_gpu()
    with local_session(model, room(layouts, backend)) as session:
        tokens = tokens_of(model, session)
        # a hot buffer of half the prompt must bring rows in
        assert all(group.rows.misses > 0 for group in session.stats().groups)
        return tokens


def tokens_in_memory(layouts: tuple[str, str]) -> list[int]:
    with ReferenceModel(
        model_on_gpu(), layouts=RowLayouts(*layouts), max_tokens=PROMPT + NEW
    ) as reference:
        return greedy(reference.next_logits, needle_prompt(PROMPT).token_ids, GreedyOptions(NEW))


@LAYOUTS
def test_triton_gives_the_tokens_of_the_reference_backend(layouts: tuple[str, str]) -> None:
    assert tokens_through("triton", layouts) == tokens_through("reference", layouts)


@LAYOUTS
def test_triton_gives_the_tokens_of_the_model_in_memory(layouts: tuple[str, str]) -> None:
    found = tokens_through("triton", layouts)
    assert found == tokens_in_memory(layouts)
    assert tokenizer().decode(found).startswith(needle_prompt(PROMPT).asked.digits)


def test_a_model_on_the_cpu_gets_its_tokens_from_a_sidecar_on_the_gpu() -> None:
    assert tokens_through("triton", FP32, tiny_dsa()) == tokens_in_memory(FP32)


@LAYOUTS
def test_triton_gives_the_logits_of_a_reference_that_follows_its_sets(
    layouts: tuple[str, str],
) -> None:
    model, prompt = model_on_gpu(), torch.tensor([needle_prompt(PROMPT).token_ids])
    with local_session(model, room(layouts, "triton")) as session:
        found = run_lockstep(model, session, prompt, NEW, chunk=300)
    assert found.led_gap < LED_ATOL
    assert found.generated == found.led_generated
    assert len(found.generated) == NEW
    assert max(layer.worst_share for layer in found.near_ties) < NEAR_TIE[layouts]
    for layer in found.rows:
        assert layer.worst_gap < ROW_GAP
        assert layer.differing_codes <= CODE_SHARE * layer.codes


@pytest.mark.parametrize("selection", [FLAT, HISA], ids=["flat", "hisa"])
def test_a_server_on_the_gpu_gives_the_bits_of_a_session_in_process(
    selection: SelectionConfig, tmp_path: Path
) -> None:
    model, small = model_on_gpu(), room(QUANTISED, "triton")
    with local_session(model, small) as session:
        expected = logits_of(model, session, selection)
    with (
        SidecarServer(sidecar_config(model, small), tmp_path / "sidecar.sock"),
        RemoteSession(tmp_path / "sidecar.sock") as session,
    ):
        found = logits_of(model, session, selection)
    assert torch.equal(found, expected)


def logits_of(model: torch.nn.Module, session: Session, selection: SelectionConfig) -> torch.Tensor:
    """[PROMPT, vocab]: prefill in chunks, then four steps of one token."""
    ids = torch.tensor([needle_prompt(PROMPT).token_ids], device="cuda")
    chunks = [*ids[:, :-4].split(512, dim=1), *ids[:, -4:].split(1, dim=1)]
    with attach(model, session) as attached, attached.open(PROMPT, 0, selection=selection) as cache:
        return torch.cat([model(chunk, past_key_values=cache).logits[0] for chunk in chunks])


@pytest.mark.parametrize("num_tokens", [1000, 4000, 16000])
def test_the_needle_is_found_with_flat_selection(num_tokens: int) -> None:
    with asked(num_tokens, FLAT, device="cuda") as question:
        assert question.ask().text == question.prompt.asked.digits


@pytest.mark.parametrize("num_tokens", [1000, 2000])
def test_the_needle_is_found_with_hisa(num_tokens: int) -> None:
    with asked(num_tokens, HISA, seed=1, device="cuda") as question:
        assert question.ask().text == question.prompt.asked.digits
