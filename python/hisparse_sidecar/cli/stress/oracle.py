"""What the sidecar must still know, and what its bytes must be: made from the texts alone."""

from collections.abc import Iterable
from dataclasses import dataclass

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.page_names import PageNames
from hisparse_sidecar.cli.stress.rows import digest, page_bytes
from hisparse_sidecar.cli.stress.texts import Text
from hisparse_sidecar.config import SidecarConfig

_MAX_DIGESTS = 1 << 18


@dataclass(frozen=True)
class KnownPage:
    """A full page that later prompts may find.

    Attributes:
        tenant: whose prompts.
        text: of its sequence, true up to the end of the page.
        number: of the page in it.
        parent: digest of the page before it; None for the first.
        identity: [32] bytes, the name that prompts find it by.
    """

    tenant: str
    text: Text
    number: int
    parent: str | None
    identity: bytes

    @property
    def end(self) -> int:
        """Tokens up to its last."""
        return PAGE_TOKENS * (self.number + 1)


class Oracle:
    """Digests of pages, and the promises that were made about them.

    Attributes:
        acknowledged: digests of pages that a flush has made durable.
        damaged: digests of pages whose stored bytes were changed from outside.
    """

    def __init__(self, config: SidecarConfig, names: PageNames) -> None:
        self._config = config
        self._names = names
        self._digests: dict[tuple[int, int], str] = {}
        self._known: dict[str, KnownPage] = {}
        self.acknowledged: set[str] = set()
        self.damaged: set[str] = set()
        self._replaced: set[str] = set()

    def bytes_of(self, links: list[int]) -> bytes:
        """The bytes of a page's rows."""
        return page_bytes(self._config, links)

    def digests(self, life: Life) -> list[str]:
        """Of each page that the sequence has."""
        return [self._digest(links) for links in life.page_links()]

    def full_pages(self, life: Life) -> list[str]:
        """Digests of the pages of the sequence that have 64 tokens."""
        return self.digests(life)[: life.length // PAGE_TOKENS]

    def shared(self, life: Life) -> list[str]:
        """Digests of the pages of the sequence that prompts may find."""
        return self.full_pages(life) if life.is_shared else []

    def expect(self, life: Life, rows: int) -> None:
        """The sequence is about to compute so many rows.

        A known page that is computed again takes the place of what a tier had of it, for an engine
        may find other bits: it is promised anew once the old copy is gone.
        """
        end = (life.length + rows) // PAGE_TOKENS
        for number in range(life.length // PAGE_TOKENS, end):
            name = self._digest(life.links(number * PAGE_TOKENS, PAGE_TOKENS))
            if name in self._known:
                self._replaced.add(name)
        self.acknowledged -= self._replaced

    def learn(self, life: Life) -> None:
        """Full pages of the sequence can be found from now on."""
        parent: str | None = None
        for number, name in enumerate(self.shared(life)):
            if name not in self._known:
                self._known[name] = self._page(life, number, parent)
            parent = name

    def _page(self, life: Life, number: int, parent: str | None) -> KnownPage:
        before = None if parent is None else self._known[parent].identity
        tokens = life.text.tokens(number * PAGE_TOKENS, PAGE_TOKENS)
        identity = self._names.after(life.tenant, before, tokens)
        return KnownPage(life.tenant, life.text, number, parent, identity)

    def findable(self, stored: dict[bytes, str]) -> set[str]:
        """Digests of the pages that prompts find in the files.

        Args:
            stored: digest of the bytes under each name. The same bytes under the private name of a
                sequence that rests are that sequence's alone, and go with it.
        """
        pages = self._known.items()
        return {digest for digest, page in pages if stored.get(page.identity) == digest}

    def identities(self, digests: Iterable[str]) -> dict[str, bytes]:
        """The names that prompts find these pages by."""
        return {digest: self._known[digest].identity for digest in digests}

    def acknowledge(self, found: set[str]) -> None:
        """A flush has ended: prompts found these pages in the files before it began."""
        self._replaced &= found  # until an old copy is gone, it may go at any time
        self.acknowledged = found - self._replaced
        self.damaged = set()  # what was damaged before is not among `found`, or was put again

    def restart(self) -> None:
        """Nobody is left who would remove old copies of pages that were computed again."""
        self._replaced.clear()

    def damage(self, payloads: set[str]) -> None:
        """The stored bytes of these pages may be anything now."""
        self.damaged |= payloads

    def promised(self) -> list[KnownPage]:
        """The last pages of all prompts that have to be found, from their first page on."""
        whole: set[str] = set()
        sound = self.acknowledged - self.damaged
        for name in sorted(sound, key=lambda name: self._known[name].number):
            parent = self._known[name].parent
            if parent is None or parent in whole:
                whole.add(name)
        inner = {self._known[name].parent for name in whole}
        return [self._known[name] for name in sorted(whole) if name not in inner]

    def words_for(self, name: str) -> str:
        """Which page it is, for a reader."""
        page = self._known[name]
        return f"page {page.number} of text {page.text.parts}, tenant {page.tenant!r}"

    def _digest(self, links: list[int]) -> str:
        key = (links[-1], len(links))
        if key not in self._digests:
            if len(self._digests) >= _MAX_DIGESTS:
                self._digests.clear()
            self._digests[key] = digest(self.bytes_of(links))
        return self._digests[key]
