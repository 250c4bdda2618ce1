"""The exported checkpoint through transformers' own class on the CPU: loss, needles, generation."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, GlmMoeDsaForCausalLM

from tools.tiny_dsa.attention import SelectionPass
from tools.tiny_dsa.config import ModelConfig
from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.metrics import NUM_DIGITS
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.tasks import Tokens

SENTENCE = "The secret code of harbour is 48213.\n"


@dataclass(frozen=True)
class CheckSize:
    """How much is run."""

    num_tokens: int = 4096
    num_texts: int = 2
    num_needles: int = 4


def check(folder: Path, corpus: Corpus, size: CheckSize | None = None) -> dict[str, object]:
    """Numbers of the dense and of the sparse model.

    Raises:
        RuntimeError: the exported tokenizer and the corpus's differ.
    """
    _check_tokenizer(folder, corpus)
    size = size or CheckSize()
    config = ModelConfig()
    everything = config.max_position_embeddings
    found: dict[str, object] = {}
    for name, topk in (("dense", everything), ("sparse", config.index_topk)):
        found[name] = _check_attention(folder, corpus, size, topk)
        print(name, found[name], flush=True)
    return found


@torch.no_grad()
def _check_attention(
    folder: Path, corpus: Corpus, size: CheckSize, topk: int
) -> dict[str, float | bool]:
    model = GlmMoeDsaForCausalLM.from_pretrained(folder, dtype=torch.float32, index_topk=topk)
    model.eval()
    length = size.num_tokens
    texts = [_row(corpus.held_out[i * length : (i + 1) * length]) for i in range(size.num_texts)]
    losses = [F.cross_entropy(model(x[:, :-1]).logits[0], x[0, 1:]).item() for x in texts]
    sampler, n = corpus.held_out_sampler(21), size.num_needles
    needles = [_row(sampler.needle(length, (i + 0.5) / n).tokens) for i in range(n)]
    digits = slice(-NUM_DIGITS, None)
    right = [bool((_last_digits(model, x[:, :-1]) == x[:, digits]).all()) for x in needles]
    asked = needles[min(1, n - 1)]
    prompt = asked[:, :-NUM_DIGITS]
    answer = _generate(model, prompt)[:, digits]
    return {
        "text_loss": float(np.mean(losses)),
        "needles": float(np.mean(right)),
        "generates": bool((answer == asked[:, digits]).all()),
        "max_logit_difference": _difference(model, texts[0][:, :2048], topk),
    }


def _difference(model: GlmMoeDsaForCausalLM, tokens: Tensor, topk: int) -> float:
    """Largest difference between transformers' logits and the training code's."""
    own = TinyDsa(ModelConfig())
    own.load_state_dict(model.state_dict(), strict=False)
    difference = model(tokens).logits - own.logits(tokens, SelectionPass(topk))
    return float(difference.abs().max())


def _generate(model: Any, prompt: Tensor) -> Tensor:  # noqa: ANN401
    tokens: Tensor = model.generate(prompt, max_new_tokens=NUM_DIGITS, do_sample=False)
    return tokens


def _last_digits(model: GlmMoeDsaForCausalLM, tokens: Tensor) -> Tensor:
    best: Tensor = model(tokens, logits_to_keep=NUM_DIGITS).logits.argmax(-1)
    return best


def _check_tokenizer(folder: Path, corpus: Corpus) -> None:
    exported = AutoTokenizer.from_pretrained(folder)
    found, needed = exported(SENTENCE)["input_ids"], corpus.tokenizer.encode(SENTENCE).ids
    if found != needed or exported.decode(found) != SENTENCE:
        raise RuntimeError(f"exported tokenizer gives {found}, the corpus's gives {needed}")


def _row(tokens: Tokens) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64))[None]


def main() -> None:
    """Check OUT/model with the corpus DATA and add the numbers to OUT/eval.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder that holds model/")
    parser.add_argument("data", type=Path, help="folder that prepare wrote")
    arguments = parser.parse_args()
    report = arguments.out / "eval.json"
    found = json.loads(report.read_text()) if report.exists() else {}
    corpus = Corpus.load(arguments.data)
    found["transformers_cpu"] = check(arguments.out / "model", corpus)
    report.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
