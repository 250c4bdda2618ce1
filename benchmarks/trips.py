"""Sequences that go to files and come back, and what they must be afterwards."""

import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.config import ModelShape, SelectionConfig, SidecarConfig, TiersConfig
from hisparse_sidecar.layer_io import LayerInputs
from hisparse_sidecar.sidecar import Sidecar
from hisparse_sidecar.step.step import StepKind
from hisparse_sidecar.tiers.host_memory import HostArrays

_HEADS, _INDEX_HEADS, _TOPK, _CHUNK = 16, 64, 512, 2048
_LONGEST_SECONDS = 120.0


class TripSize(Protocol):
    """What `Trips` needs to know of a size; see `suite_round_trip.Size`."""

    @property
    def num_layers(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def device(self) -> str: ...


class Trips:
    """A sidecar whose idle pages leave the host pool at once, and a sequence that decodes."""

    def __init__(self, size: TripSize, directory: str) -> None:
        pages = -(-size.num_tokens // PAGE_TOKENS) + 64
        tiers = TiersConfig(
            file_directory=str(Path(directory) / "pages"),
            file_bytes=24 << 30,
            free_share=0.9,
            load_seconds=60.0,
            call_seconds=20.0,
            staging_bytes=1 << 30,
        )
        model = ModelShape(
            size.num_layers, tuple(range(size.num_layers)), _INDEX_HEADS, _TOPK, 576**-0.5
        )
        config = SidecarConfig(
            model,
            host_pages=pages,
            max_sequences=4,
            device=size.device,
            selection=SelectionConfig("hisa", num_kept_blocks=16),
            tiers=tiers,
        )
        self.size = size
        self.sidecar = Sidecar(config)
        self.num_steps = 0
        self._decoding = self.sidecar.open(_TOPK, 1 << 11)
        self.run(self._decoding, _TOPK, seed=1, kind="prefill")

    def run(self, sequence: int, count: int, *, seed: int, kind: StepKind) -> torch.Tensor:
        """One step of random rows; the outputs and choices of all layers, in one row of bytes."""
        self.sidecar.begin_step([(sequence, count)], kind)
        made = torch.Generator(self.size.device).manual_seed(seed)
        seen = []
        for layer in range(self.size.num_layers):
            outputs = self.sidecar.run_layer(layer, _random_inputs(count, made))
            if count == 1:
                seen += [outputs.out.view(torch.uint8), outputs.topk_indices.view(torch.uint8)]
        self.sidecar.commit_step()
        return torch.cat([part.flatten() for part in seen]) if seen else torch.empty(0)

    def send_down(self, traveller: "Traveller") -> None:
        """Lets the traveller rest; decodes until no page of it is in the host pool."""
        for sequence in traveller.sequences:
            self.sidecar.preempt(sequence)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while self.sidecar.prefix_stats().resident + self.sidecar.prefix_stats().demoting:
            if time.monotonic() > deadline:
                stats, tiers = self.sidecar.prefix_stats(), self.sidecar.lower_tiers()
                raise AssertionError(f"pages stay in the host pool: {stats}, {tiers}")
            self.run(self._decoding, 1, seed=self.num_steps, kind="decode")
            self.num_steps += 1
            if self.num_steps % 1000 == 0:
                self.sidecar.truncate(self._decoding, _TOPK)

    def bring_up(self, traveller: "Traveller") -> None:
        """Makes the traveller active again; it has to be whole."""
        for sequence, length in zip(traveller.sequences, traveller.lengths, strict=True):
            found = self.sidecar.resume(sequence)
            assert found == length, f"{found} tokens came back of {length}"

    def count_wrong(self, traveller: "Traveller") -> int:
        """Bytes that differ; counts a step that does, too."""
        wrong = 0
        for sequence, wanted in zip(traveller.sequences, traveller.bytes, strict=True):
            for found, expected in zip(page_bytes(self.sidecar, sequence), wanted, strict=True):
                wrong += int((found != expected).sum()) if not torch.equal(found, expected) else 0
        traveller.num_wrong_steps += not torch.equal(traveller.next_step(), traveller.step)
        return wrong

    def __enter__(self) -> "Trips":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.sidecar.__exit__(kind, error, trace)


class Traveller:
    """Three sequences: one computed, one of a page and one of a row that hold every byte.

    Attributes:
        sequences: their handles.
        lengths: their tokens.
        bytes: what their pages held at the start.
        step: what the first one's next step gave at the start.
        num_bytes: of all their pages.
    """

    def __init__(self, trips: Trips) -> None:
        self._trips, sidecar = trips, trips.sidecar
        size = trips.size
        self.lengths = [size.num_tokens, PAGE_TOKENS, 1]
        self.sequences = [sidecar.open(length, 1) for length in self.lengths]
        for sequence, length in zip(self.sequences, self.lengths, strict=True):
            for start in range(0, length, _CHUNK):
                count = min(_CHUNK, length - start)
                trips.run(sequence, count, seed=start, kind="prefill")
        for sequence in self.sequences[1:]:
            _write_every_code(sidecar, sequence)
        self.num_wrong_steps = 0
        self.step = self.next_step()
        self.bytes = [page_bytes(sidecar, sequence) for sequence in self.sequences]
        self.num_bytes = sum(part.numel() for parts in self.bytes for part in parts)

    def next_step(self) -> torch.Tensor:
        """What a decode step of the computed sequence gives; it is put back afterwards."""
        first = self.sequences[0]
        found = self._trips.run(first, 1, seed=9, kind="decode")
        self._trips.sidecar.truncate(first, self.lengths[0])
        return found


def page_bytes(sidecar: Sidecar, sequence: int) -> list[torch.Tensor]:
    """Copies of all rows, index rows and pooled keys of a sequence's tokens, array by array."""
    length = sidecar.length(sequence)
    first = [sidecar.host_row_id(sequence, at) for at in range(0, length, PAGE_TOKENS)]
    rows = (torch.tensor(first)[:, None] + torch.arange(PAGE_TOKENS)).flatten()[:length]
    full = torch.tensor(first[: length // PAGE_TOKENS], dtype=torch.int64) // PAGE_TOKENS
    host = sidecar.host.on_cpu()
    kv = [layer[rows] for layer in host.kv_rows]
    return [*kv, *[pages[full] for pages in (*host.index_pages, *host.pooled_rows)]]


def _write_every_code(sidecar: Sidecar, sequence: int) -> None:
    """Every code of a byte, over and over, into the pages as they lie."""
    host: HostArrays = sidecar.host.on_cpu()
    page = sidecar.host_row_id(sequence, 0) // PAGE_TOKENS
    for rows in host.kv_rows:
        part = rows[page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
        part.copy_(torch.arange(part.numel()).to(torch.uint8).view(part.shape))
    for pages in (*host.index_pages, *host.pooled_rows):
        pages[page] = torch.arange(pages.shape[1]).to(torch.uint8)


def _random_inputs(count: int, made: torch.Generator) -> LayerInputs:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made, device=made.device)

    return LayerInputs(
        query=normal(count, _HEADS, 576),
        kv=normal(count, 576),
        index_q=normal(count, _INDEX_HEADS, 128),
        index_weights=normal(count, _INDEX_HEADS),
        index_k=normal(count, 128),
    )
