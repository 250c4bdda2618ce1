"""What the demo found: one value for each run, and all of it as JSON."""

from dataclasses import asdict, dataclass

from hisparse_sidecar.cli.demo.prompt import Prompt
from hisparse_sidecar.cli.demo.traffic import RunTraffic
from hisparse_sidecar.stats import TierBytes


@dataclass(frozen=True)
class Generation:
    """Tokens that one run generated, and how long that took.

    Attributes:
        token_ids: the new tokens.
        text: the same, decoded.
        prefill_seconds: until the first new token.
        decode_seconds: from the first new token to the last.
    """

    token_ids: tuple[int, ...]
    text: str
    prefill_seconds: float
    decode_seconds: float

    @property
    def decode_steps(self) -> int:
        """Forwards of one token: the first new token came from prefill."""
        return len(self.token_ids) - 1

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None for a single token."""
        return self.decode_steps / self.decode_seconds if self.decode_steps else None


@dataclass(frozen=True)
class RunReport:
    """One run through the sidecar.

    Attributes:
        index_source: how it selected.
        generation: what it generated.
        tokens_equal_fraction: share of the reference's tokens that it has at the same place.
        needle_found: its text starts with the digits that were asked for.
        facts_found: facts answered when each was asked in turn, from the end of the text.
        recall: recall@topk for each anchor layer.
        traffic: what moved.
        held: bytes in each tier when the last token was generated.
        num_tokens: tokens of the sequence then.
    """

    index_source: str
    generation: Generation
    tokens_equal_fraction: float
    needle_found: bool
    facts_found: int
    recall: dict[int, float]
    traffic: RunTraffic
    held: TierBytes
    num_tokens: int

    @property
    def recall_mean(self) -> float | None:
        """Mean over the layers; None where nothing was decoded."""
        return sum(self.recall.values()) / len(self.recall) if self.recall else None

    @property
    def device_bytes_per_token(self) -> float:
        """Device bytes of the sequence for each of its tokens, all layers."""
        return self.held.device / self.num_tokens

    def to_json(self) -> dict[str, object]:
        """The object `flat` or `hisa` of `--json`."""
        generation = self.generation
        return {
            "tokens_equal_fraction": self.tokens_equal_fraction,
            "needle_found": self.needle_found,
            "facts_found": self.facts_found,
            "recall_mean": self.recall_mean,
            "recall_per_layer": {str(layer): value for layer, value in self.recall.items()},
            "hot_hit_rate": self.traffic.hot_hit_rate,
            "block_hit_rate": self.traffic.block_hit_rate,
            "device_bytes_per_token": self.device_bytes_per_token,
            "tokens_per_second": generation.tokens_per_second,
            "prefill_seconds": generation.prefill_seconds,
            "decode_seconds": generation.decode_seconds,
            "text": generation.text,
            "traffic": asdict(self.traffic),
            "held_bytes": {**asdict(self.held), "device": self.held.device},
        }


@dataclass(frozen=True)
class DemoReport:
    """Everything that the demo found.

    Attributes:
        prompt: what was asked.
        backend: the server's.
        device: where the model and the server's device tier are.
        reference: the all-in-memory run that the others are compared with.
        flat, hisa: the runs through the sidecar.
        plain_device_bytes_per_token: what a plain DSA cache with the same rows holds, all layers.
        stage_bytes: device rows, shared by all sequences and layers, that prefill streams through.
        total_seconds: the whole demo.
    """

    prompt: Prompt
    backend: str
    device: str
    reference: Generation
    flat: RunReport
    hisa: RunReport
    plain_device_bytes_per_token: int
    stage_bytes: int
    total_seconds: float

    @property
    def holds(self) -> bool:
        """Flat selection through the sidecar gave every token of the reference."""
        return self.flat.tokens_equal_fraction == 1.0

    @property
    def reference_found(self) -> bool:
        """The reference's text starts with the digits that were asked for."""
        return self.reference.text.startswith(self.prompt.asked.digits)

    @property
    def runs(self) -> tuple[RunReport, RunReport]:
        """Both runs through the sidecar."""
        return self.flat, self.hisa

    def to_json(self) -> dict[str, object]:
        """The one object of `hisparse demo --json`."""
        reference = self.reference
        return {
            "prompt_tokens": len(self.prompt.token_ids),
            "new_tokens": len(reference.token_ids),
            "backend": self.backend,
            "device": self.device,
            "plain_device_bytes_per_token": self.plain_device_bytes_per_token,
            "stage_bytes": self.stage_bytes,
            "needles": [asdict(needle) for needle in self.prompt.needles],
            "asked": asdict(self.prompt.asked),
            "reference": {
                "text": reference.text,
                "needle_found": self.reference_found,
                "tokens_per_second": reference.tokens_per_second,
                "prefill_seconds": reference.prefill_seconds,
                "decode_seconds": reference.decode_seconds,
            },
            "flat": self.flat.to_json(),
            "hisa": self.hisa.to_json(),
            "total_seconds": self.total_seconds,
        }
