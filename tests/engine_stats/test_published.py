"""Snapshots in shared memory: whole, of whom they say, and said to be old where they are."""

import json
import os
import signal
from pathlib import Path

import pytest

from hisparse_sidecar.engine_stats import StatsFolder
from hisparse_sidecar.errors import HisparseError, WrongState
from tests.engine_stats.snapshots import kill, make_stats, plain, start_writer


@pytest.fixture
def folder(tmp_path: Path) -> StatsFolder:
    return StatsFolder("engine", tmp_path)


def test_a_reader_finds_what_was_published_last(folder: StatsFolder, tmp_path: Path) -> None:
    assert folder.read() == []
    folder.publish(make_stats(1))
    folder.publish(make_stats(100))
    (found,) = folder.read()
    assert plain(found.stats) == plain(make_stats(100))
    assert (found.pid, found.is_alive) == (os.getpid(), True)
    assert found.age_seconds >= 0
    folder.withdraw()
    folder.withdraw()
    assert folder.read() == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_its_users_alone(folder: StatsFolder) -> None:
    folder.publish(make_stats())
    for path in (folder.path, folder.path.parent):
        assert path.stat().st_mode & 0o777 == 0o700


def test_what_dead_processes_have_left_is_said_to_be_dead(folder: StatsFolder) -> None:
    first, second = (start_writer(folder.path, rank) for rank in (0, 1))
    try:
        kill(first)
        found = folder.read()
        assert [(one.stats.rank, one.is_alive) for one in found] == [(0, False), (1, True)]
        assert folder.read()[0].age_seconds > found[0].age_seconds
        folder.remove_dead()
        assert [one.pid for one in folder.read()] == [second.pid]
    finally:
        kill(second)


@pytest.mark.parametrize("content", ['{"at": 1, "started": 1, "stats": {"rank": 0}}', "[]", "{"])
def test_what_another_version_has_left_is_removed(content: str, folder: StatsFolder) -> None:
    folder.publish(make_stats())
    (folder.path / "1.json").write_text(content)  # process 1 runs, and has not written it
    with pytest.raises(HisparseError, match=r"1\.json is no snapshot of this version"):
        folder.read()
    folder.remove_dead()
    assert [one.pid for one in folder.read()] == [os.getpid()]


def test_folders_that_hold_something_stay(folder: StatsFolder, tmp_path: Path) -> None:
    other = StatsFolder("another", tmp_path)
    for one in (folder, other):
        one.publish(make_stats())
    folder.withdraw()
    assert (folder.path.exists(), len(other.read())) == (False, 1)
    (other.path / "server.sock").touch()
    other.withdraw()
    assert other.path.exists()


def test_a_folder_that_is_removed_meanwhile_is_made_again(
    folder: StatsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, times = folder.make, []

    def make() -> None:
        made()
        times.append(1)
        if len(times) < 3:
            folder.remove_if_empty()

    monkeypatch.setattr(folder, "make", make)
    folder.publish(make_stats())
    assert (len(folder.read()), len(times)) == (1, 3)
    folder.withdraw()
    times.clear()
    monkeypatch.setattr(folder, "make", lambda: None)
    with pytest.raises(FileNotFoundError):
        folder.publish(make_stats())


def test_another_process_of_the_same_number_is_another(folder: StatsFolder) -> None:
    folder.publish(make_stats())
    (path,) = folder.path.iterdir()
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"started": values["started"] - 1}))
    assert [one.is_alive for one in folder.read()] == [False]


def test_readers_see_whole_snapshots_while_one_is_replaced(folder: StatsFolder) -> None:
    writer = start_writer(folder.path, times="again and again")
    try:
        seen = {plain(folder.read()[0].stats)["steps"] for _ in range(300)}
        assert len(seen) > 1
    finally:
        kill(writer)


def test_a_writer_that_is_stopped_keeps_no_reader_waiting(folder: StatsFolder) -> None:
    writer = start_writer(folder.path)
    try:
        os.kill(writer.pid, signal.SIGSTOP)
        assert [one.is_alive for one in folder.read()] == [True]
    finally:
        kill(writer)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"at": 1, "started": 1, "stats": {}}'])
def test_a_file_that_is_no_snapshot_is_named(content: str, folder: StatsFolder) -> None:
    folder.publish(make_stats())
    (path,) = folder.path.iterdir()
    path.write_text(content)
    with pytest.raises(HisparseError, match=rf"{path.name} is no snapshot of this version"):
        folder.read()


def test_a_folder_that_others_may_write_is_refused(folder: StatsFolder) -> None:
    folder.publish(make_stats())
    folder.path.chmod(0o770)
    for call in (folder.read, folder.remove_dead, lambda: folder.publish(make_stats())):
        with pytest.raises(WrongState, match=r"mode 40770 and owner \d+, needs a folder of"):
            call()


def test_a_link_in_the_folders_place_is_refused(folder: StatsFolder, tmp_path: Path) -> None:
    folder.publish(make_stats())
    moved = folder.path.rename(tmp_path / "elsewhere")
    folder.path.symlink_to(moved)
    with pytest.raises(WrongState, match="needs a folder"):
        folder.publish(make_stats())
