"""The secret of page names: made once, for good; another finds nothing and spoils nothing."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from hisparse_sidecar import Sidecar, SidecarConfig
from hisparse_sidecar.config import TiersConfig
from hisparse_sidecar.errors import InvalidArgument
from hisparse_sidecar.tiers.page_secret import page_secret
from tests.pipeline.test_tiers import config_with_files
from tests.pipeline.world import random_rows

PROMPT = list(range(300))  # four pages that others may share, and more


def with_secret(config: SidecarConfig, path: Path) -> SidecarConfig:
    return replace(config, tiers=replace(config.tiers, secret_file=str(path)))


def prefill_and_drain(config: SidecarConfig) -> int:
    """One life of a sidecar; how many tokens it has found of the prompt."""
    with Sidecar(config) as sidecar:
        sequence, cached = sidecar.open_prompt(PROMPT, 0)
        rows = len(PROMPT) - cached
        sidecar.begin_step([(sequence, rows)], "prefill", token_ids=PROMPT[cached:])
        for layer in range(config.model.num_layers):
            sidecar.run_layer(layer, random_rows(config, layer, rows, 1))
        sidecar.commit_step()
        sidecar.close_sequence(sequence)
        assert sidecar.drain(20.0) == (4, 0)
    return cached


def test_pages_are_found_by_whoever_has_their_secret_and_by_nobody_else(tmp_path: Path) -> None:
    config = config_with_files(tmp_path)
    one, other = (with_secret(config, tmp_path / name) for name in ("one", "other"))
    assert [prefill_and_drain(each) for each in (one, other, one, other)] == [0, 0, 256, 256]


@pytest.mark.parametrize("held", [b"", bytes(31), bytes(33)])
def test_a_file_of_another_length_is_no_secret(tmp_path: Path, held: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(held)
    path.chmod(0o600)
    with pytest.raises(InvalidArgument, match=r"holds .* bytes, needs 32"):
        page_secret(TiersConfig(secret_file=str(path)))
    assert path.read_bytes() == held


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(bytes(32))
    path.chmod(mode)
    with pytest.raises(InvalidArgument, match=f"has mode {mode:04o}, needs 0600"):
        page_secret(TiersConfig(secret_file=str(path)))


def test_those_who_make_it_at_once_have_the_same(tmp_path: Path) -> None:
    tiers = TiersConfig(file_directory=str(tmp_path / "new" / "pages"))
    with ThreadPoolExecutor(8) as threads:
        secrets = set(threads.map(lambda _: page_secret(tiers), range(32)))
    assert len(secrets) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["pages.secret"]


def test_it_is_durable_before_any_page_is_named_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, too: pages that a power loss leaves are lost if their secret is."""
    synced: list[Path] = []
    sync = os.fsync

    def note_and_sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(path)
        if path.is_dir():
            assert (path / "secret").exists()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    page_secret(TiersConfig(secret_file=str(tmp_path / "secret")))
    assert synced[0].name.startswith("secret.")
    assert synced[-1] == tmp_path
