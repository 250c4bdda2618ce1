"""Needles: found through the offloaded tiers, lost or changed when a stored byte is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from hisparse_sidecar import SelectionConfig
from tests.engines.needles import AskedPrompt, asked
from tests.engines.sidecars import FLAT

HISA = SelectionConfig("hisa", num_kept_blocks=32, gate="off")  # of 64 tokens: four times topk
TOKENS = 1500
LAST_LAYERS = (2, 3)  # the layers that look far back


@pytest.fixture(scope="module")
def flat_prompt() -> Iterator[AskedPrompt]:
    with asked(TOKENS, FLAT) as question:
        yield question


@contextmanager
def spoiled(stored: torch.Tensor) -> Iterator[torch.Tensor]:
    """Lets a test change stored bytes, and puts them back."""
    before = stored.clone()
    yield stored
    stored.copy_(before)


def test_the_needle_is_found_with_flat_selection(flat_prompt):
    assert flat_prompt.ask().text == flat_prompt.prompt.asked.digits


@pytest.mark.parametrize("num_tokens", [1000, 2000])
def test_the_needle_is_found_with_hisa(num_tokens):
    with asked(num_tokens, HISA, seed=1) as question:
        assert question.ask().text == question.prompt.asked.digits


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [4000, 12000])
def test_the_needle_is_found_at_long_context(num_tokens):
    with asked(num_tokens, FLAT) as question:
        assert question.ask().text == question.prompt.asked.digits


def test_the_needle_is_lost_when_the_selection_is_shifted_by_one_page(flat_prompt):
    pages = flat_prompt.sidecar._manager.host_pages(flat_prompt.cache.sequences[0])
    full = torch.tensor(pages[: (TOKENS - 1) // 64])
    with spoiled(flat_prompt.host._bytes):
        for index_pages in flat_prompt.host.index_pages:
            index_pages[full] = index_pages[full.roll(1)]
        assert flat_prompt.ask().text != flat_prompt.prompt.asked.digits
    assert flat_prompt.ask().text == flat_prompt.prompt.asked.digits


def test_asking_twice_gives_the_same_bits(flat_prompt):
    assert torch.equal(flat_prompt.ask().logits, flat_prompt.ask().logits)


def first_digit(question: AskedPrompt, good) -> tuple[int, int]:
    """(layer, token position) of an early token of the needle that a late layer selects."""
    start = question.prompt.asked.position
    for layer in LAST_LAYERS:
        chosen = [p for p in good.selected[layer].tolist() if start <= p < start + 16]
        if chosen:
            return layer, chosen[len(chosen) // 2]
    raise AssertionError(f"no token of {start}..{start + 15} is selected")


def test_the_answer_is_lost_with_the_kv_rows_of_its_digits(flat_prompt):
    good = flat_prompt.ask()
    with spoiled(flat_prompt.host._bytes):
        for layer in LAST_LAYERS:
            for token_pos in statement(flat_prompt):
                flat_prompt.host.kv_rows[layer][flat_prompt.host_row(token_pos), :512] ^= 0x80
        assert flat_prompt.ask().text != good.text
    assert flat_prompt.ask().text == good.text == flat_prompt.prompt.asked.digits


def test_the_answer_is_lost_with_the_index_rows_of_its_digits(flat_prompt):
    good = flat_prompt.ask()
    with spoiled(flat_prompt.host._bytes):
        for layer in LAST_LAYERS:
            for token_pos in statement(flat_prompt):
                page, offset = divmod(flat_prompt.host_row(token_pos), 64)
                codes = slice(offset * 128, (offset + 1) * 128)
                flat_prompt.host.index_pages[layer][page, codes] ^= 0x80
        assert flat_prompt.ask().text != good.text
    assert flat_prompt.ask().text == good.text == flat_prompt.prompt.asked.digits


def statement(question: AskedPrompt) -> range:
    """Positions of the tokens that state the needle."""
    start = question.prompt.asked.position
    return range(start, start + 16)


def test_one_wrong_kv_row_changes_the_logits(flat_prompt):
    good = flat_prompt.ask()
    layer, token_pos = first_digit(flat_prompt, good)
    row = flat_prompt.host.kv_rows[layer][flat_prompt.host_row(token_pos)]
    with spoiled(row):
        row[:512] ^= 0x80  # the sign of every latent value
        assert (flat_prompt.ask().logits - good.logits).abs().max() > 1e-2
    assert torch.equal(flat_prompt.ask().logits, good.logits)


def test_one_wrong_scale_of_a_kv_row_changes_the_logits(flat_prompt):
    good = flat_prompt.ask()
    layer, token_pos = first_digit(flat_prompt, good)
    row = flat_prompt.host.kv_rows[layer][flat_prompt.host_row(token_pos)]
    with spoiled(row):
        row[512:516].view(torch.float32).mul_(8)
        assert (flat_prompt.ask().logits - good.logits).abs().max() > 1e-2
    assert torch.equal(flat_prompt.ask().logits, good.logits)


def test_one_wrong_index_row_drops_its_token_from_the_selection(flat_prompt):
    good = flat_prompt.ask()
    layer, token_pos = first_digit(flat_prompt, good)
    page, offset = divmod(flat_prompt.host_row(token_pos), 64)
    stored = flat_prompt.host.index_pages[layer][page]
    with spoiled(stored):
        stored[offset * 128 : (offset + 1) * 128] ^= 0x80  # the sign of every code of the key
        bad = flat_prompt.ask()
        assert token_pos not in bad.selected[layer].tolist()
        assert not torch.equal(bad.logits, good.logits)
    assert torch.equal(flat_prompt.ask().logits, good.logits)


def test_one_wrong_index_scale_changes_the_selection(flat_prompt):
    good = flat_prompt.ask()
    layer, token_pos = first_digit(flat_prompt, good)
    page, offset = divmod(flat_prompt.host_row(token_pos), 64)
    scales = flat_prompt.host.index_pages[layer][page][64 * 128 :].view(torch.float32)
    with spoiled(scales):
        scales[offset] = -scales[offset]
        bad = flat_prompt.ask()
        assert token_pos not in bad.selected[layer].tolist()
        assert not torch.equal(bad.logits, good.logits)
    assert torch.equal(flat_prompt.ask().logits, good.logits)
