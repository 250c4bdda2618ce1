"""Index queries and keys of the small trained model, over prompts with facts planted in them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.ops.inputs import INDEX, fill_pages
from benchmarks.select.rows import Rows, pool_pages
from hisparse_kernels.index_rows import pack_index_rows_ref, quantize_index_q_ref
from hisparse_kernels.layouts import PAGE_TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from hisparse_sidecar.cli.demo.prompt import Prompt
    from tools.tiny_dsa.attention import Probe

TOKENS = 16 * 1024  # all that the model takes
PROMPTS = 2
_ROOT = Path(__file__).parents[2]
_MODEL, _TEXT = _ROOT / "models" / "tiny-dsa", _ROOT / "examples" / "text" / "opticks.txt"
_NEEDLES = 4


@dataclass(frozen=True)
class _Layer:
    """What one layer's indexer made of one prompt.

    Attributes:
        query: [tokens, heads, 128] fp32, the products' scale in it.
        weights: [tokens, heads] fp32.
        index_pages: [pages, page_bytes] uint8.
    """

    query: torch.Tensor
    weights: torch.Tensor
    index_pages: torch.Tensor


class RealRows:
    """Rows of the model; it runs when they are first asked for.

    The newest token is where the first digit of the fact that the prompt asks for is due.
    """

    @property
    def layers(self) -> list[int]:
        """Layer of each row of `decode`."""
        return [number % self._num_layers for number in range(PROMPTS * self._num_layers)]

    @cached_property
    def needles(self) -> list[torch.Tensor]:
        """Positions of the asked fact's digits for each row of `decode`."""
        each = [_digit_positions(self._tokenizer, prompt) for prompt in self._prompts]
        return [positions for positions in each for _ in range(self._num_layers)]

    def decode(self) -> Rows:
        """The newest row of every prompt and layer, each a sequence of its own."""
        layers = [layer for prompt in self._probes for layer in prompt]
        row_seq = torch.arange(len(layers), dtype=torch.int32, device="cuda")
        return _rows(layers, row_seq, torch.full_like(row_seq, TOKENS - 1), newest=1)

    def prefill(self, count: int) -> Rows:
        """The last `count` rows of the first prompt in the last layer, which looks farthest."""
        row_pos = torch.arange(TOKENS - count, TOKENS, dtype=torch.int32, device="cuda")
        return _rows([self._probes[0][-1]], torch.zeros_like(row_pos), row_pos, newest=count)

    @property
    def _num_layers(self) -> int:
        return len(self._probes[0])

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(_MODEL / "tokenizer.json"))

    @cached_property
    def _prompts(self) -> list["Prompt"]:
        from hisparse_sidecar.cli.demo.prompt import build_prompt

        text = _TEXT.read_text(encoding="utf-8")
        return [
            build_prompt(self._tokenizer, text, TOKENS, num_needles=_NEEDLES, seed=seed)
            for seed in range(PROMPTS)
        ]

    @cached_property
    def _probes(self) -> list[list[_Layer]]:
        """Each prompt's layers."""
        from tools.tiny_dsa.attention import SelectionPass
        from tools.tiny_dsa.export import load_exported

        model = load_exported(_MODEL)
        found = []
        for prompt in self._prompts:
            selection = SelectionPass(model.config.index_topk, probes=[])
            tokens = torch.tensor([prompt.token_ids], device=model.cos.device)
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                model.hidden(tokens, selection)
            found.append([_layer(probe) for probe in selection.probes or []])
        return found


def _layer(probe: "Probe") -> _Layer:
    keys = pack_index_rows_ref(probe.index_key[0].float(), INDEX)
    pages = keys.new_empty(len(keys) // PAGE_TOKENS, INDEX.page_bytes)
    fill_pages(pages, keys)
    return _Layer(probe.index_query[0].float(), probe.index_weights[0].float(), pages)


def _rows(layers: list[_Layer], row_seq: torch.Tensor, row_pos: torch.Tensor, newest: int) -> Rows:
    """The `newest` rows of each layer."""
    query = torch.cat([layer.query[-newest:] for layer in layers])
    weights = torch.cat([layer.weights[-newest:] for layer in layers])
    query, weights = quantize_index_q_ref(query, weights)
    pages = torch.cat([layer.index_pages for layer in layers])
    return Rows(query, weights, row_seq, row_pos, pages, pool_pages(pages, TOKENS), TOKENS)


def _digit_positions(tokenizer: "Tokenizer", prompt: "Prompt") -> torch.Tensor:
    """[digits] int64, where the digits of the asked fact stand in the prompt."""
    needle = prompt.asked
    shown = [tokenizer.decode([token]).strip() for token in prompt.token_ids]
    digits = len(needle.digits)
    first = next(
        place
        for place in range(needle.position, len(shown))
        if "".join(shown[place : place + digits]) == needle.digits and shown[place].isdigit()
    )
    return torch.arange(first, first + digits)
