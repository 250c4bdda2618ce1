"""What the ranks of `rank_processes` do: the same calls, in the order of SGLang's scheduler."""

from typing import Any

from hisparse_sidecar.engines.sglang.offload import rank_agreement
from hisparse_sidecar.errors import HisparseError
from tests.engines.sglang.offload_world import PAGE, Engine
from tests.engines.sglang.prefix_world import CachingEngine, prompt
from tests.engines.sglang.rank_processes import Place
from tests.engines.sglang.test_backend_prefix_ends import Lives


class RankEngine(CachingEngine):
    """A rank's engine: behind each layer and each pass the ranks are together."""

    def __init__(self, place: Place, **changed: Any) -> None:
        super().__init__(tp_group=place.cpu_group, **changed)
        self.place, self.num_looked_at = place, 0
        self.file = place.guard(self.coordinator)

    def check(self, layer: int, chosen: Any, found: Any) -> None:
        super().check(layer, chosen, found)
        self.num_looked_at += int((chosen >= 0).sum())
        self.place.together()

    def compute(self, req: Any) -> None:
        super().compute(req)
        self.place.together()

    def check_all(self) -> None:
        self.place.together()
        super().check_all()
        self.place.together()

    def told(self) -> dict[str, Any]:
        """What came of it, when nothing but the tree holds anything."""
        self.check_only_the_tree_holds()
        tier = self.coordinator.tier
        told = {"file": self.file, "compared": tier.num_compared, "writes": tier.writes_host}
        told |= {"bytes": tier._host.region.num_bytes, "looked_at": self.num_looked_at}
        told["said"] = [line for line in self.place.said if "host pool" in line]
        self.coordinator.destroy()
        return told


def random_lives(place: Place) -> dict[str, Any]:
    """Requests that come, find prefixes, decode, are aborted, retracted, and end."""
    engine = RankEngine(place, ratio=2)
    lives = Lives(engine, seed=7)
    deeds = lives.open, lives.open, lives.decode, lives.decode, lives.finish, lives.retract
    for _ in range(50):
        lives.random.choice((*deeds, lives.abort))()
        lives.collect()
        lives.finish_all(at_their_end=True)
        engine.check_all()
    for req in list(lives.waiting):
        lives.waiting.remove(req)
        engine.coordinator.request_finished(req)
        engine.release_aborted(req)
    lives.finish_all(at_their_end=False)
    engine.flush()
    return engine.told()


def pages_that_are_given_up(place: Place) -> dict[str, Any]:
    """Host pages of prefixes that requests have loaded go to the first in the queue."""
    engine = RankEngine(place, ratio=1, hot_share=0.05)  # one hot buffer
    tier, met = engine.coordinator.tier, list[int]()
    end_reads = tier.end_reads
    tier.end_reads = lambda: (met.append(tier.num_compared), end_reads())
    for seed in range(3):
        engine.finish(*engine.start_tokens(prompt(704, seed), new_tokens=10))
    first = engine.prefill_tokens(prompt(60, 7), new_tokens=900)
    others = [engine.prefill_tokens([*prompt(704, n), 1], new_tokens=30) for n in range(3)]
    engine.stage(first, *others)
    assert engine.collect() == [first]
    engine.check_all()
    engine.decode(5)
    stats = engine.coordinator.stats()
    counted = stats.held.host, stats.groups[0].spilled_bytes
    engine.finish(first)
    for req in others:
        assert engine.collect() == [req]
        engine.check_all()
        engine.decode(20)
        engine.finish(req)
    return engine.told() | {"counted": counted, "met": met}


def a_page_too_few(place: Place) -> str:
    """Rank 1 of a group has lost a page: what each rank's next request comes to."""
    engine = RankEngine(place)
    engine.start_tokens(prompt(200), new_tokens=60)
    engine.decode(2)
    if place.rank == 1:
        lease = engine.coordinator.tier._manager.lease_pages(1)
        assert lease.pages
    try:
        req = engine.prefill_tokens(prompt(300, 2), new_tokens=30)
        engine.stage(req)
        engine.collect()
    except (HisparseError, RuntimeError) as error:  # gloo's own, where the other has ended
        return f"{type(error).__name__}: {error}"
    return "nothing"


def ranks_on_two_hosts(place: Place) -> dict[str, Any]:
    """The last rank says that it is on another host."""
    if place.rank:
        other = rank_agreement._BOOT_ID.with_name("uuid")  # another one for each who asks
        rank_agreement._BOOT_ID = other
    return _plain(place)


def ranks_that_do_not_share(place: Place) -> dict[str, Any]:
    return _plain(place, share_host_pool=False)


def _plain(place: Place, **changed: Any) -> dict[str, Any]:
    engine = Engine(tp_group=place.cpu_group, **changed)
    file = place.guard(engine.coordinator)
    engine.start(500, 10, 2 * PAGE + 1)
    engine.decode(70)
    engine.coordinator.check_integrity()
    for req in list(engine.running):
        engine.finish(req)
    engine.check_nothing_is_held()
    tier = engine.coordinator.tier
    told = {"file": file, "writes": tier.writes_host, "compared": tier.num_compared}
    told["said"] = [line for line in place.said if "host pool" in line]
    engine.coordinator.destroy()
    return told
