"""Evaluation of an exported checkpoint: text loss, needles, quality of the indexer."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tools.tiny_dsa.analysis import AnalysisPlan, analyse
from tools.tiny_dsa.config import DEVICE, ModelConfig, autocast
from tools.tiny_dsa.corpus import Corpus
from tools.tiny_dsa.dense_attention import choose_backend
from tools.tiny_dsa.export import load_exported
from tools.tiny_dsa.metrics import needle_accuracy, text_loss
from tools.tiny_dsa.model import TinyDsa

TEXT_CONTEXTS = (2048, 8192, 16_384)
NEEDLE_CONTEXTS = (1024, 2048, 4096, 8192, 16_384)
INDEXER_CONTEXTS = (4096, 16_384)
DEPTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
CROWDED_DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_DISTRACTORS = 7


@dataclass(frozen=True)
class Evaluation:
    """One model, its corpus, and how much of everything to run."""

    model: TinyDsa
    corpus: Corpus
    is_fast: bool = False
    scale: int = 1  # contexts are this many times shorter

    @torch.no_grad()
    def run(self) -> dict[str, object]:
        """All numbers, printed as they come."""
        with autocast():
            text = self.text_losses()
            print("text", json.dumps(text), flush=True)
            needles = {str(n // self.scale): self.needles(n) for n in self._some(NEEDLE_CONTEXTS)}
        return {"text_loss": text, "needle": needles, "indexer": self.indexer()}

    def text_losses(self) -> dict[str, dict[str, float]]:
        """Held-out loss by context, dense and sparse."""
        num_windows = 4 if self.is_fast else 28
        tokens = self.corpus.held_out[: num_windows * 16_384 // self.scale]
        return {
            str(length): {
                name: text_loss(self.model, tokens, length, topk)
                for name, topk in self._attentions().items()
            }
            for length in (context // self.scale for context in self._some(TEXT_CONTEXTS))
        }

    def needles(self, context: int) -> dict[str, dict[str, object]]:
        """Needles found at one context by depth, alone and among distractors."""
        length, found = context // self.scale - 1, {}
        for name, topk in self._attentions().items():
            sampler = self.corpus.held_out_sampler(11)
            num = 4 if self.is_fast else 32
            alone = {
                str(depth): needle_accuracy(self.model, sampler, length, num, topk, depth)
                for depth in DEPTHS
            }
            crowded = [
                needle_accuracy(self.model, sampler, length, num // 2, topk, depth, NUM_DISTRACTORS)
                for depth in CROWDED_DEPTHS
            ]
            mean, mean_crowded = float(np.mean(list(alone.values()))), float(np.mean(crowded))
            found[name] = {"mean": mean, "by_depth": alone, "with_7_distractors": mean_crowded}
            print(f"needles {length + 1} {name} {mean:.3f} {mean_crowded:.3f}", flush=True)
        return found

    def indexer(self) -> dict[str, list[dict[str, float]]]:
        """Numbers of `analyse` by context and layer, mean over sequences."""
        rng, found = np.random.default_rng(5), {}
        for context in self._some(INDEXER_CONTEXTS):
            length = context // self.scale
            starts = (i * 16_384 // self.scale for i in range(2 if self.is_fast else 8))
            sequences = [self.corpus.held_out[start : start + length] for start in starts]
            plan = self._plan(length)
            each = [analyse(self.model, sequence, plan, rng) for sequence in sequences]
            found[str(length)] = [_mean(layers) for layers in zip(*each, strict=True)]
            for layer, numbers in enumerate(found[str(length)]):
                rounded = {name: round(value, 3) for name, value in numbers.items()}
                print(f"indexer {length} layer {layer} {rounded}", flush=True)
        return found

    def _attentions(self) -> dict[str, int | None]:
        return {"dense": None, "sparse": self.model.config.scaled_topk(self.scale)}

    def _some(self, contexts: tuple[int, ...]) -> tuple[int, ...]:
        return contexts[: len(contexts) // 2] if self.is_fast else contexts

    def _plan(self, length: int) -> AnalysisPlan:
        hisa = tuple((b, max(m // self.scale, 2)) for b, m in ((32, 32), (64, 16), (128, 8)))
        topk = self.model.config.scaled_topk(self.scale)
        return AnalysisPlan(topk, 4 if self.is_fast else 48, length // 2, hisa, (2, 3, 4, 8))


def _mean(several: tuple[dict[str, float], ...]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in several])) for name in several[0]}


def main() -> None:
    """Evaluate OUT/model with the corpus DATA and write OUT/eval.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path, help="folder that holds model/")
    parser.add_argument("data", type=Path, help="folder that prepare wrote")
    parser.add_argument("--fast", action="store_true", help="few samples, short contexts")
    arguments = parser.parse_args()
    if DEVICE == "cuda":
        choose_backend(ModelConfig())
    model = load_exported(arguments.out / "model")
    found = Evaluation(model, Corpus.load(arguments.data), arguments.fast).run()
    (arguments.out / "eval.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
