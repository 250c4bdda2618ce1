"""What the driver knows of each sequence: its text, its length, and what it is allowed to do."""

from dataclasses import dataclass, field

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar.cli.stress.rows import first_link, next_link
from hisparse_sidecar.cli.stress.texts import Text


@dataclass
class Life:
    """One sequence of a client.

    Attributes:
        number: names it in operations, in every run of the same settings.
        client: number of the session that owns it.
        handle: the server's.
        tenant: whose it is.
        text: what it says.
        prompt: tokens of its prompt.
        admitted: most tokens.
        length: committed tokens.
        is_shared: whether later prompts find its pages; a cut within an older page ends that.
        rests: whether it is preempted.
    """

    number: int
    client: int
    handle: int
    tenant: str
    text: Text
    prompt: int
    admitted: int
    length: int = 0
    is_shared: bool = True
    rests: bool = False
    _links: list[int] = field(default_factory=list)

    @property
    def is_prefilled(self) -> bool:
        """Whether its prompt is there."""
        return self.length >= self.prompt

    def links(self, start: int, count: int) -> list[int]:
        """Links of `count` tokens from `start` on; see `rows`."""
        link = self._links[-1] if self._links else first_link(self.tenant)
        for position in range(len(self._links), start + count):
            link = next_link(link, self.text.token(position))
            self._links.append(link)
        return self._links[start : start + count]

    def page_links(self) -> list[list[int]]:
        """Links of each page, the last one possibly partial."""
        starts = range(0, self.length, PAGE_TOKENS)
        return [self.links(at, min(PAGE_TOKENS, self.length - at)) for at in starts]

    def cut(self, length: int) -> None:
        """It has its first `length` tokens only, and goes on as before."""
        self.length = length
        self.prompt = min(self.prompt, length)

    def branch(self, length: int, number: int) -> None:
        """It is cut and goes on as nobody else does.

        Names of pages are kept page by page: within an older page the name is lost, and so is the
        name of all that follows.
        """
        is_older = length // PAGE_TOKENS < self.length // PAGE_TOKENS
        self.is_shared = self.is_shared and (length % PAGE_TOKENS == 0 or not is_older)
        self.text = self.text.branch(length, number)
        del self._links[length:]
        self.cut(length)

    def fork(self, number: int, handle: int, length: int, max_new_tokens: int) -> "Life":
        """A copy of its first tokens."""
        child = Life(number, self.client, handle, self.tenant, self.text, length, 0, self.length)
        child.is_shared = self.is_shared
        child.branch(length, number)
        child.admitted = length + max_new_tokens
        return child
