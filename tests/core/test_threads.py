import random
import threading
from collections.abc import Callable

from hisparse_sidecar._core import DeviceArenaFull, HostPoolFull, HotBufferModel, InvalidArgument

NUM_THREADS = 8


def run_threads(work: Callable[[int], None]) -> None:
    """Runs `work(thread number)` in every thread; the first error fails the test."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_that_fill_one_pool_lose_no_page(host) -> None:
    before = host.manager.stats().as_dict()

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(300):
            try:
                seq = host.open(rng.randrange(1, 300), rng.randrange(0, 100))
            except (HostPoolFull, DeviceArenaFull):
                continue
            admitted = host.manager.admitted_tokens(seq)
            half = max(1, admitted // 2)
            assert host.manager.append(seq, half) == 0
            lives_on = rng.random() < 0.5
            forked = fork_and_close(seq, rng.randrange(half)) if lives_on else 0
            assert host.manager.length(seq) == half
            host.manager.truncate(seq, 0 if not forked else half)
            host.manager.close(seq)

    def fork_and_close(seq: int, length: int) -> int:
        try:
            fork = host.fork(seq, length, 70)
        except (HostPoolFull, DeviceArenaFull):
            return 0
        assert host.manager.append(fork, 70) == length
        host.manager.close(fork)
        return fork

    run_threads(work)
    host.manager.check_integrity()
    after = host.manager.stats()
    assert after.opened + after.forked == after.closed
    gauges = [name for name in before if "_" in name and name.split("_")[-1] in {"free", "used"}]
    assert {name: after.as_dict()[name] for name in gauges} == {
        name: before[name] for name in gauges
    }


def test_leases_dropped_by_many_threads_all_return(host) -> None:
    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(500):
            try:
                lease = host.manager.lease_pages(rng.randrange(1, 6))
            except HostPoolFull:
                continue
            assert len(set(lease.pages)) == len(lease.pages)
            if rng.random() < 0.5:
                lease.release()

    run_threads(work)
    assert host.manager.stats().host_pages_free == 16
    host.manager.check_integrity()


def test_one_model_may_be_resolved_from_many_threads() -> None:
    model = HotBufferModel(64)

    def work(number: int) -> None:
        rng = random.Random(number)
        for step in range(1, 200):
            items = rng.sample(range(1000), 16)
            try:
                model.resolve(items, 2 * step + 1, 2 * step + 1)
            except InvalidArgument:
                model.release_from(0)

    run_threads(work)
    model.check_integrity()
