"""One rank of a tier whose host pool several ranks share: rows that follow from who they are.

A pass ends as an engine's does, with a sum over the ranks behind each layer. A rank that reads is
kept from writing: on the CPU its mapping of the pool is read-only, and a write ends the process.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist

from hisparse_sidecar._core import HostRegion, PageLease
from hisparse_sidecar.backends import find_device, ops_of
from hisparse_sidecar.engine_rows import EngineRowsConfig, EngineRowTier
from hisparse_sidecar.engines.sglang.offload.rank_agreement import agree
from hisparse_sidecar.errors import DeviceArenaFull
from hisparse_sidecar.ranks import RankPlace
from hisparse_sidecar.side_stream import SideStream

PAGE, TOPK, HOT, SEQUENCES, MOST, PROMPT_ROWS = 64, 16, 48, 4, 600, 512
CONFIG = EngineRowsConfig(
    groups=(0, 0, 1),
    row_bytes=656,
    topk=TOPK,
    host_pages=32,
    max_sequences=SEQUENCES,
    max_tokens=MOST,
    hot_slots=HOT,
    first_row=PAGE,
    num_rows=SEQUENCES * (HOT + 1),
)
_PROMPT_ROW = CONFIG.first_row + CONFIG.num_rows
_PROT_READ = 1
_SLEEP_CYCLES = 2_000_000  # about 1 ms


@contextmanager
def group_of(place: RankPlace, device: str) -> Iterator[dist.ProcessGroup]:
    """A process group of the ranks, on the CPU and on their devices."""
    backend = "gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"
    if device != "cpu":
        torch.cuda.set_device(device)
    where = {"rank": place.rank, "world_size": place.num_ranks}
    dist.init_process_group(backend, init_method=f"file://{place.socket_path}.meet", **where)
    try:
        assert dist.group.WORLD is not None
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def meet(group: dist.ProcessGroup) -> None:
    """Waits until every rank has come, on the host."""
    dist.all_reduce(torch.zeros(1), group=group)


def forbid_writes(region: HostRegion) -> None:
    """A write of this process to the region ends it (SIGSEGV); by a GPU's it would not."""
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(region.address), ctypes.c_size_t(region.num_bytes)
    if libc.mprotect(address, size, _PROT_READ):
        raise OSError(ctypes.get_errno(), "mprotect")


def file_of(region: HostRegion) -> tuple[int, int]:
    """What is the same for all who map the same memory."""
    found = os.fstat(region.fd)
    return found.st_dev, found.st_ino


class Pass:
    """Sums over the ranks, behind a layer."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self._group, self._one = group, torch.ones(1, device=device)

    def end_layer(self) -> None:
        """As an engine sums what the ranks' heads give, on the stream of the pass."""
        dist.all_reduce(self._one.fill_(1.0), group=self._group)


class PoolLife:
    """A rank's tier, and the sequences on it by serial number."""

    def __init__(self, place: RankPlace, group: dist.ProcessGroup, device: str) -> None:
        self.place, self.group, self.device = place, group, find_device(device)
        rows = _PROMPT_ROW + PROMPT_ROWS
        self.memory = [self._zeros(rows, CONFIG.row_bytes) for _ in CONFIG.groups]
        ops = ops_of("auto", str(self.device))
        self.tier = EngineRowTier(CONFIG, self.memory, ops, place=place)
        if not place.leads and device == "cpu":
            forbid_writes(self.tier._host.region)
        self.layer_ends, self.side = Pass(group, self.device), SideStream(self.device)
        odd = torch.arange(CONFIG.row_bytes, device=self.device) * 2654435761 + 1
        self._multipliers = odd | 1
        self.num_wrong = torch.zeros((), dtype=torch.int64, device=self.device)
        self.num_looked_at = 0
        self.num_real = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.serials: dict[int, int] = {}
        self.kept: list[tuple[int, PageLease]] = []
        self.num_opened = 0

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def rows_of(self, layer: int, serials: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """[..., row_bytes] uint8, the rows of tokens of sequences, in a layer."""
        number = (serials * 100003 + positions) * 1009 + layer * 7919 + 12345
        return ((number[..., None] * self._multipliers) >> 13).to(torch.uint8)

    def numbers(self, values: Sequence[int]) -> torch.Tensor:
        return self.brought(torch.tensor(values, dtype=torch.int64))

    def brought(self, made: torch.Tensor) -> torch.Tensor:
        """To the device, without a wait for what it does."""
        if self.device.type == "cpu":
            return made
        return made.pin_memory().to(self.device, non_blocking=True)

    # -- what an engine does ------------------------------------------------------------------

    def open(self, random: Random, tokens: int, new_tokens: int, kept: int | None = None) -> int:
        """A sequence whose prompt was computed, or begins with what was kept, and may decode."""
        serial, leases, prefix = self.num_opened, [], 0
        self.num_opened += 1
        if kept is not None:
            serial, lease = self.kept[kept]
            leases, prefix = [lease], len(lease.pages) * PAGE
            tokens = max(tokens, prefix + 1)
        at = self.numbers(random.sample(range(_PROMPT_ROW, _PROMPT_ROW + PROMPT_ROWS), tokens))
        if leases:
            self.tier.cached.load(leases, at[:prefix])
            self.look_at_prompt(serial, at[:prefix])
        positions = torch.arange(tokens, device=self.device)
        for layer, memory in enumerate(self.memory):
            made = self.rows_of(layer, self.numbers([serial]), positions)
            memory[at[prefix:]] = made[prefix:]
            self.layer_ends.end_layer()
        sequence = self.tier.open(tokens, new_tokens, leases)
        with self.side.beside():
            held = self.tier.take_prompt(sequence, at)
        mark = self.side.mark()
        while not agree(self.group, [mark.has_passed], self.tier.num_compared)[0]:
            pass
        del held
        for memory in self.memory:
            memory[at] = 0
        self.serials[sequence] = serial
        return sequence

    def look_at_prompt(self, serial: int, at: torch.Tensor) -> None:
        """Whether loaded rows are the prompt's."""
        positions = torch.arange(len(at), device=self.device)
        for layer, memory in enumerate(self.memory):
            self.look(memory[at], self.rows_of(layer, self.numbers([serial]), positions))

    def look(
        self, found: torch.Tensor, wanted: torch.Tensor, real: torch.Tensor | None = None
    ) -> None:
        """Counts rows that are wrong, where they are; without a wait."""
        wrong = (found != wanted).any(-1)
        self.num_wrong += (wrong if real is None else wrong & real).sum()
        self.num_looked_at += wrong.numel()

    def step(self, random: Random, sequences: Sequence[int], slow: bool = False) -> None:
        """A decode step; the host waits for nothing."""
        lengths = [start + 1 for start in self.tier.append(sequences)]
        self.tier.load_step()
        self.num_real.fill_(len(sequences))
        serials = self.numbers([self.serials[one] for one in sequences])
        newest = self.numbers(lengths) - 1
        lists: list[torch.Tensor] = []
        for layer, memory in enumerate(self.memory):
            if slow and self.device.type == "cuda":
                torch.cuda._sleep(_SLEEP_CYCLES)
            if layer != 1:  # it uses the selection of the layer before
                lists.append(self._lists(random, lengths))
                if random.random() < 0.5:  # as soon as it is known
                    self.tier.fetch(layer, lists[-1], self.num_real)
            items = lists[-1]
            new = self.tier.new_rows[: len(sequences)].long()
            memory[new] = self.rows_of(layer, serials, newest)
            slots = self.tier.swap_in(layer, items, self.num_real)
            wanted = self.rows_of(layer, serials[:, None], items.long())
            self.look(memory[slots.clamp(min=0).long()], wanted, items >= 0)
            self.layer_ends.end_layer()

    def _lists(self, random: Random, lengths: Sequence[int]) -> torch.Tensor:
        """[rows, TOPK] int32: positions at random, the newest among them."""
        made = torch.full((len(lengths), TOPK), -1, dtype=torch.int32)
        for row, length in enumerate(lengths):
            before = random.sample(range(length - 1), min(TOPK - 1, length - 1))
            made[row, : len(before) + 1] = torch.tensor([*before, length - 1], dtype=torch.int32)
        return self.brought(made)

    def close(self, sequence: int) -> None:
        """An end between two steps."""
        self.tier.close_sequence(sequence)
        del self.serials[sequence]

    def keep(self, sequence: int) -> None:
        """Its whole pages outlive it, as a prefix of others."""
        pages = self.tier.length(sequence) // PAGE
        lease = self.tier.cached.keep(sequence, 0, pages)
        self.kept.append((self.serials[sequence], lease))

    # -- lives --------------------------------------------------------------------------------

    def live(self, seed: int, turns: int) -> None:
        """Random calls, the same on every rank; another rank is slow in each step."""
        random = Random(seed)
        calls = {"open": self._open_some, "end": self._end_some, "keep": self._keep_some}
        calls |= {"forget": self._forget_some, "step": self._step_some}
        names = ["open", "open", "step", "step", "step", "end", "keep", "forget"]
        for turn in range(turns):
            calls[random.choice(names)](random, turn)

    def _open_some(self, random: Random, turn: int) -> None:
        if len(self.serials) == SEQUENCES:
            return
        kept = random.randrange(len(self.kept)) if self.kept and turn % 2 else None
        tokens, new = random.randint(1, 330), random.randint(20, 120)
        prefix = 0 if kept is None else len(self.kept[kept][1].pages) * PAGE
        tokens = max(tokens, prefix + 1)
        if -(-(tokens + new) // PAGE) <= self.tier.cached.num_free_pages and tokens <= PROMPT_ROWS:
            with suppress(DeviceArenaFull):  # free slots in pieces; alike on every rank
                self.open(random, tokens, new, kept)

    def _end_some(self, random: Random, turn: int) -> None:
        if self.serials:
            self.close(random.choice(list(self.serials)))

    def _keep_some(self, random: Random, turn: int) -> None:
        long = [one for one in self.serials if self.tier.length(one) >= PAGE]
        if long and len(self.kept) < 2:
            self.keep(random.choice(long))

    def _forget_some(self, random: Random, turn: int) -> None:
        if self.kept:
            self.kept.pop(random.randrange(len(self.kept)))[1].release()

    def _step_some(self, random: Random, turn: int) -> None:
        running = list(self.serials)
        chosen = random.sample(running, random.randint(1, len(running))) if running else []
        is_slow = turn % self.place.num_ranks == self.place.rank
        for _ in range(random.randint(1, 12)):
            fits = [one for one in chosen if self._has_room(one)]
            if fits:
                self.step(random, fits, slow=is_slow)

    def _has_room(self, sequence: int) -> bool:
        return self.tier.length(sequence) < self.tier._manager.admitted_tokens(sequence)

    def end(self) -> dict[str, object]:
        """What came of it; the tier is closed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        meet(self.group)
        self.tier.check_integrity()
        files = file_of(self.tier._host.region), self.tier._host.region.num_bytes
        found = int(self.num_wrong), self.num_looked_at, files, self.tier.num_compared
        meet(self.group)
        for _, lease in self.kept:
            lease.release()
        for sequence in list(self.serials):
            self.close(sequence)
        core = self.tier.stats()
        self.tier.close()
        names = ("wrong", "looked_at", "region", "compared")
        free = core.host_pages_free == core.host_pages_total
        return dict(zip(names, found, strict=True)) | {
            "writes": self.tier.writes_host,
            "free": free,
        }


def pools_of_this_process() -> list[str]:
    """Host pools that this process has mapped, by what their file is."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split()[4] for line in lines if "memfd:hisparse" in line})
