"""`hisparse stress` as a soak: slopes and drifts are those of the samples, and a leak fails."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from hisparse_sidecar.cli.stress.driver import Driver
from hisparse_sidecar.cli.stress.footprint import Footprint, footprint
from hisparse_sidecar.cli.stress.heap import malloc_bytes
from hisparse_sidecar.cli.stress.sampler import Opening, Sample
from hisparse_sidecar.cli.stress.settings import StressSettings
from hisparse_sidecar.cli.stress.soak import leaks, oldest_lease_seconds, to_json
from hisparse_sidecar.cli.stress.soak_table import soak_table
from hisparse_sidecar.cli.stress.trends import grows, ratio_with_error, slope

pytestmark = pytest.mark.cpu_only

MIB = 1 << 20
STEADY = Footprint(400 * MIB, 300 * MIB, 40, 16)
Change = Callable[[int], Footprint]


def seen(second: int, found: Footprint = STEADY, leases: int = 0, generation: int = 0) -> Sample:
    return Sample(
        float(second), generation, found, 90 * MIB, leases, {"directory": 100, "file": second}
    )


def seen_for(seconds: int, change: Change = lambda _: STEADY, generation: int = 0) -> list[Sample]:
    return [seen(second, change(second), generation=generation) for second in range(seconds)]


def openings(seconds: int, took_us: Callable[[int], float], found: int) -> list[Opening]:
    """One a second; `found` of 4 pages, a page more in the last third."""
    last = seconds * 2 // 3
    return [Opening(float(at), took_us(at), 4, found + (at >= last)) for at in range(seconds)]


def words(table: object) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_slope_is_that_of_a_straight_line_and_has_no_error() -> None:
    found = slope([0.5 * at for at in range(100)], [7.0 + at for at in range(100)])
    assert found.per_second == pytest.approx(2.0)
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_the_error_of_a_slope_is_as_large_as_what_varies_slowly() -> None:
    level = [float(at // 10 % 2) for at in range(120)]  # 0 for ten points, 1 for ten points
    found = slope([float(at) for at in range(120)], level)
    assert abs(found.per_second) < 2 * found.error
    assert found.error == pytest.approx(0.5 / (10 * 143**0.5), rel=0.2)  # of 12 means


@pytest.mark.parametrize("count", [0, 11])
def test_a_slope_of_few_points_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} seconds and {count} values, needs"):
        slope([1.0] * count, [1.0] * count)


def test_only_what_rises_throughout_and_beyond_its_noise_grows() -> None:
    noise = [at * 7 % 5 for at in range(80)]
    assert grows([at // 4 + more for at, more in enumerate(noise)])
    assert not grows(noise)
    assert not grows([at // 40 * 9 + more for at, more in enumerate(noise)])  # one step
    assert not grows([at / 40 + more for at, more in enumerate(noise)])  # less than the noise
    with pytest.raises(ValueError, match="growth of 39 values, needs 40"):
        grows(noise[:39])


def test_a_rate_weighs_prompts_by_their_pages() -> None:
    share, error = ratio_with_error([1, 0, 3], [1, 2, 3])
    assert share == pytest.approx(4 / 6)
    assert error == pytest.approx((1 / 9 + 16 / 9 + 1) ** 0.5 / 6)


def test_the_slope_of_memory_leaves_the_warm_up_out() -> None:
    def change(second: int) -> Footprint:
        grown = min(second, 120) * MIB + max(0, second - 120) * 1024  # 1 KiB/s after it
        return replace(STEADY, rss_bytes=STEADY.rss_bytes + grown)

    (server,) = to_json(seen_for(361, change), [])["servers"]
    assert (server["warm_up_seconds"], server["measured_seconds"]) == (120.0, 240.0)
    assert server["rss_mib"]["slope_per_hour"] == pytest.approx(3600 / 1024, abs=0.01)
    assert (server["rss_mib"]["min"], server["rss_mib"]["max"]) == (520.0, 520.23)
    assert server["anonymous_mib"]["slope_per_hour"] == 0.0
    assert server["pages"]["file"] == {"first": 120, "last": 360}


def test_each_server_has_its_own_life_and_short_ones_are_not_measured() -> None:
    short = seen_for(119)
    long = [replace(one, seconds=one.seconds + 119) for one in seen_for(181, generation=1)]
    soak = to_json(short + long, [])
    assert [server["generation"] for server in soak["servers"]] == [1]
    assert soak["samples"] == 300
    assert "server 1, seconds measured" in words(soak_table(soak))
    assert "not measured" in words(soak_table(to_json(short, [])))


@pytest.mark.parametrize("kind", ["fds", "threads"])
def test_what_leaks_of_a_process_fails(kind: str) -> None:
    def change(second: int) -> Footprint:
        return replace(STEADY, **{f"num_{kind}": 16 + second // 10 + second % 3})

    soak = to_json(seen_for(301, change), [])
    (found,) = leaks(soak)
    assert found == f"{kind} of server 0 grow, from 26 to 47 within 200 s"
    assert "growing" in words(soak_table(soak))


def test_what_comes_and_goes_fails_nothing() -> None:
    def change(second: int) -> Footprint:
        return replace(STEADY, num_fds=40 + second * 7 % 9, num_threads=16 + (second > 250))

    assert list(leaks(to_json(seen_for(301, change), []))) == []


def test_a_lease_is_no_older_than_the_last_moment_without_one() -> None:
    samples = [seen(at, leases=1 if 10 < at <= 40 else 0) for at in range(60)]
    assert oldest_lease_seconds(samples) == 30.0  # of 10, when there was none, to 40
    after_a_kill = [seen(at, leases=1, generation=at // 20) for at in range(60)]
    assert oldest_lease_seconds(after_a_kill) == 19.0
    assert oldest_lease_seconds([]) == 0.0


def test_a_lease_that_nobody_ends_fails() -> None:
    soak = to_json([seen(at, leases=at > 0) for at in range(61)], [])
    assert list(leaks(soak)) == ["leases for 60 s without a break, must be < 60 s"]
    assert list(leaks(to_json([seen(at, leases=at > 0) for at in range(60)], []))) == []


def test_drifts_are_those_of_the_halves_after_the_warm_up() -> None:
    opened = openings(360, lambda at: 9e9 if at < 120 else 2000.0 + (at >= 240) * 100.0, found=1)
    soak = to_json(seen_for(361), opened)
    assert soak["hit_rate"] == {
        "first_half": 0.25,
        "last_half": 0.5,
        "drift_points": 25.0,
        "drift_error": 0.0,
        "openings": 240,
    }
    times = {"first_half": 2000.0, "last_half": 2100.0, "drift_percent": 5.0}
    assert soak["open_p50_us"] == times
    assert list(leaks(soak)) == []  # times and rates are reported, and fail nothing
    assert "+25.0 ± 0.0 points" in words(soak_table(soak))
    assert "2.00 ms, then 2.10 ms: +5.0 %" in words(soak_table(soak))


def test_too_few_openings_have_no_drift() -> None:
    soak = to_json(seen_for(361), openings(360, lambda _: 1.0, found=1)[::15])
    assert (soak["hit_rate"], soak["open_p50_us"]) == (None, None)


def test_a_process_is_read_as_it_is() -> None:
    before = footprint(os.getpid())
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    more = footprint(os.getpid())
    for one in opened:
        os.close(one)
    assert more.num_fds == before.num_fds + 5
    assert more.num_threads >= 1
    assert 0 < more.anonymous_bytes <= more.rss_bytes


def test_what_malloc_has_given_out_is_counted() -> None:
    before = malloc_bytes()
    taken = bytearray(16 * MIB)
    more = malloc_bytes()
    if before is None or more is None:
        pytest.skip("the C library does not tell")
    assert more >= before + 15 * MIB  # Python itself takes some and gives some back
    del taken
    assert (malloc_bytes() or 0) <= more - 15 * MIB


def test_memory_that_nobody_tells_of_is_left_out() -> None:
    silent = to_json([replace(one, malloc_bytes=None) for one in seen_for(361)], [])
    assert silent["servers"][0]["malloc_mib"] is None
    assert "malloc" not in words(soak_table(silent))
    told = to_json([replace(one, malloc_bytes=int(one.seconds) * MIB) for one in seen_for(361)], [])
    assert "120.0 to 360.0 MiB, +3,600.0 ± 0.0 MiB/h" in words(soak_table(told))


def fake_process(proc: Path, memory: str, text: str) -> None:
    for name in ("fd", "task"):
        (proc / "7" / name).mkdir(parents=True)
        (proc / "7" / name / "1").touch()
    (proc / "7" / memory).write_text(text)


def test_memory_is_that_of_the_rollup_or_of_statm(tmp_path: Path) -> None:
    rollup = (
        "55d0-7ffd ---p 00000000 00:00 0  [rollup]\nRss:  12 kB\nPss:  1 kB\nAnonymous:  8 kB\n"
    )
    fake_process(tmp_path / "new", "smaps_rollup", rollup)
    fake_process(tmp_path / "old", "statm", "100 30 10 1 0 20 0")
    page = os.sysconf("SC_PAGE_SIZE")
    assert footprint(7, tmp_path / "new") == Footprint(12288, 8192, 1, 1)
    assert footprint(7, tmp_path / "old") == Footprint(30 * page, 20 * page, 1, 1)


def test_a_process_that_has_ended_is_an_error(tmp_path: Path) -> None:
    fake_process(tmp_path, "smaps_rollup", "")
    with pytest.raises(ProcessLookupError, match="the process has ended"):
        footprint(7, tmp_path)
    with pytest.raises(FileNotFoundError):
        footprint(8, tmp_path)


def test_a_run_samples_its_server_and_a_leak_of_it_is_a_remark(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hisparse_sidecar.cli.stress.sampler.INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr("hisparse_sidecar.cli.stress.soak.MOST_LEASE_SECONDS", -1.0)
    settings = StressSettings(600.0, 8, 2, (), ("file",), operations=30)
    driver = Driver(settings, tmp_path_factory.mktemp("s"))
    shown = []
    counts = driver.drive(None, lambda counts, _: shown.append(counts.footprint))

    assert len(driver.run.sampler.samples) == 30
    assert shown[-1] == driver.run.sampler.samples[-1].footprint
    assert all(seen.footprint.num_threads > 1 for seen in driver.run.sampler.samples)
    assert len(driver.run.sampler.openings) == counts.operations["open"]
    assert sum(one.found_pages for one in driver.run.sampler.openings) * 64 == counts.hits
    assert counts.remarks == ["leases for 0 s without a break, must be < -1 s"]
