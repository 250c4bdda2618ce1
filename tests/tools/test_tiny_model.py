from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GlmMoeDsaForCausalLM

from tests.tools.tiny_corpus import MODEL, TOY
from tools.tiny_dsa.attention import SelectionPass
from tools.tiny_dsa.config import ModelConfig
from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.export import export, load_exported, round_to_bf16, transformers_config
from tools.tiny_dsa.fused import index_scores, masked_softmax
from tools.tiny_dsa.metrics import needle_accuracy
from tools.tiny_dsa.model import TinyDsa


def random_model(config: ModelConfig) -> TinyDsa:
    torch.manual_seed(1)
    model = TinyDsa(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("topk", [32, 96])
@torch.no_grad()
def test_the_training_code_computes_what_transformers_computes(topk: int, attention: str) -> None:
    own = random_model(TOY)
    stock = GlmMoeDsaForCausalLM._from_config(
        transformers_config(replace(TOY, index_topk=topk)),
        attn_implementation=attention,
        dtype=torch.float32,
    ).eval()
    loaded = stock.load_state_dict(own.state_dict(), strict=False)
    assert not loaded.unexpected_keys
    assert set(loaded.missing_keys) <= {"lm_head.weight"}
    tokens = torch.randint(0, 4096, (2, 96))

    difference = stock(tokens).logits - own.logits(tokens, SelectionPass(topk, chunk_tokens=40))

    assert difference.abs().max() < 1e-4


@torch.no_grad()
def test_selecting_everything_is_dense_attention() -> None:
    model, tokens = random_model(TOY), torch.randint(0, 4096, (1, 90))
    dense, everything = model.logits(tokens), model.logits(tokens, SelectionPass(90))
    torch.testing.assert_close(everything, dense, rtol=0, atol=1e-4)
    assert (model.logits(tokens, SelectionPass(8)) - dense).abs().max() > 1e-3


@torch.no_grad()
def test_an_exported_model_comes_back_as_its_rounded_weights(tmp_path: Path) -> None:
    model, tokens = random_model(TOY), torch.randint(0, 4096, (1, 70))
    export(model, MODEL / "tokenizer.json", tmp_path)
    round_to_bf16(model)

    stock = GlmMoeDsaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    own = load_exported(tmp_path, TOY)

    needed = model.logits(tokens, SelectionPass(TOY.index_topk))
    assert torch.equal(own.logits(tokens, SelectionPass(TOY.index_topk)), needed)
    assert (stock(tokens).logits - needed).abs().max() < 1e-4


def gradients(
    function: Callable[..., torch.Tensor], inputs: list[torch.Tensor], upstream: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((function(*inputs) * upstream).sum(), inputs)


def test_index_scores_have_the_gradient_of_their_formula() -> None:
    torch.manual_seed(0)
    shapes = ((2, 3, 4, 5), (2, 7, 5), (2, 3, 4))
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]

    def formula(query: torch.Tensor, key: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        dots = F.relu(torch.einsum("bchd,btd->bcht", query, key))
        return (dots * weights[..., None]).sum(2)

    upstream = torch.randn(2, 3, 7)
    torch.testing.assert_close(index_scores(*inputs), formula(*inputs))
    for own, needed in zip(
        gradients(index_scores, inputs, upstream), gradients(formula, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(own, needed)


def test_masked_softmax_has_the_gradient_of_softmax() -> None:
    torch.manual_seed(0)
    scores, mask = torch.randn(1, 2, 3, 7, requires_grad=True), torch.rand(1, 3, 7) > 0.4
    mask[..., 0] = True

    def formula(scores: torch.Tensor) -> torch.Tensor:
        return torch.softmax((scores * 0.3).masked_fill(~mask[:, None], float("-inf")), -1)

    def own(scores: torch.Tensor) -> torch.Tensor:
        return masked_softmax(scores, mask, 0.3)

    upstream = torch.randn(1, 2, 3, 7)
    torch.testing.assert_close(own(scores), formula(scores))
    torch.testing.assert_close(
        gradients(own, [scores], upstream), gradients(formula, [scores], upstream)
    )


@torch.no_grad()
def test_the_shipped_model_finds_every_needle_by_its_own_selection(corpus: Corpus) -> None:
    model = load_exported(MODEL)
    sampler = corpus.held_out_sampler(3)
    assert needle_accuracy(model, sampler, 1000, 2, topk=512, depth=0.3, distractors=2) == 1.0


@torch.no_grad()
def test_the_shipped_model_finds_no_needle_in_the_newest_tokens_alone(corpus: Corpus) -> None:
    model = load_exported(MODEL)
    for layer in model.model.layers:
        # equal scores everywhere but for the position: the newest tokens win
        layer.self_attn.indexer.forward = newest_first
    sampler = corpus.held_out_sampler(3)
    assert needle_accuracy(model, sampler, 1000, 2, topk=512, depth=0.3) == 0.0


def newest_first(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, tokens, _ = x.shape
    key = torch.arange(1.0, tokens + 1).view(1, tokens, 1).expand(batch, -1, -1)
    return torch.ones(batch, tokens, 1, 1), key, torch.ones(batch, tokens, 1)
