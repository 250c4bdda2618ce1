"""A random life of sequences on one sidecar, as a list of what was seen, to compare ranks by."""

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar import LayerOutputs, Sidecar, SidecarConfig
from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.errors import HisparseError
from hisparse_sidecar.ranks import RankPlace
from tests.pipeline.world import HISA, pack_rows, random_rows, small_config
from tests.ranks.texts import NUM_TEXTS, Texts, sources_of

TENANTS = ("", "a")


@dataclass
class Lived:
    """A life.

    Attributes:
        seen: by all ranks, and by a sidecar that is alone.
        pages: host pages that were seen, by all ranks; which ones depends on the time that pages
            take to go down.
        counts: how often what came to pass; rank 0 alone knows what went down and came back.
    """

    seen: list[str]
    pages: list[list[int]]
    counts: dict[str, int]


def life_config(device: str, files: Path) -> SidecarConfig:
    """Pages, hot buffer and window to run out of, and files below them; nothing is measured."""
    sizes = {"host_pages": 20, "max_sequences": 6, "hot_slots": 144, "window_blocks": 2}
    backend = "reference" if device == "cpu" else "triton"
    tiers = TiersConfig(
        file_directory=str(files),
        file_bytes=1 << 26,
        segment_bytes=1 << 22,
        model_name="small",
        free_share=0.0,
        probe_seconds=0.0,
        load_seconds=60.0,
        call_seconds=60.0,
    )
    return small_config(max_step_rows=3, device=device, backend=backend, tiers=tiers, **sizes)


def live(
    place: RankPlace | None,
    folder: Path,
    seed: int,
    num_actions: int,
    most_delay_us: int = 0,
    devices: tuple[str, ...] = ("cpu",),
) -> Lived:
    """The life of one rank, or of a sidecar that is alone (no place)."""
    torch.set_num_threads(1)
    rank = place.rank if place else 0
    files = folder / ("ranks" if place else "alone")
    with Sidecar(life_config(devices[rank % len(devices)], files), place) as sidecar:
        life = Life(sidecar, seed, random.Random(seed * 100 + rank), most_delay_us)
        for _ in range(num_actions):
            life.act()
        life.end()
        for tier in sidecar.lower_tiers():
            life.counts |= {"demoted": tier.demoted, "promoted": tier.promoted}
        return Lived(life.seen, life.pages, life.counts)


class Life:
    """Acts by a seed, and keeps going when it is refused."""

    def __init__(
        self, sidecar: Sidecar, seed: int, own_choices: random.Random, most_delay_us: int
    ) -> None:
        self.choices, self.own_choices = random.Random(seed), own_choices
        self.most_delay_us = most_delay_us
        self.sidecar, self.texts = sidecar, Texts(sidecar.config)
        self.sources: dict[int, list[int]] = {}  # text of each token, those to come included
        self.resting: list[int] = []
        self.seen: list[str] = []
        self.pages: list[list[int]] = []
        self.counts = dict.fromkeys(("cached", "resumed", "cut_short", "errors"), 0)
        sidecar.add_tenant("a", 9)

    def act(self) -> None:
        often = [self.begin, self.begin, self.extend, self.decode, self.decode, self.decode]
        moves = [self.rest, self.rest, self.wake, self.wake, self.drain, self.fork]
        other = [self.abort, self.truncate, self.close, self.evict, self.quota, self.check]
        action = self.choices.choice([*often, *moves, *other])
        self.pause()
        try:
            action()
        except HisparseError as error:
            self.counts["errors"] += 1
            self.see(f"{action.__name__}: {type(error).__name__}: {error}")

    def end(self) -> None:
        """Looks at everything once more."""
        self.sidecar.check_integrity()
        for sequence in self.sources:
            self.see_state(sequence)
        for sequence in self._active():
            self.see(f"rows of {sequence}: {self._digest_of_rows(sequence)}")
        self.sidecar.check_integrity()  # until then no rank has closed one
        for sequence in self.sources:
            self.sidecar.close_sequence(sequence)
        self.sidecar.evict_idle(self.sidecar.config.host_pages)
        core = self.sidecar.stats().core
        self.see(str(core))
        assert core.host_pages_free == core.host_pages_total

    def see(self, what: str) -> None:
        self.seen.append(what)

    def see_state(self, sequence: int) -> None:
        manager = self.sidecar._manager
        pooled = [manager.pooled_state(sequence, anchor) for anchor in range(2)]
        where = "at rest"
        if not manager.rests(sequence):
            where = str(manager.ranges(sequence))
            self.pages.append(manager.host_pages(sequence))
        length, most = manager.length(sequence), manager.admitted_tokens(sequence)
        self.see(f"sequence {sequence}: {length} of {most}, {where}, {pooled}")

    def pause(self) -> None:
        if self.most_delay_us:
            time.sleep(self.own_choices.randint(0, self.most_delay_us) / 1e6)

    def _digest_of_rows(self, sequence: int) -> str:
        """Of every row, index row and pooled key that is whole in the host pool."""
        host, length = self.sidecar.host.on_cpu(), self.sidecar.length(sequence)
        pages = self.sidecar._manager.host_pages(sequence)
        full = pages[: length // PAGE_TOKENS]
        rows = [page * PAGE_TOKENS + at for page in pages for at in range(PAGE_TOKENS)][:length]
        parts = [one[rows] for one in host.kv_rows]
        parts += [one[full] for one in (*host.index_pages, *host.pooled_rows)]
        return _digest(b"".join(part.numpy().tobytes() for part in parts))

    # -- sequences ----------------------------------------------------------------------------

    def begin(self) -> None:
        selection = HISA if self.choices.random() < 0.5 else None
        text, length = self.choices.randrange(NUM_TEXTS), self.choices.randint(1, 300)
        sources = sources_of(text, 0)
        if self.choices.random() < 0.3:
            sequence = self.sidecar.open(length, 60, selection=selection)
        else:
            ids, tenant = self.texts.ids(sources[:length], 0), self.choices.choice(TENANTS)
            opened = self.sidecar.open_prompt(ids, 60, tenant=tenant, selection=selection)
            sequence = opened.sequence
            self.counts["cached"] += opened.cached_tokens
        self.sources[sequence] = sources
        self.see_state(sequence)
        rest = length - self.sidecar.length(sequence)
        self._run([sequence], "prefill", rest, self.choices.choice([1, rest, rest]))

    def fork(self) -> None:
        for parent in self._some(self.sources)[:1]:
            length = self.choices.randint(0, self.sidecar.length(parent))
            child = self.sidecar.fork(parent, length, 50)
            self.sources[child] = self.sources[parent][:length] + self._other(length)
            self.see_state(child)

    def truncate(self) -> None:
        for sequence in self._some(self.sources)[:1]:
            length = self.choices.randint(0, self.sidecar.length(sequence))
            self.sidecar.truncate(sequence, length)
            self.sources[sequence] = self.sources[sequence][:length] + self._other(length)
            self.see_state(sequence)

    def rest(self) -> None:
        for sequence in self._some(self._active())[:1]:
            self.sidecar.preempt(sequence)
            self.resting.append(sequence)

    def wake(self) -> None:
        for sequence in self._some(self.resting)[:1]:
            before = self.sidecar.length(sequence)
            after = self.sidecar.resume(sequence)
            self.resting.remove(sequence)
            self.counts["resumed"] += 1
            self.counts["cut_short"] += after < before
            self.see_state(sequence)

    def close(self) -> None:
        for sequence in self._some(self.sources)[:1]:
            self.sidecar.close_sequence(sequence)
            del self.sources[sequence]
            self.resting = [one for one in self.resting if one != sequence]

    # -- tiers --------------------------------------------------------------------------------

    def drain(self) -> None:
        self.see(f"drained {self.sidecar.drain(60.0)}")

    def evict(self) -> None:
        self.see(f"gave up {self.sidecar.evict_idle(self.choices.randint(1, 4))}")

    def quota(self) -> None:
        tenant = self.choices.choice([*TENANTS, "nobody"])
        self.sidecar.set_tenant_quota(tenant, self.choices.choice([None, 8, 12]))
        self.see(f"{tenant} has {self.sidecar.tenant_usage(tenant)}")

    def check(self) -> None:
        self.sidecar.check_integrity()

    # -- steps --------------------------------------------------------------------------------

    def extend(self) -> None:
        self._run(self._some(self._active()), "prefill", 90)

    def decode(self) -> None:
        for _ in range(self.choices.randint(1, 8)):
            self._run(self._some(self._active()), "decode", 3)

    def abort(self) -> None:
        members = [one for one in self._some(self._active()) if self._room(one)]
        if members:
            self.sidecar.begin_step([(member, 1) for member in members], "decode")
            self.pause()
            inputs = random_rows(self.sidecar.config, 0, len(members), 9)
            self.see_outputs(self.sidecar.run_layer(0, inputs))
            self.sidecar.abort_step()

    def see_outputs(self, outputs: LayerOutputs) -> None:
        tensors = outputs.topk_indices, outputs.out, outputs.lse
        self.see(" ".join(_digest(tensor.cpu().numpy().tobytes()) for tensor in tensors))

    def _active(self) -> list[int]:
        return [sequence for sequence in self.sources if sequence not in self.resting]

    def _some(self, of: list[int] | dict[int, list[int]]) -> list[int]:
        return self.choices.sample(list(of), self.choices.randint(0, len(of)))

    def _room(self, sequence: int) -> int:
        return self.sidecar.admitted_tokens(sequence) - self.sidecar.length(sequence)

    def _other(self, length: int) -> list[int]:
        return sources_of(self.choices.randrange(NUM_TEXTS), length)

    def _run(self, members: list[int], kind: str, most: int, fewest: int = 1) -> None:
        rows, parts, ids = [], [], []
        for member in members:
            count = min(self.choices.randint(fewest, most), self._room(member))
            if count:
                start = self.sidecar.length(member)
                parts.append((self.sources[member][start : start + count], start))
                rows.append((member, count))
                ids += self.texts.ids(*parts[-1])
        if not rows:
            return
        told = ids if self.choices.random() < 0.9 else None
        self.sidecar.begin_step(rows, kind, token_ids=told)  # type: ignore[arg-type]
        for layer in range(self.sidecar.config.model.num_layers):
            self.pause()
            made = [self.texts.rows(layer, *part) for part in parts]
            self.see_outputs(self.sidecar.run_layer(layer, pack_rows(made)))
        self.pause()
        self.sidecar.commit_step()


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
