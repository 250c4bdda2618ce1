"""Random lives of many sequences against the plain computation, integrity checked at each step."""

import random

import pytest
import torch

from hisparse_sidecar import Sidecar
from hisparse_sidecar.errors import HisparseError, HostPoolFull
from tests.pipeline.world import PlainDsa, Rows, random_rows, run_step, small_config


@pytest.mark.parametrize("seed", range(4))
def test_any_life_of_sequences_equals_plain_dsa(seed: int) -> None:
    life = _Life(seed)
    for _ in range(40):
        life.act()
    life.end()


class _Life:
    def __init__(self, seed: int) -> None:
        self.choices, self.made = random.Random(seed), 0
        window_blocks = 2 if seed % 2 else 16  # too small, or with room for every block
        self.config = small_config(
            host_pages=24, max_step_rows=3, hot_slots=144, window_blocks=window_blocks
        )
        self.sidecar, self.plain = Sidecar(self.config), PlainDsa(self.config)
        self.open: list[int] = []

    def act(self) -> None:
        actions = [self.begin, self.extend, self.extend, self.draft, self.fork, self.abort]
        self.choices.choice([*actions, self.truncate, self.close])()
        self.sidecar.check_integrity()

    def end(self) -> None:
        for sequence in self.open:
            self.sidecar.close_sequence(sequence)
        core = self.sidecar.stats().core
        assert core.host_pages_free == core.host_pages_total
        self.sidecar.close()

    def begin(self) -> None:
        try:
            sequence = self.sidecar.open(self.choices.randint(1, 300), 40)
        except HisparseError:
            return
        self.open.append(sequence)
        self._run([sequence], "prefill", 200)

    def extend(self) -> None:
        self._run(self._some(), "prefill", 90)

    def draft(self) -> None:
        self._run(self._some(), "decode", 3)

    def fork(self) -> None:
        for parent in self._some()[:1]:
            length = self.choices.randint(0, self.sidecar.length(parent))
            try:
                child = self.sidecar.fork(parent, length, 50)
            except HisparseError:
                return
            self.plain.fork(parent, child, length)
            self.open.append(child)

    def abort(self) -> None:
        members = [member for member in self._some() if self._room(member)]
        if members:
            self.sidecar.begin_step([(member, 1) for member in members], "decode")
            self.sidecar.run_layer(0, random_rows(self.config, 0, len(members), 9))
            self.sidecar.abort_step()

    def truncate(self) -> None:
        for sequence in self._some()[:1]:
            length = self.choices.randint(0, self.sidecar.length(sequence))
            try:
                self.sidecar.truncate(sequence, length)
            except HostPoolFull:  # a fork keeps the pages, none is left for their successors
                return
            self.plain.truncate(sequence, length)

    def close(self) -> None:
        for sequence in self._some()[:1]:
            self.sidecar.close_sequence(sequence)
            self.open.remove(sequence)

    def _some(self) -> list[int]:
        return self.choices.sample(self.open, self.choices.randint(0, len(self.open)))

    def _room(self, sequence: int) -> int:
        return self.sidecar.admitted_tokens(sequence) - self.sidecar.length(sequence)

    def _run(self, members: list[int], kind: str, most: int) -> None:
        rows = []
        for sequence in members:
            self.made += 1
            count = min(self.choices.randint(1, most), self._room(sequence))
            if count:
                rows.append(Rows(sequence, count, self.made))
        if rows:
            self._compare(rows, run_step(self.sidecar, rows, kind))

    def _compare(self, rows: list[Rows], found: list) -> None:
        wanted = [self.plain.append(part.sequence, part.count, part.seed) for part in rows]
        for layer, output in enumerate(found):
            topk = torch.cat([outputs[layer].topk_indices for outputs in wanted])
            out = torch.cat([outputs[layer].out for outputs in wanted])
            assert torch.equal(output.topk_indices, topk)
            torch.testing.assert_close(output.out, out, atol=2e-5, rtol=2e-5)
