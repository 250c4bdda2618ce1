"""A store in a dictionary, which lies, hangs and fills up as it is told."""

import ctypes
import threading

from hisparse_sidecar.remote.object_store import ABSENT, WRONG_LENGTH

LONG = 60.0


class ScriptedStore:
    """Objects in a dictionary; `codes` are given out before anything else is done."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.codes: list[int] = []
        self.hanging_keys: set[str] = set()
        self.hanging_puts: set[str] = set()
        self.hanging_removals: set[str] = set()
        self.may_go_on = threading.Event()
        self.num_calls = self.num_closed = self.num_in_place = 0
        self.called_by: set[str] = set()

    def put_from(self, key: str, buffer_ptr: int, size: int) -> int:
        code = self._begin(key)
        if key in self.hanging_puts:
            assert self.may_go_on.wait(LONG)
        if code == 0:
            self.objects.setdefault(key, ctypes.string_at(buffer_ptr, size))
        return code

    def get_into(self, key: str, buffer_ptr: int, size: int) -> int:
        code, found = self._begin(key), self.objects.get(key)
        if code or found is None:
            return code or ABSENT
        if len(found) > size:
            return WRONG_LENGTH
        ctypes.memmove(buffer_ptr, found, len(found))
        return len(found)

    def batch_put_from(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        return list(map(self.put_from, keys, buffer_ptrs, sizes))

    def batch_put_from_multi_buffers(
        self, keys: list[str], all_buffer_ptrs: list[list[int]], all_sizes: list[list[int]]
    ) -> list[int]:
        codes = []
        for key, addresses, sizes in zip(keys, all_buffer_ptrs, all_sizes, strict=True):
            codes.append(self._begin(key))
            if codes[-1] == 0:
                parts = map(ctypes.string_at, addresses, sizes)
                self.objects.setdefault(key, b"".join(parts))
            self.num_in_place += len(sizes) > 1
        return codes

    def batch_get_into(
        self, keys: list[str], buffer_ptrs: list[int], sizes: list[int]
    ) -> list[int]:
        return list(map(self.get_into, keys, buffer_ptrs, sizes))

    def is_exist(self, key: str) -> int:
        return self._begin(key) or int(key in self.objects)

    def batch_is_exist(self, keys: list[str]) -> list[int]:
        return list(map(self.is_exist, keys))

    def remove(self, key: str, force: bool) -> int:
        assert force
        code = self._begin(key)
        if key in self.hanging_removals:
            assert self.may_go_on.wait(LONG)
        return code or (0 if self.objects.pop(key, None) is not None else ABSENT)

    def register_buffer(self, buffer_ptr: int, size: int) -> int:
        return 0

    def close(self) -> int:
        self.num_closed += 1
        return 0

    def _begin(self, key: str) -> int:
        self.num_calls += 1
        self.called_by.add(threading.current_thread().name)
        if key in self.hanging_keys:
            assert self.may_go_on.wait(LONG)
        return self.codes.pop(0) if self.codes else 0
