"""A needle prompt in a session: prefilled once, then asked from forks, which start with cold slots.

A fork shares the host pages and nothing of the device tier, so what it reads comes from the host
pool: where a test spoils stored bytes, the fork must notice.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from hisparse_sidecar import LocalSession, SelectionConfig
from hisparse_sidecar.cli.demo.prompt import Prompt, build_prompt
from hisparse_sidecar.engines.transformers import Attachment, SidecarCache, attach
from hisparse_sidecar.engines.transformers.family import device_of
from tests.engines.models import TEXT, tiny_dsa, tokenizer
from tests.engines.sidecars import QUANTISED, Room, local_session


@dataclass(frozen=True)
class Answer:
    """What a fork said.

    Attributes:
        text: the generated digits.
        logits: [digits, vocab] fp32, from which they were taken.
        selected: for each layer [topk] int32, what the first answer's row selected.
    """

    text: str
    logits: torch.Tensor
    selected: list[torch.Tensor] = field(repr=False)


def needle_prompt(num_tokens: int, seed: int = 0) -> Prompt:
    """Four facts in the shipped text and the question for one of the first two."""
    text = TEXT.read_text(encoding="utf-8")
    return build_prompt(tokenizer(), text, num_tokens, num_needles=4, seed=seed)


@dataclass
class AskedPrompt:
    """All of a prompt but its last token, prefilled in `cache`."""

    attached: Attachment
    cache: SidecarCache
    prompt: Prompt
    watched: dict[int, torch.Tensor]

    def ask(self) -> Answer:
        """Decodes the answer's digits in a fork."""
        session, length = self.attached.session, self.cache.lengths[0]
        digits = len(self.prompt.asked.digits)
        child = session.fork(self.cache.sequences[0], length, digits)
        with SidecarCache(session, [child], [length]) as cache:
            token, logits, selected = self.prompt.token_ids[-1], [], []
            for _ in range(digits):
                ids = torch.tensor([[token]], device=device_of(self.attached.model))
                step = self.attached.model(ids, past_key_values=cache)
                selected = selected or [self.watched[layer] for layer in sorted(self.watched)]
                logits.append(step.logits[0, 0])
                token = int(logits[-1].argmax())
        text = tokenizer().decode([int(row.argmax()) for row in logits])
        return Answer(text, torch.stack(logits), selected)

    def host_row(self, token_pos: int) -> int:
        """Row of the host pool that holds a token of the prompt."""
        page = self.sidecar._manager.host_pages(self.cache.sequences[0])[token_pos // 64]
        return page * 64 + token_pos % 64

    @property
    def sidecar(self):
        session = self.attached.session
        assert isinstance(session, LocalSession)
        return session.sidecar

    @property
    def host(self):
        """The host pool's tensors."""
        return self.sidecar._tiers.host


def prefill(
    attached: Attachment,
    watched: dict[int, torch.Tensor],
    prompt: Prompt,
    selection: SelectionConfig,
) -> AskedPrompt:
    """Prefills all but the last token, in chunks of 512."""
    length = len(prompt.token_ids) - 1
    cache = attached.open(length, 1, selection=selection)
    ids_of_prompt = torch.tensor([prompt.token_ids[:-1]], device=device_of(attached.model))
    for ids in ids_of_prompt.split(512, dim=1):
        attached.model(ids, past_key_values=cache, logits_to_keep=1)
    return AskedPrompt(attached, cache, prompt, watched)


@contextmanager
def asked(
    num_tokens: int, selection: SelectionConfig, seed: int = 0, device: str = "cpu"
) -> Iterator[AskedPrompt]:
    """A needle prompt, prefilled with the model and the device tier on `device`."""
    room = Room(num_tokens + 64, sequences=2, layouts=QUANTISED, hot_slots=512, device=device)
    watched: dict[int, torch.Tensor] = {}

    def watch(layer, _, outputs):
        watched[layer] = outputs.topk_indices[-1]

    model = copy.deepcopy(tiny_dsa()).to(device)
    with local_session(model, room) as session, attach(model, session, on_layer=watch) as attached:
        question = prefill(attached, watched, needle_prompt(num_tokens, seed), selection)
        yield question
        session.close()
