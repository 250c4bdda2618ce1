"""Draws the operations of a run: each is a plain object that a replay file can hold."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hisparse_sidecar.cli.stress.lives import Life
from hisparse_sidecar.cli.stress.settings import ERROR_NUMBERS, SELF_CHECKS, StressSettings
from hisparse_sidecar.cli.stress.texts import draw_text
from hisparse_sidecar.cli.stress.world import TENANTS

Operation = dict[str, Any]
_Draw = Callable[[], Operation | None]

_MOST_NEW_TOKENS = 120
_MOST_LIVES = 3  # of one session
_FIRST_EVENT, _EVENT_STEP = 12, 9  # every kind of event comes once early, in turn
_FAULT_ONE_IN, _EVENT_ONE_IN = 25, 20
_RARELY = {"kill": 3}  # one draw in so many counts: a restart takes its time
_FIRST_SPOILED, _SPOILED_STEP = 63, 40


class Dealer:
    """Draws by one seed; what is possible depends on what is open."""

    def __init__(self, settings: StressSettings) -> None:
        self._settings = settings
        self._draws = random.Random(settings.seed)
        self._dealt = 0
        self._number = 0
        self._due: list[tuple[int, Operation]] = []
        events = ["slow_client", "dying_client", "audit", "checkpoint", *settings.faults]
        self._early = {_FIRST_EVENT + _EVENT_STEP * at: name for at, name in enumerate(events)}
        self._early |= {at + 3: "checkpoint" for at in self._early}
        if settings.self_check is not None:
            spoils = SELF_CHECKS[settings.self_check]
            self._early |= {_FIRST_SPOILED + _SPOILED_STEP * at: spoils for at in range(4)}

    def next(self, lives: Mapping[int, Life]) -> Operation:
        """The next operation."""
        self._dealt += 1
        early = self._early.pop(self._dealt, None)
        drawn = None if early is None else self._surely(self._named(early))
        if drawn is None and self._due and self._due[0][0] <= self._dealt:
            return self._due.pop(0)[1]
        return drawn or self._event() or self._client_operation(lives)

    def _event(self) -> Operation | None:
        if self._draws.randrange(_EVENT_ONE_IN) == 0:
            names = ("checkpoint", "checkpoint", "audit", "slow_client", "dying_client", "hang_up")
            return self._named(self._draws.choice(names))
        if self._settings.faults and self._draws.randrange(_FAULT_ONE_IN) == 0:
            fault = self._draws.choice(self._settings.faults)
            if self._draws.randrange(_RARELY.get(fault, 1)) == 0:
                return self._named(fault)
        return None

    def _surely(self, operation: Operation | None) -> Operation | None:
        """The same, so that it finds something to do: faults at each call, drains that call."""
        if operation is not None and "one_in" in operation:
            operation["one_in"] = 1
            operation["points"] = sorted({*operation["points"], "before_write"})
        if operation is not None and operation["do"] == "checkpoint":
            operation["drains"] = True
        return operation

    def _named(self, name: str) -> Operation | None:
        draws = self._draws
        if name == "checkpoint":
            return {"do": name, "drains": draws.randrange(2) == 0}
        if name in ("audit", "lose", "leak"):
            return {"do": name}
        if name in ("slow_client", "dying_client"):
            pause = round(draws.uniform(0.0, 0.4), 3)
            return {"do": name, "text": draw_text(draws), "pause_seconds": pause}
        if name == "hang_up":
            return {"do": name, "client": self._client()}
        if name == "flip":
            return {"do": name, "pick": draws.random()}
        return self._fault(name)

    def _fault(self, name: str) -> Operation | None:
        draws = self._draws
        if name == "alloc":
            self._later({"do": "release"})
            return {"do": "alloc", "share": draws.choice((0.5, 0.9, 1.0))}
        if name == "kill":
            return {"do": "kill", "after_seconds": round(draws.uniform(0.0, 0.15), 4)}
        if name == "corrupt":
            how = draws.choice(("flip", "flip", "zero", "cut"))
            return {"do": "corrupt", "how": how, "file": draws.random(), "place": draws.random()}
        if name == "remote":
            return None  # the tier was made with its faults
        self._later({"do": "disarm"})
        return {"do": name, **self._failpoints(name)}

    def _failpoints(self, name: str) -> Operation:
        draws = self._draws
        fault: Operation = {"one_in": draws.choice((1, 2, 4)), "seed": draws.randrange(1 << 32)}
        if name == "io":
            points = ["before_read", "before_write", "half_write", "before_sync"]
            points = draws.sample(points, draws.randint(1, 3))
            return {"points": points, "error_number": ERROR_NUMBERS[name], **fault}
        if name == "enospc":
            points = draws.choice((["before_write"], ["half_write"]))
            return {"points": points, "error_number": ERROR_NUMBERS[name], **fault}
        points = draws.sample(["before_read", "before_write", "before_sync"], 2)
        seconds = round(draws.uniform(0.02, 0.5), 3)
        return {"points": points, "sleep_seconds": seconds, **fault}

    def _later(self, operation: Operation) -> None:
        self._due.append((self._dealt + self._draws.randint(4, 20), operation))
        self._due.sort(key=lambda due: due[0])

    def _client(self) -> int:
        return self._draws.randrange(self._settings.sessions)

    def _client_operation(self, lives: Mapping[int, Life]) -> Operation:
        while True:
            client = self._client()
            own = [life for life in lives.values() if life.client == client]
            if not own:
                return self._open(client)
            drawn = self._draws.choice(self._possible(client, own))()
            if drawn is not None:
                return drawn

    def _possible(self, client: int, own: list[Life]) -> list[_Draw]:
        draws: list[_Draw] = []
        if len(own) < _MOST_LIVES:
            draws += [lambda: self._open(client)] * 2
        active = [life for life in own if not life.rests]
        draws += [lambda: self._prefill(active)] * 4 + [lambda: self._decode(active)] * 4
        draws += [lambda: self._of("preempt", active)] * 2
        draws += [lambda: self._of("resume", [life for life in own if life.rests])] * 4
        draws += [lambda: self._truncate(active), lambda: self._of("close", own)]
        draws += [lambda: self._fork(active)] if len(own) < _MOST_LIVES else []
        return draws

    def _open(self, client: int) -> Operation:
        draws = self._draws
        return {
            "do": "open",
            "client": client,
            "life": self._next_number(),
            "text": draw_text(draws),
            "tenant": draws.choice(TENANTS),
            "max_new_tokens": draws.randint(1, _MOST_NEW_TOKENS),
        }

    def _prefill(self, active: Iterable[Life]) -> Operation | None:
        life = self._one([life for life in active if not life.is_prefilled])
        if life is None:
            return None
        rows = min(self._draws.randint(1, 250), life.prompt - life.length)
        return {"do": "prefill", "life": life.number, "rows": rows}

    def _decode(self, active: Iterable[Life]) -> Operation | None:
        ready = [life for life in active if life.is_prefilled and 0 < life.length < life.admitted]
        if not ready:
            return None
        chosen = self._draws.sample(ready, self._draws.randint(1, len(ready)))
        steps = min(life.admitted - life.length for life in chosen)
        steps = min(steps, self._draws.choice((1, 1, 2, 8)))
        return {"do": "decode", "lives": [life.number for life in chosen], "steps": steps}

    def _fork(self, active: Iterable[Life]) -> Operation | None:
        life = self._one([life for life in active if life.length])
        if life is None:
            return None
        length = self._length(life)
        new = self._draws.randint(1, _MOST_NEW_TOKENS)
        child = self._next_number()
        return {
            "do": "fork",
            "life": life.number,
            "child": child,
            "length": length,
            "max_new_tokens": new,
        }

    def _truncate(self, active: Iterable[Life]) -> Operation | None:
        life = self._one([life for life in active if life.length])
        if life is None:
            return None
        length = max(self._length(life), life.length - self._draws.choice((1, 3, 100)))
        is_same = self._draws.randrange(2) == 0
        number = self._next_number()
        return {
            "do": "truncate",
            "life": life.number,
            "length": length,
            "branch": number,
            "goes_on_as_before": is_same,
        }

    def _of(self, name: str, lives: list[Life]) -> Operation | None:
        life = self._one(lives)
        return None if life is None else {"do": name, "life": life.number}

    def _one(self, lives: list[Life]) -> Life | None:
        return self._draws.choice(lives) if lives else None

    def _length(self, life: Life) -> int:
        """Anywhere, or at the end of a page."""
        length = self._draws.randint(1, life.length)
        return max(1, length // 64 * 64) if self._draws.randrange(3) == 0 else length

    def _next_number(self) -> int:
        self._number += 1
        return self._number
