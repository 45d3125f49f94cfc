"""The namespace LEDGER, for fault tests: it keeps what really happened in a Valkey of its own, `LEDGER_TRUTH`.

There no fault reaches: `ran:{name}`, by which replicas a write with that name was run; `number:{uid}`, the source that
the listener follows, whose steps are told on the channel `grown`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Literal

from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from callboard import Event, Listener, Service, User, event_id, hookimpl, listener, method
from callboard.events.hub import Hub
from callboard.fleet.attendance import Attendance
from callboard.fleet.leases import Lease
from callboard.fleet.supervisor import Supervisor

GROWN = "grown"


class Ledger(Service):
    """Every write leaves a trace."""

    namespace = "LEDGER"

    def __init__(self) -> None:
        self.feeds: dict[str, set[asyncio.Queue[int]]] = defaultdict(set)

    async def open(self) -> None:
        for protection in filter(None, self.host.environ.get("LEDGER_WITHOUT", "").split(",")):
            _PROTECTIONS[protection]()
        url = self.host.environ["LEDGER_TRUTH"]
        self.truth = Redis.from_url(url, decode_responses=True)
        self._blocking_truth = BlockingRedis.from_url(url, decode_responses=True)
        self._grown = self.truth.pubsub(ignore_subscribe_messages=True)
        await self._grown.subscribe(GROWN)
        self._following = asyncio.create_task(self._follow(), name="ledger: source")

    async def close(self) -> None:
        self._following.cancel()
        await asyncio.wait({self._following})
        await self._grown.aclose()  # type: ignore[no-untyped-call]
        await self.truth.aclose()
        self._blocking_truth.close()

    async def _follow(self) -> None:
        async for message in self._grown.listen():
            uid, _, number = message["data"].rpartition(" ")
            for feed in self.feeds.get(uid, ()):
                feed.put_nowait(int(number))

    @method(effect="write")
    async def append(self, name: str, hold_s: float = 0.0) -> int:
        """A plain write: the number of this run of `name`; it takes `hold_s`."""
        run = await self.truth.rpush(f"ran:{name}", self.host.settings.replica_name())
        await asyncio.sleep(hold_s)
        return int(run)

    @method(effect="write", retry_safe=True)
    async def put(self, name: str, value: int, hold_s: float = 0.0) -> int:
        """A retry-safe write: `value`, which `name` has from then on."""
        await self.truth.rpush(f"ran:{name}", self.host.settings.replica_name())
        await self.truth.set(f"value:{name}", value)
        await asyncio.sleep(hold_s)
        return value

    @method(effect="read")
    async def read(self, name: str) -> int | None:
        """What `put` has stored last."""
        value = await self.truth.get(f"value:{name}")
        return None if value is None else int(value)

    @method(effect="read")
    async def wait(self, seconds: float) -> float:
        """Takes its time, on the loop."""
        await asyncio.sleep(seconds)
        return seconds

    @method(effect="read")
    def block(self, seconds: float) -> float:
        """Takes its time, on a thread."""
        time.sleep(seconds)
        return seconds

    @method(effect="write")
    def block_write(self, name: str, seconds: float) -> int:
        """`append` on a thread."""
        run = self._blocking_truth.rpush(f"ran:{name}", self.host.settings.replica_name())
        time.sleep(seconds)
        return int(run)

    @method(effect="write")
    async def notify(self, uid: str, n: int) -> int:
        """Publishes `count.told` to the user."""
        await self.context.publish(Event(type="count.told", uid=uid, payload={"n": n}))
        return n

    @method(effect="write")
    async def say(self, uid: str, text: str) -> str:
        """Publishes `count.said` to the user, and returns the text."""
        await self.context.publish(Event(type="count.said", uid=uid, payload={"text": text}))
        return text

    @method(effect="write")
    async def fail(self, text: str, how: Literal["plainly", "chained", "exit", "thread", "task", "callback"]) -> None:
        """Fails, now or a moment later, with the text in the exception's."""
        if how == "thread":
            threading.Thread(target=_fail, args=(text,)).start()
        elif how == "task":
            asyncio.create_task(_fail_soon(text)).add_done_callback(lambda _: None)
        elif how == "callback":
            asyncio.get_running_loop().call_soon(_fail, text)
        elif how == "exit":
            raise SystemExit(text)
        elif how == "chained":
            try:
                _fail(text)
            except ValueError as error:
                raise OSError(2, text, text) from error
        else:
            _fail(text)

    @method(effect="read")
    async def log_it(self, text: str) -> None:
        """A record with the text in every place that a plugin could put it."""
        self.log.warning("task_failed", task=text, nested={text: [text, {text: text}]}, **{text[:200]: text})

    @method(effect="write", retry_safe=True)
    async def announce(self, uid: str, n: int) -> int:
        """`notify`, which may be run again: its event keeps its id."""
        return await self.notify(uid, n)

    @method(effect="read")
    async def stall(self, seconds: float) -> float:
        """Blocks the loop, as no method should."""
        time.sleep(seconds)
        return seconds

    @method(effect="read")
    async def whoami(self) -> str:
        """The name of the replica that answers."""
        return self.host.settings.replica_name()

    @listener(name="numbers")
    class Numbers(Listener["Ledger"]):
        """A user's number: `count.sync` tells it, `count.add` each step."""

        async def snapshot(self, user: User) -> list[Event]:
            number = await self.service.truth.get(f"number:{user.uid}")
            return [Event(type="count.sync", uid=user.uid, payload={"n": int(number or 0)})]

        async def changes(self, user: User) -> AsyncIterator[Event]:
            feed: asyncio.Queue[int] = asyncio.Queue()
            self.service.feeds[user.uid].add(feed)
            try:
                while True:
                    number = await feed.get()
                    yield Event(
                        id=event_id("number", user.uid, number), type="count.add", uid=user.uid, payload={"n": number}
                    )
            finally:
                self.service.feeds[user.uid].discard(feed)
                if not self.service.feeds[user.uid]:
                    del self.service.feeds[user.uid]


def _fail(text: str) -> None:
    raise ValueError(text)


async def _fail_soon(text: str) -> None:
    _fail(text)


def _never_mute() -> None:
    """Whoever has run a listener once goes on, whatever becomes of the lease."""
    renewed = Supervisor.renewed

    def deaf(self: Supervisor, lease: Lease, held: bool, asked_at: float) -> None:
        renewed(self, lease, True, asked_at)

    Lease.is_firm = lambda self: True  # type: ignore[method-assign]
    Supervisor.renewed = deaf  # type: ignore[method-assign]


def _heed_no_fence() -> None:
    Hub._is_stale = lambda self, key, fence: False  # type: ignore[method-assign]


def _never_look() -> None:
    async def nothing(self: Attendance) -> None: ...

    Attendance.scan = nothing  # type: ignore[method-assign]


_PROTECTIONS = {"mute": _never_mute, "fences": _heed_no_fence, "scan": _never_look}
"""What a replica of a control goes without: `LEDGER_WITHOUT=mute,fences`."""


@hookimpl
def register_services() -> Sequence[type[Service]]:
    return [Ledger]
