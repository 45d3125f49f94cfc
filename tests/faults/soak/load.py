"""Mixed calls through the load balancer, and users whose screens come and go; all of it goes into the history."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import httpx
from faults.fleet import TOKEN, Fleet
from faults.page import Page
from faults.soak.calls import PASSING, WRITES
from faults.soak.history import Attempt, Closed, Grown, Heard, History, Invoke, Opened

_TIMEOUT_MS = 5_000
_GIVE_UP_S = 8.0
_ATTEMPTS = 9  # long enough to outlast the lease of a call whose replica died, 30 s
_LONGEST_PAUSE_S = 4.0


class Screen(Page):
    """A page that keeps a record of what it hears, and nothing else."""

    def __init__(self, number: int, uid: str, url: Callable[[], str], history: History) -> None:
        super().__init__(uid, url, longest_pause_s=2.0)
        self.screen = number
        self._history = history

    def opened(self) -> None:
        super().opened()
        self._history.add(Opened(t=self._history.now(), screen=self.screen, user=self.uid))

    def ended(self, code: int | None) -> None:
        super().ended(code)
        self._history.add(Closed(t=self._history.now(), screen=self.screen, code=code or 1000))

    def take(self, event: dict[str, Any]) -> None:
        super().take(event)
        self.events.clear()
        self._history.add(
            Heard(
                t=self._history.now(), screen=self.screen, type=event["type"], id=event["id"], uid=event["uid"],
                n=event["payload"]["n"], fence=event.get("fence"), listener=event.get("listener"),
            )
        )  # fmt: skip


class Load:
    """`async with Load(…) as load: … await load.stop()`: nobody calls any more; the screens stay to the block's end.

    Each user has a screen that stays, and every other user one that comes and goes; users without a screen come and go
    whole. `callers` is how many calls are under way at most, `slow` the share of them that take long. `keyed=False`:
    a control, in which a retry is a new call.
    """

    def __init__(
        self,
        fleet: Fleet,
        history: History,
        url: str,
        ws_url: str,
        rng: random.Random,
        *,
        users: int = 24,
        callers: int = 10,
        think_s: float = 0.3,
        slow: float = 0.25,
        keyed: bool = True,
    ) -> None:
        self.users = [f"user{number}" for number in range(users)]
        self.screens: list[Screen] = []
        self.ops: list[str] = []
        """The names of all writes."""
        self._fleet = fleet
        self._history = history
        self._ws_url = ws_url
        self._rng = rng
        self._callers = callers
        self._think_s = think_s
        self._slow = slow
        self._keyed = keyed
        self._numbers = itertools.count(1)
        self._stopping = asyncio.Event()
        self._left = asyncio.Event()
        self._calling: list[asyncio.Task[None]] = []
        self._looking: list[asyncio.Task[None]] = []
        self._client = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=_GIVE_UP_S,
            limits=httpx.Limits(max_connections=None),
        )  # fmt: skip

    async def __aenter__(self) -> Load:
        staying = self.users[: len(self.users) * 2 // 3]
        coming = self.users[len(self.users) // 2 :]
        self._looking = [
            *(asyncio.create_task(self._stay(user), name=f"screen of {user}") for user in staying),
            *(asyncio.create_task(self._come_and_go(user), name=f"visits of {user}") for user in coming),
        ]
        self._calling = [
            *(asyncio.create_task(self._every(self._call_something), name=f"caller {n}") for n in range(self._callers)),
            *(asyncio.create_task(self._every(self._tell, user), name=f"told to {user}") for user in self.users[::3]),
            asyncio.create_task(self._every(self._grow), name="source"),
        ]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._calling + self._looking:
            task.cancel()
        await asyncio.wait(self._calling + self._looking)
        await self._client.aclose()

    def check(self) -> None:
        """Raise what one of its tasks has died of."""
        for task in self._calling + self._looking:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """No new calls, no growth, and every user comes and stays; returns when the calls under way are over."""
        self._stopping.set()
        await asyncio.gather(*self._calling)

    async def leave(self) -> None:
        """All screens go."""
        self._left.set()
        await asyncio.gather(*self._looking)

    async def _every(self, act: Callable[..., Awaitable[None]], *args: Any) -> None:
        while not self._stopping.is_set():
            await act(*args)
            await self._rest(self._rng.expovariate(1 / self._think_s))

    async def _rest(self, seconds: float, until: asyncio.Event | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for((until or self._stopping).wait(), seconds)

    # -- calls

    async def _call_something(self) -> None:
        user, kind = self._rng.choice(self.users), self._rng.random()
        hold_s = self._rng.uniform(0.2, 3) if self._rng.random() < self._slow else 0.0
        if kind < 0.45:
            await self.call("LEDGER.append", user, keyed=True, hold_s=hold_s)
        elif kind < 0.65:
            n = next(self._numbers)
            name, written = await self.call("LEDGER.put", user, n=n, keyed=True, value=n, hold_s=hold_s)
            if written:
                await self.call("LEDGER.read", user, n=n, name=name)
        elif kind < 0.75:
            await self.call("LEDGER.block_write", user, keyed=True, seconds=self._rng.uniform(0, 0.2))
        elif kind < 0.85:
            await self.call("LEDGER.block", user, seconds=self._rng.uniform(0, 0.1))
        else:
            await self.call("LEDGER.wait", user, seconds=hold_s)

    async def _tell(self, user: str) -> None:
        """One after the other to each user, so that their order is promised."""
        n = next(self._numbers)
        await self.call("LEDGER.notify", user, n=n, keyed=True, args=[user, n])
        await self._rest(self._rng.expovariate(1 / (4 * self._think_s)))

    async def _grow(self) -> None:
        user = self._rng.choice(self.users)
        n = await self._fleet.grow(user)
        self._history.add(Grown(t=self._history.now(), user=user, n=n))

    async def call(
        self, method: str, user: str, *, n: int = 0, keyed: bool = False, args: Sequence[Any] = (), **kwargs: Any
    ) -> tuple[str, bool]:
        """One call with its retries; its name, and whether it was answered. One in ten is asked again afterwards."""
        op = f"{method.partition('.')[2]}-{next(self._numbers)}"
        self._history.add(Invoke(t=self._history.now(), op=op, method=method, user=user, n=n))
        call = {"method": method, "user_id": user, "timeout_ms": _TIMEOUT_MS, "args": args, "kwargs": kwargs}
        if method in WRITES:
            self.ops.append(op)
            kwargs["name"] = op
        if keyed := keyed and self._keyed:
            call["idempotency_key"] = op
        answered = False
        for number in range(_ATTEMPTS):
            attempt = await self._send(op, call)
            answered = attempt.code == "OK"
            if answered or attempt.unknown or attempt.code not in PASSING:
                break
            await asyncio.sleep(self._rng.uniform(0, min(_LONGEST_PAUSE_S, 0.25 * 2**number)))
        if keyed and self._rng.random() < 0.1:
            await asyncio.sleep(self._rng.uniform(0, 3))
            await self._send(op, call)
        return op, answered

    async def _send(self, op: str, call: dict[str, Any]) -> Attempt:
        began = self._history.now()
        code, data, replayed, unknown = "LOST", None, False, False
        try:
            answer = await self._client.post("/rpc", json=call)
        except httpx.TransportError:
            pass  # no answer
        else:
            replayed = answer.headers.get("idempotent-replayed") == "true"
            code, data, unknown = _read(answer)
        attempt = Attempt(
            t=began, op=op, end=self._history.now(), code=code, data=data, replayed=replayed, unknown=unknown
        )
        self._history.add(attempt)
        return attempt

    # -- screens

    async def _stay(self, user: str) -> None:
        async with self._screen(user):
            await self._left.wait()

    async def _come_and_go(self, user: str) -> None:
        while not self._left.is_set():
            async with self._screen(user):
                await self._rest(self._rng.uniform(5, 40), self._left)
                if self._stopping.is_set():
                    await self._left.wait()
            await self._rest(self._rng.uniform(0, 15))

    @contextlib.asynccontextmanager
    async def _screen(self, user: str) -> AsyncIterator[Screen]:
        async with Screen(next(self._numbers), user, lambda: self._ws_url, self._history) as screen:
            self.screens.append(screen)
            try:
                yield screen
            finally:
                self.screens.remove(screen)


def _read(answer: httpx.Response) -> tuple[str, int | None, bool]:
    """Code, data where it is a whole number, and whether the outcome is said to be unknown."""
    try:
        reply = answer.json()
    except json.JSONDecodeError:
        return f"HTTP {answer.status_code}", None, False
    if reply["ok"]:
        return "OK", reply["data"] if isinstance(reply["data"], int) else None, False
    error = reply["error"]
    return error["code"], None, error.get("details", {}).get("outcome") == "unknown"
