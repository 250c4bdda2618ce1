"""Which sequences have all of their index-key blocks in their block windows."""


class LoadedWindows:
    """Sequences and anchor groups whose every block has a slot; the host's knowledge alone.

    What a decode step appends gets a slot by itself. What puts rows on the host alone, or frees
    slots in the middle of a sequence, must be told: see `forget`.
    """

    def __init__(self) -> None:
        self._groups: dict[int, set[int]] = {}

    def has(self, sequence: int, group: int) -> bool:
        """Whether every block of the sequence lies in the group's window."""
        return group in self._groups.get(sequence, ())

    def add(self, sequence: int, group: int) -> None:
        """Every block was given a slot."""
        self._groups.setdefault(sequence, set()).add(group)

    def forget(self, sequence: int) -> None:
        """Some block may have no slot any more, or the sequence is gone."""
        self._groups.pop(sequence, None)
