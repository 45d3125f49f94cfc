"""What is broken, at random, one thing after the other; each has an end, and time to recover after it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from faults.fleet import Fleet, Replica
from faults.soak.history import Began, Ended, History, Stopped
from faults.soak.load import Load
from redis.asyncio import Redis

from callboard_local import FaultProxy, ValkeyServer

_REPLIES = (b"EVAL", b"PUBLISH", b"ZADD", b"HSET")


class Nemesis:
    """`proxies` stand before Redis, one for each replica, in their order. The last replica's process is never ended."""

    def __init__(
        self,
        fleet: Fleet,
        redis: ValkeyServer,
        proxies: Sequence[FaultProxy],
        load: Load,
        history: History,
        rng: random.Random,
        *,
        length: float = 1.0,
        rest_s: tuple[float, float] = (10.0, 45.0),
        only: Sequence[str] = (),
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`length` scales how long faults last; `rest_s` is the range of the time between two.

        `only` names the faults to choose from; all of them when it is empty.
        """
        self._fleet = fleet
        self._redis = redis
        self._proxies = proxies
        self._load = load
        self._history = history
        self._rng = rng
        self._length = length
        self._rest_s = rest_s
        self._report = report
        faults = {
            "a replica killed": self.kill,
            "a replica stopped": self.pause,
            "a replica replaced": self.replace,
            "Redis killed, back empty": self.lose_redis,
            "Redis stopped": self.pause_redis,
            "a slow network": self.delay,
            "a black hole": self.black_hole,
            "half-open connections": self.lose_connections,
            "connections reset": self.reset,
            "connections closed by Redis' side": self.half_close,
            "connections refused": self.refuse,
            "a reply lost": self.drop_reply,
            "subscribers cut off": self.cut_subscribers,
            "all clients gone at once": self.drop_clients,
        }
        self._faults = {name: faults[name] for name in only or faults}

    async def run(self, until: float) -> None:
        """Break things until the loop's clock says `until`: each kind as often as any other, in random order."""
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._rng.uniform(*self._rest_s) / 2)
        while True:
            for name in self._rng.sample(list(self._faults), len(self._faults)):
                if clock() >= until:
                    return
                self._load.check()
                await self._faults[name]()
                await asyncio.sleep(self._rng.uniform(*self._rest_s))

    async def kill(self) -> None:
        replica = self._victim()
        async with self._broken("a replica killed", replica.name):
            await replica.kill()
            await self._hold(0.5, 5)
            await replica.start()

    async def pause(self) -> None:
        """For up to twice a lease."""
        replica = self._rng.choice(self._fleet.replicas)
        async with self._broken("a replica stopped", replica.name):
            replica.pause()
            await self._hold(3, 30)
            replica.resume()

    async def replace(self) -> None:
        """As a rolling deployment does."""
        replica = self._victim()
        async with self._broken("a replica replaced", replica.name):
            status = await replica.stop()
            self._history.add(Stopped(t=self._history.now(), replica=replica.name, status=status))
            await replica.start()

    async def lose_redis(self) -> None:
        async with self._broken("Redis killed, back empty", "Redis", forgets=True):
            await self._redis.kill()
            await self._hold(0.5, 5)
            await self._redis.restart()

    async def pause_redis(self) -> None:
        async with self._broken("Redis stopped", "Redis"):
            self._redis.pause()
            await self._hold(2, 15)
            self._redis.resume()

    async def delay(self) -> None:
        name, proxy = self._network()
        async with self._broken("a slow network", name):
            proxy.delay_s = self._rng.uniform(0.05, 0.5)
            proxy.jitter_s = proxy.delay_s / 2
            await self._hold(5, 20)
            proxy.heal()

    async def black_hole(self) -> None:
        name, proxy = self._network()
        async with self._broken("a black hole", name):
            proxy.black_hole()
            await self._hold(5, 25)
            proxy.heal()

    async def lose_connections(self) -> None:
        name, proxy = self._network()
        async with self._broken("half-open connections", name):
            proxy.lose()
            await self._hold(10, 15)

    async def reset(self) -> None:
        name, proxy = self._network()
        async with self._broken("connections reset", name):
            proxy.reset()
            await self._hold(0.5, 2)

    async def half_close(self) -> None:
        name, proxy = self._network()
        async with self._broken("connections closed by Redis' side", name):
            proxy.half_close()
            await self._hold(0.5, 2)

    async def refuse(self) -> None:
        name, proxy = self._network()
        async with self._broken("connections refused", name):
            proxy.refuse()
            proxy.reset()
            await self._hold(2, 12)
            await proxy.accept()

    async def drop_reply(self) -> None:
        name, proxy = self._network()
        async with self._broken("a reply lost", name):
            proxy.drop_reply(self._rng.choice(_REPLIES))
            await self._hold(1, 4)
            proxy.heal()

    async def cut_subscribers(self) -> None:
        async with self._broken("subscribers cut off", "Redis"), Redis.from_url(self._redis.url) as client:
            await client.client_kill_filter(_type="pubsub")
            await self._hold(0.5, 2)

    async def drop_clients(self) -> None:
        async with self._broken("all clients gone at once", "clients"):
            for screen in list(self._load.screens):
                screen.drop()
            await self._hold(0.5, 2)

    def _victim(self) -> Replica:
        return self._rng.choice(self._fleet.replicas[:-1])

    def _network(self) -> tuple[str, FaultProxy]:
        at = self._rng.randrange(len(self._proxies))
        return self._fleet.replicas[at].name, self._proxies[at]

    async def _hold(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._rng.uniform(least_s, most_s) * self._length)

    @asynccontextmanager
    async def _broken(self, fault: str, target: str, *, forgets: bool = False) -> AsyncIterator[None]:
        began = self._history.now()
        self._history.add(Began(t=began, fault=fault, target=target, forgets=forgets))
        yield
        ended = self._history.now()
        self._history.add(Ended(t=ended, fault=fault, target=target))
        self._report(f"{began:7.1f} s  {fault} ({target}), for {ended - began:.1f} s")
