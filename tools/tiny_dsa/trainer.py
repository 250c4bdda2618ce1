"""Runs the training stages on one device."""

import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.tiny_dsa.attention import SelectionPass
from tools.tiny_dsa.config import DEVICE, autocast, compiled
from tools.tiny_dsa.corpus import Batch, Corpus
from tools.tiny_dsa.metrics import needle_accuracy
from tools.tiny_dsa.model import TinyDsa
from tools.tiny_dsa.muon import Muon
from tools.tiny_dsa.stages import MicroBatch, Rates, Stage, dense_rates, selecting_rates

_MUON_RATE, _ADAM_RATE = 4e-3, 3e-3
_UNTIMED_STEPS = 2  # they compile


class Trainer:
    """A model with its optimizers; each stage ends in a checkpoint."""

    def __init__(
        self, model: TinyDsa, corpus: Corpus, out: Path, workers: int = 12, scale: int = 1
    ) -> None:
        self._model, self._corpus, self._out = model, corpus, out
        self._workers, self._scale = workers, scale
        named = list(model.named_parameters())
        self._indexer = [p for name, p in named if "indexer" in name]
        trunk = [(name, p) for name, p in named if "indexer" not in name]
        self._matrices = [p for name, p in trunk if p.ndim == 2 and "embed" not in name]
        self._rest = [p for name, p in trunk if p.ndim == 1 or "embed" in name]
        self._muon = Muon(self._matrices)
        groups = [{"params": self._rest}, {"params": self._indexer}]
        self._adam = torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.98), weight_decay=0.0)
        self._step, self._dense_done = 0, 0.0

    def run(self, stages: list[Stage]) -> None:
        """Train every stage that has time."""
        dense_total = sum(stage.seconds for stage in stages if stage.kind == "dense")
        start = time.time()
        for number, stage in enumerate(stages):
            if stage.seconds <= 0:
                continue
            self._train_stage(number, stage, dense_total, start)
            torch.save(self._model.state_dict(), self._out / f"stage{number}_{stage.kind}.pt")
            self._report_needles(stage)

    def _train_stage(self, number: int, stage: Stage, dense_total: float, run_start: float) -> None:
        streams = [
            self._corpus.batches(b.num_tokens, b.size, number * 10 + i + 1, self._workers)
            for i, b in enumerate(stage.batches)
        ]
        self._freeze(stage)
        rng, losses, step = random.Random(number), list[Tensor](), 0
        log = _StepLog(stage, self._step, run_start)
        start = time.time()
        while (elapsed := time.time() - start) < stage.seconds:
            if stage.kind == "dense":
                rates = dense_rates(self._step, (self._dense_done + elapsed) / dense_total)
            else:
                rates = selecting_rates(stage.kind, step, elapsed / stage.seconds)
            losses += self._train_step(stage, streams, rates, rng)
            self._step, step = self._step + 1, step + 1
            if step == _UNTIMED_STEPS:
                start = log.start_timing(self._step)
            if step == 6 or step % 50 == 0:
                log.write(self._step, losses, rates)
                losses = []
        if stage.kind == "dense":
            self._dense_done += stage.seconds

    def _freeze(self, stage: Stage) -> None:
        for parameter in self._matrices + self._rest:
            parameter.requires_grad_(stage.kind != "warm")
        for parameter in self._indexer:
            parameter.requires_grad_(stage.kind != "dense")

    def _train_step(
        self, stage: Stage, streams: list[Iterator[Batch]], rates: Rates, rng: random.Random
    ) -> list[Tensor]:
        """One update; returns [text, answer, indexer] losses of each micro-batch."""
        self._set_rates(rates)
        losses = [
            self._backward(stage, micro, next(stream), rng)
            for micro, stream in zip(stage.batches, streams, strict=True)
        ]
        if stage.kind != "warm":
            nn.utils.clip_grad_norm_(self._matrices + self._rest, 1.0)
            self._muon.step()
        if stage.kind != "dense":
            nn.utils.clip_grad_norm_(self._indexer, 5.0)
        self._adam.step()
        self._muon.zero_grad()
        self._adam.zero_grad()
        return losses

    def _set_rates(self, rates: Rates) -> None:
        for group in self._muon.param_groups:
            group["lr"] = _MUON_RATE * rates.trunk
        rest, indexer = self._adam.param_groups
        rest["lr"], indexer["lr"] = _ADAM_RATE * rates.trunk, rates.indexer

    def _backward(
        self, stage: Stage, micro: MicroBatch, batch: Batch, rng: random.Random
    ) -> Tensor:
        tokens, is_answer = (part.to(DEVICE, non_blocking=True) for part in batch)
        inputs, targets, answers = (
            part.contiguous() for part in (tokens[:, :-1], tokens[:, 1:], is_answer[:, 1:])
        )
        selection = self._selection(stage, micro, rng)
        loss = text = answer = torch.zeros((), device=DEVICE)
        with autocast():
            hidden = self._model.hidden(inputs, selection)
            if stage.kind != "warm":
                embedding = self._model.model.embed_tokens.weight
                weight = float(micro.answer_weight)
                loss, text, answer = _weighted_loss(hidden, embedding, targets, answers, weight)
        indexer = torch.zeros((), device=DEVICE)
        if selection is not None:
            indexer = torch.stack(selection.layer_losses).mean()
            loss = loss + indexer * len(selection.layer_losses)
        (loss / len(stage.batches)).backward()
        return torch.stack([text.detach(), answer.detach(), indexer.detach()])

    def _selection(
        self, stage: Stage, micro: MicroBatch, rng: random.Random
    ) -> SelectionPass | None:
        """None when dense; else the indexer learns on random chunks and always on the last."""
        if stage.kind == "dense":
            return None
        size = min(512, micro.num_tokens // 2)
        last = micro.num_tokens // size - 1  # it holds most answers
        others = rng.sample(range(last), min(last, 7 if stage.kind == "warm" else 5))
        topk = self._model.config.scaled_topk(self._scale)
        return SelectionPass(topk, stage.kind, size, frozenset([*others, last]))

    def _report_needles(self, stage: Stage) -> None:
        length, topk = stage.batches[0].num_tokens, self._model.config.scaled_topk(self._scale)
        sampler, found = self._corpus.held_out_sampler(7), {}
        with torch.no_grad(), autocast():
            for name, k in (("dense", None), ("sparse", topk)):
                if name == "dense" or stage.kind != "dense":
                    found[name] = needle_accuracy(self._model, sampler, length - 1, 16, k)
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
        print(f"== {stage.name}: {self._step} steps, needles {found}, {peak:.1f} GiB", flush=True)


class _StepLog:
    """Prints losses and speed every few steps."""

    def __init__(self, stage: Stage, step: int, run_start: float) -> None:
        self._stage, self._run_start = stage, run_start
        self._made, self._first_step, self._since = time.time(), step, time.time()

    def start_timing(self, step: int) -> float:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self._first_step, self._since = step, time.time()
        print(f"first {_UNTIMED_STEPS} steps {self._since - self._made:.1f} s", flush=True)
        return self._since

    def write(self, step: int, losses: list[Tensor], rates: Rates) -> None:
        text, answer, indexer = torch.stack(losses).mean(0).tolist()
        per_step = sum(micro.num_tokens * micro.size for micro in self._stage.batches)
        speed = per_step * (step - self._first_step) / (time.time() - self._since)
        print(
            f"{time.time() - self._run_start:6.1f} s {self._stage.name} step {step} "
            f"text {text:.3f} answer {answer:.3f} indexer {indexer:.4f} "
            f"rate {rates.trunk:.3f} {speed / 1e3:.0f}k tokens/s",
            flush=True,
        )
        self._first_step, self._since = step, time.time()


@compiled(dynamic=False)
def _weighted_loss(
    hidden: Tensor, embedding: Tensor, targets: Tensor, is_answer: Tensor, answer_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted loss of all tokens, and the plain means over text and over answers."""
    logits = (hidden @ embedding.to(hidden.dtype).t()).float().flatten(0, 1)
    losses = F.cross_entropy(logits, targets.flatten().long(), reduction="none")
    answers = is_answer.flatten().float()
    weighted = (losses * (1 + (answer_weight - 1) * answers)).sum() / losses.numel()
    text = (losses * (1 - answers)).sum() / (1 - answers).sum()
    return weighted, text, (losses * answers).sum() / answers.sum().clamp_min(1)
