"""The peers that load here; one that does not is named with its reason, and costs no other."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, cast

from benchmarks.ops.case import PeerAbsentError

if TYPE_CHECKING:
    from benchmarks.ops.peer_deepgemm import DeepGemm
    from benchmarks.ops.peer_flashmla import FlashMla
    from benchmarks.ops.peer_sglang import Sglang


class Peer(Protocol):
    """What all of them have."""

    def compile_jobs(self) -> Sequence[Callable[[], object]]:
        """Each compiles, in a thread of its own, some of what the suite uses."""


def _load_deepgemm() -> "DeepGemm":
    from benchmarks.ops.peer_deepgemm import DeepGemm

    return DeepGemm()


def _load_flashmla() -> "FlashMla":
    from benchmarks.ops.peer_flashmla import FlashMla

    return FlashMla()


def _load_sglang() -> "Sglang":
    from benchmarks.ops.peer_sglang import Sglang

    return Sglang()


LOADERS: Mapping[str, Callable[[], Peer]] = {
    "DeepGEMM": _load_deepgemm,
    "FlashMLA": _load_flashmla,
    "SGLang": _load_sglang,
}


class Peers:
    """Loaded peers by name; asking for an absent one raises PeerAbsentError.

    The first use of one that compiles compiles all of them, side by side: nvcc takes minutes.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Peer]] = LOADERS) -> None:
        self._loaded: dict[str, Peer] = {}
        self._absent: dict[str, str] = {}
        self._is_compiled = False
        for name, load in loaders.items():
            self._load(name, load)

    def absent(self) -> Iterator[tuple[str, str]]:
        """Name and reason of each that did not load."""
        yield from self._absent.items()

    def deep_gemm(self) -> "DeepGemm":
        return cast("DeepGemm", self._get("DeepGEMM"))

    def flash_mla(self) -> "FlashMla":
        return cast("FlashMla", self._get("FlashMLA"))

    def sglang(self) -> "Sglang":
        return cast("Sglang", self._get("SGLang"))

    def _load(self, name: str, load: Callable[[], Peer]) -> None:
        try:
            self._loaded[name] = load()
        except Exception as error:  # a package of others: whatever its import raises
            self._absent[name] = " ".join(f"{type(error).__name__}: {error}".split())

    def _get(self, name: str) -> Peer:
        if name not in self._loaded:
            raise PeerAbsentError(self._absent.get(name, f"{name} is not known"))
        if not self._is_compiled and self._loaded[name].compile_jobs():
            self._is_compiled = True
            self._compile()
        return self._loaded[name]

    def _compile(self) -> None:
        """What does not compile fails again, with its reason, where it is used."""
        jobs = [job for peer in self._loaded.values() for job in peer.compile_jobs()]
        with ThreadPoolExecutor(len(jobs)) as pool:
            for job in jobs:
                pool.submit(job)
