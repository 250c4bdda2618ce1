"""Texts that begin alike, and their rows: equal tokens after equal ones have equal rows."""

from hisparse_sidecar import LayerInputs, SidecarConfig
from tests.pipeline.world import pack_rows, random_rows

MOST = 400  # tokens of a sequence
SHARED = 150  # tokens that all texts begin with
NUM_TEXTS = 4


class Texts:
    """Token ids and rows of some texts that begin alike, by position."""

    def __init__(self, config: SidecarConfig) -> None:
        layers = range(config.model.num_layers)
        self._rows = [
            [random_rows(config, layer, MOST, text) for text in range(NUM_TEXTS)]
            for layer in layers
        ]

    @staticmethod
    def ids(sources: list[int], start: int) -> list[int]:
        """Of tokens from position `start` on, which are those of the texts `sources`."""
        return [source * MOST + at for at, source in enumerate(sources, start)]

    def rows(self, layer: int, sources: list[int], start: int) -> LayerInputs:
        """Rows of these tokens."""
        texts = self._rows[layer]
        parts = [_row(texts[source], at) for at, source in enumerate(sources, start)]
        return pack_rows(parts)


def _row(rows: LayerInputs, position: int) -> LayerInputs:
    names = ("query", "kv", "index_q", "index_weights", "index_k")
    tensors = {name: getattr(rows, name) for name in names}
    one = slice(position, position + 1)
    return LayerInputs(**{name: t if t is None else t[one] for name, t in tensors.items()})  # type: ignore[arg-type]


def sources_of(text: int, start: int) -> list[int]:
    """The text that each token from `start` on is of."""
    return [0 if at < SHARED else text for at in range(start, MOST)]
