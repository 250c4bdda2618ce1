"""The remote tier on Mooncake Store: put, get, holds and remove by identity, all verified.

The store promises little: it may drop a page at any time, call one there that cannot be read, keep
an old value under a new put, or not answer for half a minute. Here a page is right or a miss.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from hisparse_sidecar._core import DeadlinePassed, TierDown, TierFull
from hisparse_sidecar.remote.breaker import BreakerState
from hisparse_sidecar.remote.calls import TIER, Call, StoreCalls, Work
from hisparse_sidecar.remote.changes import Changes
from hisparse_sidecar.remote.frame import FRAME_BYTES, open_frame, write_frame
from hisparse_sidecar.remote.frames import Frame, SharedMemory, load_frames, store_frames
from hisparse_sidecar.remote.object_store import (
    ABOUT_THE_KEY,
    ABSENT,
    FULL,
    UNREADABLE,
    WRONG_LENGTH,
    MooncakeOptions,
    ObjectStore,
    failure,
)
from hisparse_sidecar.remote.pages import (
    Bytes,
    Page,
    RemoteUsage,
    WritableBytes,
    bytes_of,
    check_names,
    check_tokens,
)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.2
_LEAST_CALL_SECONDS = 0.1  # with less left, a try would fail by its deadline, not by the store

_NO_HEADER = bytes(FRAME_BYTES)


class MooncakeTier:
    """Pages by identity in a store. Safe to use from several threads; `close` ends it.

    Every call takes `deadline_seconds`, counted from the call, and raises `DeadlinePassed` once
    they are over, or `TierDown` if the store fails or is being spared.
    """

    def __init__(self, store: ObjectStore, options: MooncakeOptions, *, is_up: bool = True) -> None:
        """Takes charge of a store; where it is not up, it is spared until it is."""
        self._store = store
        self._options = options
        self._calls = StoreCalls(store, options)
        self._shared = SharedMemory()
        self._puts, self._removals = Changes(), Changes()  # a page's wait for each other
        if not is_up:
            self._calls.spare()

    @property
    def state(self) -> BreakerState:
        """Whether the store answers; anything but closed is a degraded service."""
        return self._calls.state

    @property
    def is_up(self) -> bool:
        """Whether calls are made at all at this moment."""
        return self.state is BreakerState.CLOSED

    @property
    def usage(self) -> RemoteUsage:
        """What was done so far."""
        return RemoteUsage(**self._calls.counts)

    def share(self, memory: WritableBytes) -> None:
        """Lets the store read pages in this memory, such as the host pool, where they lie.

        Raises:
            TierDown: the store refuses the memory, part of which it may have already.
        """
        code = self._shared.register(self._store, memoryview(memory).cast("B"))
        if code < 0:
            raise TierDown(failure("register_buffer", code))

    def put(
        self, identity: bytes, page: Bytes, *, num_tokens: int, deadline_seconds: float
    ) -> None:
        """Stores a page, if the store has none of this identity: whether it had, it does not say.

        A full store evicts behind the caller's back: the put pauses and tries again. A call that is
        left at its deadline may store the page late, if the store was called by then; of a page in
        memory that was shared it may still read what has become of it, and what it then stores is a
        miss. A removal of the page that is still under way is waited for: it could remove what is
        put.

        Raises:
            TierFull: the store was full until too little time was left for another try.
        """
        content = bytes_of(page)
        self._calls.check_fit((identity,), content.nbytes)
        check_tokens(num_tokens)
        with self._begin_put((identity,), deadline_seconds) as call:
            frames = [self._write(call, 0, identity, content, num_tokens)]
            self._put_frames(call, (identity,), frames)
            self._calls.count("puts")

    def put_many(self, pages: Sequence[Page], *, deadline_seconds: float) -> None:
        """Stores pages as `put` does, in one call of the store: their frames must fit a lane.

        After an error some of the pages may be stored.
        """
        contents = [bytes_of(page.content) for page in pages]
        self._calls.check_fit(
            [page.identity for page in pages], sum(each.nbytes for each in contents)
        )
        for page in pages:
            check_tokens(page.num_tokens)
        names = [page.identity for page in pages]
        with self._begin_put(names, deadline_seconds) as call:
            frames, offset = [], 0
            for page, content in zip(pages, contents, strict=True):
                frame = self._write(call, offset, page.identity, content, page.num_tokens)
                frames.append(frame)
                offset += frame.memory.nbytes
            self._put_frames(call, names, frames)
            self._calls.count("puts", len(pages))

    def get(self, identity: bytes, into: WritableBytes, *, deadline_seconds: float) -> bool:
        """Copies a page to `into`, which is as long as the page; False if there is no sound copy.

        `into` is written only where the answer is True.
        """
        into = memoryview(into).cast("B")
        with self.read(identity, into.nbytes, deadline_seconds=deadline_seconds) as page:
            if page is None:
                return False
            into[:] = page
            return True

    @contextmanager
    def read(
        self, identity: bytes, num_bytes: int, *, deadline_seconds: float
    ) -> Iterator[memoryview | None]:
        """The page's bytes where the store put them, for as long as the `with` lasts; None = miss.

        It holds one of the tier's lanes until then.
        """
        with self.read_many((identity,), num_bytes, deadline_seconds=deadline_seconds) as pages:
            yield pages[0]

    @contextmanager
    def read_many(
        self, identities: Sequence[bytes], num_bytes: int, *, deadline_seconds: float
    ) -> Iterator[list[memoryview | None]]:
        """Reads pages of equal length as `read` does, in one call: their frames must fit a lane."""
        self._calls.check_fit(identities, num_bytes * len(identities))
        with self._calls.begin("get", deadline_seconds) as call:
            pages, corrupt = self._fetch(call, identities, num_bytes)
            try:
                yield pages
            finally:
                self._drop_corrupt(call, corrupt)  # a call that is left takes the lane with it

    def holds(self, identity: bytes, *, deadline_seconds: float) -> bool:
        """Whether the store lists the page: a hint, for it may be lost or unreadable."""
        check_names((identity,))
        with self._calls.begin("holds", deadline_seconds) as call:
            return self._calls.run(call, lambda: [self._store.is_exist(self._key(identity))]) == [1]

    def count_held(self, identities: Sequence[bytes], *, deadline_seconds: float) -> int:
        """How many of these pages, from the first on, `holds` is true of; one call of the store."""
        check_names(identities)
        keys = [self._key(identity) for identity in identities]
        with self._calls.begin("holds", deadline_seconds) as call:
            codes = self._calls.run(call, lambda: self._store.batch_is_exist(keys))
        return next((count for count, code in enumerate(codes) if code != 1), len(codes))

    def remove(self, identity: bytes, *, deadline_seconds: float) -> bool:
        """Forgets a page, even one that is being read: its reader finds the checksum wrong.

        A call that is left at its deadline removes nothing if the store was not called by then; if
        it was, the page may go late, and a put of it waits for that, as a removal does for a put.
        """
        check_names((identity,))
        with self._calls.begin("remove", deadline_seconds) as call:
            self._wait_out(call, self._puts, (identity,))
            return self._remove(call, identity) not in ABOUT_THE_KEY

    def close(self) -> None:
        """Leaves the store; calls that hang are waited for a few seconds, then left behind."""
        self._calls.close()

    def __enter__(self) -> "MooncakeTier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _begin_put(self, names: Sequence[bytes], deadline_seconds: float) -> Iterator[Call]:
        with self._calls.begin("put", deadline_seconds) as call:
            self._wait_out(call, self._removals, names)
            yield call

    def _wait_out(self, call: Call, changes: Changes, names: Sequence[bytes]) -> None:
        if not changes.wait_out(names, call.deadline):
            self._calls.give_up(call)

    def _change(
        self, call: Call, changes: Changes, names: Sequence[bytes], change: Work, *answers: int
    ) -> list[int]:
        """The store's codes. A call that was left before it began changes nothing."""

        def change_unless_left() -> list[int]:
            with changes.of(names):
                # in this order: who has left either finds the change under way, or stops it
                return [ABSENT] if call.is_left else change()

        return self._calls.run(call, change_unless_left, *answers)

    def _write(
        self, call: Call, offset: int, identity: bytes, content: memoryview, num_tokens: int
    ) -> Frame:
        """Frames a page at an offset of the lane's memory; a shared one stays where it is."""
        key, address = self._key(identity), call.lane.address + offset
        shared_at = self._shared.address_of(content)
        in_lane = FRAME_BYTES + (content.nbytes if shared_at is None else 0)
        memory = call.lane.memory[offset : offset + in_lane]
        write_frame(memory, identity, content, num_tokens)
        if shared_at is None:
            return Frame(key, memory, [address], [in_lane])
        return Frame(key, memory, [address, shared_at], [FRAME_BYTES, content.nbytes])

    def _put_frames(self, call: Call, names: Sequence[bytes], frames: list[Frame]) -> None:
        for attempt in itertools.count():
            put = partial(store_frames, self._store, frames)
            codes = self._change(call, self._puts, names, put, FULL)
            if FULL not in codes:
                return
            frames = [frame for frame, code in zip(frames, codes, strict=True) if code == FULL]
            self._calls.count("full", len(frames))
            left = call.deadline - time.monotonic()
            pause = min(_FIRST_PAUSE_SECONDS * 2 ** min(attempt, 10), _LONGEST_PAUSE_SECONDS)
            if left < pause + _LEAST_CALL_SECONDS:
                need = f"need {sum(frame.num_bytes for frame in frames)} bytes"
                raise TierFull(f"{TIER} full: {need}, no room in {attempt + 1} tries")
            time.sleep(pause)

    def _fetch(
        self, call: Call, identities: Sequence[bytes], num_bytes: int
    ) -> tuple[list[memoryview | None], list[bytes]]:
        """The pages, and the names of those whose bytes are wrong."""
        length = FRAME_BYTES + num_bytes
        frames = []
        for number, identity in enumerate(identities):
            start = length * number
            memory = call.lane.memory[start : start + length]
            memory[:FRAME_BYTES] = _NO_HEADER  # no page of an earlier call may pass for this one
            frames.append(Frame(self._key(identity), memory, [call.lane.address + start], [length]))
        codes = self._calls.run(
            call, partial(load_frames, self._store, frames), WRONG_LENGTH, UNREADABLE
        )
        pages, corrupt = [], []
        for frame, identity, code in zip(frames, identities, codes, strict=True):
            pages.append(self._open(frame, identity, code))
            if pages[-1] is None and code != UNREADABLE and code not in ABOUT_THE_KEY:
                corrupt.append(identity)
        self._calls.count("corrupt", len(corrupt))
        return pages, corrupt

    def _open(self, frame: Frame, identity: bytes, code: int) -> memoryview | None:
        """The page in a frame that was loaded with that code; None, counted, if it is not sound."""
        page, length = None, frame.memory.nbytes
        if code == UNREADABLE:
            self._calls.count("unreadable")
        elif code == length:
            page = open_frame(frame.memory, identity, length - FRAME_BYTES)
        self._calls.count("misses" if page is None else "hits")
        return page

    def _drop_corrupt(self, call: Call, identities: Sequence[bytes]) -> None:
        """While the wrong bytes stay, a put of the right ones would change nothing."""
        for identity in identities:
            if call.is_left or time.monotonic() >= call.deadline:
                return
            with suppress(DeadlinePassed, TierDown):  # counted; the page is a miss either way
                self._remove(call, identity)

    def _remove(self, call: Call, identity: bytes) -> int:
        def remove() -> list[int]:
            return [self._store.remove(self._key(identity), True)]

        (code,) = self._change(call, self._removals, (identity,), remove)
        return code

    def _key(self, identity: bytes) -> str:
        return self._options.key_prefix + identity.hex()
