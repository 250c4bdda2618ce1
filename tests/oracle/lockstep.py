"""Run a model through a session and, chunk by chunk, beside two references.

The *led* reference follows the session's selections and starts from its rows before rounding: its
logits must agree everywhere, and what it follows must be what it would have done itself. The
*free* reference selects for itself, and for unrounded layouts does all else for itself too.
"""

import copy
from dataclasses import dataclass, field

import torch

from hisparse_sidecar.config import SelectionConfig
from hisparse_sidecar.engines.transformers import GivenLayer, ReferenceModel, RowLayouts, attach
from hisparse_sidecar.engines.transformers.family import device_of
from hisparse_sidecar.engines.transformers.reference import NearTies
from hisparse_sidecar.engines.transformers.row_rounding import RowAgreement, larger_gap
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.sidecar import Session


@dataclass
class Agreement:
    """What a run found.

    Attributes:
        generated: token ids, the likeliest ones of the session's logits.
        led_generated: what the led reference takes for the likeliest at the same places.
        free_generated: what the free reference takes for the likeliest at the same places.
        led_gap: largest difference of a logit to the led reference.
        free_gap: largest difference of a logit to the free reference, in rows where it selected
            the same sets in every layer.
        differing_rows: number of the other rows.
        near_ties: of the led reference, for each layer.
        rows: of the led reference, for each layer.
    """

    generated: list[int] = field(default_factory=list)
    led_generated: list[int] = field(default_factory=list)
    free_generated: list[int] = field(default_factory=list)
    led_gap: float = 0.0
    free_gap: float = 0.0
    differing_rows: int = 0
    near_ties: list[NearTies] = field(default_factory=list)
    rows: list[RowAgreement] = field(default_factory=list)


class Watch:
    """Keeps what every layer of the last forward handed over and selected."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[LayerInputs, LayerOutputs]] = {}

    def __call__(self, layer: int, inputs: LayerInputs, outputs: LayerOutputs) -> None:
        self.layers[layer] = (inputs, outputs)

    def led(self) -> list[GivenLayer]:
        return [GivenLayer(rows, out.topk_indices) for rows, out in self._in_order()]

    def free(self, rounds: bool) -> list[GivenLayer]:
        return [GivenLayer(rows if rounds else None) for rows, _ in self._in_order()]

    def selected(self) -> list[torch.Tensor]:
        return [outputs.topk_indices for _, outputs in self._in_order()]

    def _in_order(self) -> list[tuple[LayerInputs, LayerOutputs]]:
        return [self.layers[layer] for layer in sorted(self.layers)]


def run_lockstep(
    model, session: Session, prompt: torch.Tensor, new_tokens: int, chunk: int
) -> Agreement:
    """Prefills `prompt` [1, tokens] in chunks and decodes greedily, all three side by side."""
    config, total = session.config, prompt.shape[1] + new_tokens
    layouts = RowLayouts(config.kv_layout, config.index_layout)
    rounds = layouts != RowLayouts()
    references = [
        ReferenceModel(copy.deepcopy(model), layouts=layouts, max_tokens=total) for _ in range(2)
    ]
    watch, found = Watch(), Agreement()

    def forward(ids: torch.Tensor) -> None:
        ids = ids.to(device_of(model))
        logits = model(ids, past_key_values=cache).logits[0]
        led = references[0].forward(ids, given=watch.led())
        free = references[1].forward(ids, given=watch.free(rounds))
        found.led_gap = larger_gap(found.led_gap, (logits - led).abs())
        pairs = zip(references[1].selected, watch.selected(), strict=True)
        differs = torch.stack([(own != ours).any(dim=1) for own, ours in pairs]).any(dim=0)
        found.differing_rows += int(differs.sum())
        gaps = (logits - free).abs().amax(dim=1)
        found.free_gap = larger_gap(found.free_gap, gaps.masked_fill(differs, 0.0))
        found.generated = [*found.generated, int(logits[-1].argmax())]
        found.led_generated = [*found.led_generated, int(led[-1].argmax())]
        found.free_generated = [*found.free_generated, int(free[-1].argmax())]

    with (
        attach(model, session, on_layer=watch) as attached,
        attached.open(prompt.shape[1], new_tokens, selection=SelectionConfig("flat")) as cache,
        references[0],
        references[1],
    ):
        for ids in prompt.split(chunk, dim=1):
            found.generated, found.led_generated, found.free_generated = [], [], []
            forward(ids)
        while len(found.generated) < new_tokens:
            forward(torch.tensor([found.generated[-1:]]))
    found.near_ties, found.rows = references[0].near_ties, references[0].row_agreement
    return found
