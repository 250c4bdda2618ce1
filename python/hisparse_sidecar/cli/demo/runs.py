"""The runs of the demo: the model in memory, and the model through a sidecar's session."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from torch import nn

from hisparse_sidecar.cli.demo.audit import SelectionAudit
from hisparse_sidecar.cli.demo.prompt import Prompt
from hisparse_sidecar.cli.demo.report import Generation, RunReport
from hisparse_sidecar.cli.demo.traffic import traffic_between
from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.engines.transformers import (
    GreedyOptions,
    ReferenceModel,
    RowLayouts,
    SidecarCache,
    attach,
    greedy,
    next_logits_of,
)
from hisparse_sidecar.engines.transformers.greedy import NextLogits
from hisparse_sidecar.sidecar import Session

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class ProgressView(Protocol):
    """What shows how far a run is."""

    def advance(self, run: str, stage: str, done: int, total: int) -> None:
        """`done` of `total` tokens of a stage of a run are done."""
        ...


@dataclass(frozen=True)
class Workload:
    """What every run does: the same prompt, the same number of tokens.

    Attributes:
        model: in eval mode.
        tokenizer: the model's.
        prompt: what is prefilled.
        options: how many tokens, in what chunks.
        layouts: row layouts that the reference imitates.
        view: where progress is shown.
    """

    model: nn.Module
    tokenizer: "Tokenizer"
    prompt: Prompt
    options: GreedyOptions
    layouts: RowLayouts
    view: ProgressView

    @property
    def total_tokens(self) -> int:
        """Length that the sequence is admitted for: the longest question and its answer fit."""
        prompt = self.prompt
        asking = prompt.text_tokens + max(map(len, prompt.questions)) + len(prompt.asked.digits)
        return max(len(prompt.token_ids) + self.options.max_new_tokens, asking)


class _Clock:
    """Times the stages of one run by its progress reports."""

    def __init__(self, run: str, view: ProgressView) -> None:
        self._run, self._view = run, view
        self._start = time.perf_counter()
        self._first_token: float | None = None
        self._last_token = self._start

    def on_progress(self, stage: Literal["prefill", "decode"], done: int, total: int) -> None:
        now = time.perf_counter()
        if stage == "decode":
            self._first_token = now if self._first_token is None else self._first_token
            self._last_token = now
        self._view.advance(self._run, stage, done, total)

    def generation(self, workload: Workload, token_ids: Sequence[int]) -> Generation:
        assert self._first_token is not None
        return Generation(
            token_ids=tuple(token_ids),
            text=workload.tokenizer.decode(list(token_ids)),
            prefill_seconds=self._first_token - self._start,
            decode_seconds=self._last_token - self._first_token,
        )


def run_reference(workload: Workload) -> Generation:
    """Everything in memory, flat selection, rows rounded as the layouts round them."""
    with ReferenceModel(
        workload.model, layouts=workload.layouts, max_tokens=workload.total_tokens
    ) as reference:
        clock = _Clock("reference", workload.view)
        options = replace(workload.options, on_progress=clock.on_progress)
        token_ids = greedy(reference.next_logits, workload.prompt.token_ids, options)
    return clock.generation(workload, token_ids)


def run_session(
    workload: Workload, session: Session, selection: SelectionConfig, reference: Sequence[int]
) -> RunReport:
    """The same through a session: one sequence, from open to close.

    Args:
        workload: what to run.
        session: of a sidecar that serves nothing else meanwhile.
        selection: how to select.
        reference: tokens to compare with.
    """
    prompt, config = workload.prompt, session.config
    audit = SelectionAudit(config.model, config.index, len(prompt.token_ids))
    before = session.stats()
    with (
        attach(workload.model, session, on_layer=audit.on_layer) as attachment,
        attachment.open(0, workload.total_tokens, selection=selection) as cache,
    ):
        next_logits = next_logits_of(attachment, cache)
        generation = _generate(workload, next_logits, selection.index_source)
        after, held = session.stats(), session.tier_bytes(cache.sequences[0])
        audit.stop()
        facts_found = _ask_all(workload, next_logits, cache, selection.index_source)
    return RunReport(
        index_source=selection.index_source,
        generation=generation,
        tokens_equal_fraction=_equal_fraction(generation.token_ids, reference),
        needle_found=generation.text.startswith(prompt.asked.digits),
        facts_found=facts_found,
        recall=audit.recall(),
        traffic=traffic_between(before, after, config.kv.row_bytes),
        held=held,
        num_tokens=len(prompt.token_ids) + generation.decode_steps,
    )


def _generate(workload: Workload, next_logits: NextLogits, run: str) -> Generation:
    clock = _Clock(run, workload.view)
    options = replace(workload.options, on_progress=clock.on_progress)
    token_ids = greedy(next_logits, workload.prompt.token_ids, options)
    return clock.generation(workload, token_ids)


def _ask_all(workload: Workload, next_logits: NextLogits, cache: SidecarCache, run: str) -> int:
    """Asks for each fact in turn, each time from the end of the text; how many are answered."""
    prompt, found = workload.prompt, 0
    pairs = list(zip(prompt.needles, prompt.questions, strict=True))
    for done, (needle, question) in enumerate(pairs, start=1):
        cache.truncate(prompt.text_tokens)
        answer = greedy(next_logits, question, GreedyOptions(len(needle.digits)))
        found += workload.tokenizer.decode(answer).startswith(needle.digits)
        workload.view.advance(run, "facts asked", done, len(pairs))
    return found


def _equal_fraction(found: Sequence[int], reference: Sequence[int]) -> float:
    if not reference:
        raise ValueError("the reference has 0 tokens, needs at least 1")
    pairs = zip(found, reference, strict=False)
    equal = sum(token == wanted for token, wanted in pairs)
    return equal / max(len(found), len(reference))
