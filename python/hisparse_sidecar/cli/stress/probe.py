"""Inside the server: what no client may see or do, told line by line on a socket of its own.

A line is a JSON object {"do": name, ...}; the answer is {"ok": result} or {"error": [type, text]}.
Commands run in the thread that touches the sidecar, between two calls of clients.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hisparse_kernels.layouts import PAGE_TOKENS
from hisparse_sidecar._core import FaultTier, FileTier, Manager, PageLease
from hisparse_sidecar.cli.stress.heap import malloc_bytes
from hisparse_sidecar.cli.stress.rows import digest
from hisparse_sidecar.cli.stress.settings import ERROR_NUMBERS
from hisparse_sidecar.errors import HisparseError, WrongState
from hisparse_sidecar.server.runtime import ServerRuntime
from hisparse_sidecar.sidecar import Sidecar

_MAX_LINE_BYTES = 1 << 24
_TIER_COUNTS = (
    "condition",
    "pages",
    "used_bytes",
    "capacity_bytes",
    "corrupt",
    "demoted",
    "promoted",
    "missed",
    "failed",
    "refused",
    "left",
)


class Probe:
    """Answers one parent at a time."""

    def __init__(self, remote_tier: FaultTier | None, start_ms: float) -> None:
        """Makes the commands.

        Args:
            remote_tier: the one that the sidecar was given.
            start_ms: how long making the sidecar took.
        """
        self._remote_tier = remote_tier
        self._start_ms = start_ms
        self._lease: PageLease | None = None
        self._leaked: list[PageLease] = []
        self._commands: dict[str, Callable[..., object]] = {
            "arm": self._arm,
            "bytes": self._bytes,
            "check": self._check,
            "digests": self._digests,
            "disarm": lambda sidecar: _files(sidecar).disarm(),
            "drain": lambda sidecar, seconds: sidecar.drain(seconds),
            "evict": lambda sidecar: sidecar.evict_idle(sidecar.config.host_pages),
            "flip": self._flip,
            "leak": self._leak,
            "holds": lambda sidecar, names: [
                _files(sidecar).holds(bytes.fromhex(name)) for name in names
            ],
            "host_pages": _host_pages,
            "flush": lambda sidecar, seconds: sidecar.flush(seconds),
            "lease": self._take,
            "release": self._release,
            "state": self._state,
        }

    async def serve(self, runtime: ServerRuntime, path: Path) -> asyncio.Server:
        """Listens at `path` until the server is closed."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.CancelledError):  # the server ends
                while line := await reader.readline():
                    result = await runtime.call(partial(self._answer, line=line))
                    writer.write(json.dumps(result).encode() + b"\n")
                    await writer.drain()
            writer.close()

        return await asyncio.start_unix_server(answer, path, limit=_MAX_LINE_BYTES)

    def _answer(self, sidecar: Sidecar, *, line: bytes) -> dict[str, object]:
        request: dict[str, Any] = json.loads(line)
        try:
            return {"ok": self._commands[request.pop("do")](sidecar, **request)}
        except HisparseError as error:
            return {"error": [type(error).__name__, str(error)]}

    def _digests(self, sidecar: Sidecar, sequence: int) -> list[str]:
        num_pages = -(-sidecar.length(sequence) // PAGE_TOKENS)
        return [digest(_page(sidecar, sequence, number)) for number in range(num_pages)]

    def _bytes(self, sidecar: Sidecar, sequence: int, page: int) -> str:
        return base64.b64encode(_page(sidecar, sequence, page)).decode()

    def _flip(self, sidecar: Sidecar, sequence: int, position: int) -> None:
        row = sidecar.host.on_cpu().kv_rows[0][sidecar.host_row_id(sequence, position)]
        row[0] ^= 1

    def _check(self, sidecar: Sidecar) -> bool:
        if sidecar.has_open_step:
            return False
        sidecar.check_integrity()
        return True

    def _arm(self, sidecar: Sidecar, points: list[str], fault: dict[str, Any]) -> None:
        for point in points:
            _files(sidecar).arm(point, **fault)

    def _take(self, sidecar: Sidecar, share: float) -> int:
        """Takes a share of the pages that are free; how many."""
        num_pages = int(sidecar.stats().core.host_pages_free * share)
        if num_pages:
            self._lease = _manager(sidecar).lease_pages(num_pages)
        return num_pages

    def _leak(self, sidecar: Sidecar) -> None:
        self._leaked.append(_manager(sidecar).lease_pages(1))

    def _release(self, _sidecar: Sidecar) -> None:
        if self._lease is not None:
            self._lease.release()
        self._lease = None

    def _state(self, sidecar: Sidecar) -> dict[str, object]:
        tiers = {
            tier.name: {name: getattr(tier, name) for name in _TIER_COUNTS}
            for tier in sidecar.lower_tiers()
        }
        return {
            "core": sidecar.stats().core.as_dict(),
            "prefix": sidecar.prefix_stats().as_dict(),
            "tiers": tiers,
            "faults": self._faults(sidecar),
            "malloc_bytes": malloc_bytes(),
            "start_ms": self._start_ms,
        }

    def _faults(self, sidecar: Sidecar) -> dict[str, int]:
        """Calls of the tiers that were made to fail, or to be slow, by kind."""
        files, remote, faults = sidecar._tiers.lower.files, self._remote_tier, {}
        if files is not None:
            faults = {kind: files.num_injected(number) for kind, number in ERROR_NUMBERS.items()}
        if remote is not None:
            faults["remote"] = sum(remote.injected.values())
        return faults


def _manager(sidecar: Sidecar) -> Manager:
    manager = sidecar._tiers.manager
    if not isinstance(manager, Manager):
        raise WrongState("the sidecar is one of several ranks, needs to be alone")
    return manager


def _files(sidecar: Sidecar) -> FileTier:
    files = sidecar._tiers.lower.files
    if files is None:
        raise WrongState("there are 0 file tiers, a failpoint needs 1")
    return files


def _host_pages(sidecar: Sidecar) -> list[str]:
    """Digests of what every page of the host pool holds, whoever has it."""
    return [
        digest(_rows(sidecar, page, 0, PAGE_TOKENS)) for page in range(sidecar.config.host_pages)
    ]


def _page(sidecar: Sidecar, sequence: int, number: int) -> bytes:
    """The bytes of the rows that a sequence has in its page; see `rows.page_bytes`."""
    first = number * PAGE_TOKENS
    count = min(PAGE_TOKENS, sidecar.length(sequence) - first)
    row = sidecar.host_row_id(sequence, first)
    return _rows(sidecar, row // PAGE_TOKENS, row % PAGE_TOKENS, count)


def _rows(sidecar: Sidecar, page: int, first: int, count: int) -> bytes:
    row, host = page * PAGE_TOKENS + first, sidecar.host.on_cpu()
    parts = [rows[row : row + count] for rows in host.kv_rows]
    parts += [rows[page, : count * sidecar.config.index.row_bytes] for rows in host.index_pages]
    if count == PAGE_TOKENS:
        parts += [rows[page] for rows in host.pooled_rows]
    return b"".join(part.numpy().tobytes() for part in parts)
