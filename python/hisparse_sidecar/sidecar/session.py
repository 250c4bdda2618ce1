"""What an engine talks to: one contract, in process here and over gRPC in `client`."""

from collections.abc import Sequence
from typing import Protocol

from typing_extensions import Unpack

from hisparse_sidecar.config import SidecarConfig
from hisparse_sidecar.config.sequence import OpenedPrompt, OpenOptions
from hisparse_sidecar.layer_io import LayerInputs, LayerOutputs
from hisparse_sidecar.sidecar.sidecar import Sidecar
from hisparse_sidecar.stats import SidecarStats, TierBytes
from hisparse_sidecar.step.step import StepKind


class Session(Protocol):
    """Sequences and steps of one engine; the methods and errors are those of `Sidecar`."""

    @property
    def config(self) -> SidecarConfig:
        """What the sidecar behind the session was built for."""
        ...

    def open(self, prompt_tokens: int, max_new_tokens: int, **options: Unpack[OpenOptions]) -> int:
        """Admits a sequence and returns its handle."""
        ...

    def open_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> OpenedPrompt:
        """Admits a sequence on what any tier has of the beginning of its prompt."""
        ...

    def preempt(self, sequence: int) -> None:
        """Lets a sequence rest: it keeps its tokens and nothing else."""
        ...

    def resume(self, sequence: int) -> int:
        """Makes a resting sequence ready for steps again; its length."""
        ...

    def fork(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """Opens a sequence that starts with the first `length` tokens of another."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forgets every token from position `length` on."""
        ...

    def close_sequence(self, sequence: int) -> None:
        """Gives back everything that the sequence holds."""
        ...

    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        *,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """Appends (sequence, number of rows) to the sequences and opens a step."""
        ...

    def run_layer(self, layer: int, inputs: LayerInputs) -> LayerOutputs:
        """Runs one layer of the open step."""
        ...

    def end_step(self) -> None:
        """Keeps the open step's rows."""
        ...

    def abort_step(self) -> None:
        """Puts every sequence of the open step back."""
        ...

    def stats(self) -> SidecarStats:
        """A snapshot of the counters and of the bytes held."""
        ...

    def tier_bytes(self, sequence: int) -> TierBytes:
        """Bytes that one sequence holds in each tier."""
        ...

    def close(self) -> None:
        """Ends the session and everything that it opened."""
        ...


class LocalSession:
    """A `Session` on a `Sidecar` in this process; closing it closes the session's sequences."""

    def __init__(self, sidecar: Sidecar) -> None:
        self.sidecar = sidecar
        self._sequences: set[int] = set()

    @property
    def config(self) -> SidecarConfig:
        """The sidecar's configuration."""
        return self.sidecar.config

    def open(self, prompt_tokens: int, max_new_tokens: int, **options: Unpack[OpenOptions]) -> int:
        """See `Sidecar.open`."""
        sequence = self.sidecar.open(prompt_tokens, max_new_tokens, **options)
        self._sequences.add(sequence)
        return sequence

    def open_prompt(
        self,
        token_ids: Sequence[int],
        max_new_tokens: int,
        *,
        tenant: str = "",
        **options: Unpack[OpenOptions],
    ) -> OpenedPrompt:
        """See `Sidecar.open_prompt`."""
        opened = self.sidecar.open_prompt(token_ids, max_new_tokens, tenant=tenant, **options)
        self._sequences.add(opened.sequence)
        return opened

    def preempt(self, sequence: int) -> None:
        """See `Sidecar.preempt`."""
        self.sidecar.preempt(sequence)

    def resume(self, sequence: int) -> int:
        """See `Sidecar.resume`."""
        return self.sidecar.resume(sequence)

    def fork(self, sequence: int, length: int, max_new_tokens: int) -> int:
        """See `Sidecar.fork`."""
        child = self.sidecar.fork(sequence, length, max_new_tokens)
        self._sequences.add(child)
        return child

    def truncate(self, sequence: int, length: int) -> None:
        """See `Sidecar.truncate`."""
        self.sidecar.truncate(sequence, length)

    def close_sequence(self, sequence: int) -> None:
        """See `Sidecar.close_sequence`."""
        self.sidecar.close_sequence(sequence)
        self._sequences.discard(sequence)

    def begin_step(
        self,
        rows: Sequence[tuple[int, int]],
        kind: StepKind,
        *,
        padded_rows: int | None = None,
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """See `Sidecar.begin_step`."""
        self.sidecar.begin_step(rows, kind, padded_rows=padded_rows, token_ids=token_ids)

    def run_layer(self, layer: int, inputs: LayerInputs) -> LayerOutputs:
        """See `Sidecar.run_layer`."""
        return self.sidecar.run_layer(layer, inputs)

    def end_step(self) -> None:
        """See `Sidecar.commit_step`."""
        self.sidecar.commit_step()

    def abort_step(self) -> None:
        """See `Sidecar.abort_step`."""
        self.sidecar.abort_step()

    def stats(self) -> SidecarStats:
        """See `Sidecar.stats`."""
        return self.sidecar.stats()

    def tier_bytes(self, sequence: int) -> TierBytes:
        """See `Sidecar.tier_bytes`."""
        return self.sidecar.tier_bytes(sequence)

    def close(self) -> None:
        """Aborts an open step and closes the session's sequences; the sidecar stays."""
        if self.sidecar.has_open_step:
            self.sidecar.abort_step()
        for sequence in list(self._sequences):
            self.close_sequence(sequence)
