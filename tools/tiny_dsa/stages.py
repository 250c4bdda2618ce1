"""The training stages and their learning rates."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

StageKind = Literal["dense", "warm", "sparse"]

DEFAULT_SECONDS = (120.0, 50.0, 95.0, 55.0, 165.0)  # on one H100


class MicroBatch(NamedTuple):
    """One of the batches whose gradients make a step."""

    num_tokens: int
    size: int
    answer_weight: int  # of an answer token's loss against a plain token's


@dataclass(frozen=True)
class Stage:
    """One kind of training for a time.

    "dense": everything but the indexer. "warm": the indexer alone. "sparse": everything.
    """

    kind: StageKind
    batches: tuple[MicroBatch, ...]
    seconds: float

    @property
    def name(self) -> str:
        """Kind and longest context, for the log."""
        return f"{self.kind} {self.batches[0].num_tokens}"


class Rates(NamedTuple):
    """Learning rates of one step; `trunk` multiplies the base rates of Muon and AdamW."""

    trunk: float
    indexer: float


def make_stages(seconds: tuple[float, ...], scale: int = 1) -> list[Stage]:
    """The five stages; `scale` > 1 shortens contexts and batches for a run on a CPU.

    Raises:
        ValueError: `seconds` does not hold five numbers.
    """
    if len(seconds) != 5:
        raise ValueError(f"stage times: need 5 numbers of seconds, {len(seconds)} given")
    long, middle, short = 16_384 // scale, 4096 // scale, 2048 // scale
    batches = (
        (MicroBatch(short, 64 // scale, 10),),
        (MicroBatch(middle, 32 // scale, 16),),
        (MicroBatch(long, max(8 // scale, 1), 60),),
        (MicroBatch(long, 2, 60), MicroBatch(middle, 4, 16)),
        (MicroBatch(long, 2, 60), MicroBatch(middle, 8, 16)),
    )
    kinds: tuple[StageKind, ...] = ("dense", "dense", "dense", "warm", "sparse")
    return [Stage(*parts) for parts in zip(kinds, batches, seconds, strict=True)]


def dense_rates(step: int, done: float) -> Rates:
    """100 steps of warm-up, flat to 60 % of all dense time (`done` in [0, 1]), then down to 0.3."""
    decay = 1.0 if done < 0.6 else 1 - 0.7 * (done - 0.6) / 0.4
    return Rates(min(1.0, (step + 1) / 100) * decay, 0.0)


def selecting_rates(kind: StageKind, step: int, done: float) -> Rates:
    """Rates of "warm" and "sparse" at `step` of the stage, at the fraction `done` of its time."""
    trunk = 0.3 * (1 - done) + 0.005
    if kind == "warm":
        return Rates(trunk, 3e-3 * min(1, (step + 1) / 40) * (1 - 0.6 * done))
    return Rates(trunk, 1.2e-3 * (1 - 0.95 * done))
