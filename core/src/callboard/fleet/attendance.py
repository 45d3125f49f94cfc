"""Who is wanted: which users' listeners, and which open threads', this replica runs, takes over and hands over.

Of the live replicas that declare a listener, the one that rendezvous hashing prefers for a user should run it. Whoever
sees the user come tells that one, whoever lets a listener go tells the next one, and each looks at all online users at
every scan besides: what it should run it takes when it is free, what another should run only if it was free at the scan
before, too. If that other one lives and had let the lease expire, its listener fails: it is not handed back to that
replica. If it merely did not take it, it may do so a minute later.

What another replica should run, because it came, say, is handed to it, some at a time: let go, told, taken, and begun
with a sync. A thread is wanted by the replicas that have it open (see `Threads`) and is the first one's that takes it;
the others try again when they are told that it was let go, and at every scan.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from callboard.fleet.control import Control, Told
from callboard.fleet.declared import Declared, Instance
from callboard.fleet.members import Members
from callboard.fleet.presence import Presence
from callboard.fleet.roster import Roster, Wanted, chunks
from callboard.fleet.threads import Threads
from callboard.service import Thread, User

_PAGE = 300
_HANDED_OVER_A_TURN = 100
_LOOK_EVERY_S = 30.0


class Attendance:
    """Each of its coroutines is one turn of a loop, for `Listeners` to repeat. Unavailable: the next turn does better.

    `declared` is the fleet's, by name; it is looked into at every turn.
    """

    def __init__(
        self,
        declared: Mapping[str, Declared],
        members: Members,
        control: Control,
        presence: Presence,
        roster: Roster,
        threads: Threads,
        *,
        grace_s: float,
    ) -> None:
        self._declared = declared
        self._members = members
        self._control = control
        self._presence = presence
        self._roster = roster
        self._threads = threads
        self._grace_s = grace_s
        self._gone_since: dict[str, float] = {}
        self._came: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._awaited = asyncio.Event()
        self._free_before: set[Instance] = set()
        self._misplaced: list[Instance] = []
        self._looked_at = -math.inf

    def per(self, *, thread: bool) -> list[Declared]:
        return [declared for declared in self._declared.values() if declared.per_thread is thread]

    # -- what is noticed ----------------------------------------------------------------------------------------------

    async def noticed(self, uid: str, online: bool) -> None:
        """Presence saw the user come, or go, or be given other companies, on this replica."""
        if not online:
            self._gone_since.setdefault(uid, time.monotonic())
            return
        self._came.add(uid)
        self._awaited.set()

    def told(self, message: Told) -> None:
        """Another replica asks, or is gone."""
        if message.left:
            self._members.has_left(message.by)
        self._threads.stir(message.threads)
        self._see_to((uid, name) for name, uids in message.users.items() for uid in uids)

    async def released(self, instances: Sequence[Instance]) -> None:
        """This replica let go of these: whoever may run them now learns of it at once. Unavailable."""
        places = {instance.uid: None for instance in instances if instance.place}
        self._threads.stir(places)  # opened again meanwhile
        if places:
            await self._control.let_go(list(places))
        await self._ask((instance.uid, instance.name) for instance in instances if not instance.place)

    async def _ask(self, wanted: Iterable[tuple[str, str]]) -> None:
        """Have these users, each with a listener's name, attended to by the replicas that should run them."""
        of: dict[str, dict[str, list[str]]] = {}
        for uid, name in wanted:
            if (replica := self._members.preferred(uid, name)) is not None:
                of.setdefault(replica, {}).setdefault(name, []).append(uid)
        for name, uids in of.pop(self._members.me.id, {}).items():
            self._see_to((uid, name) for uid in uids)
        for replica, users in of.items():
            await self._control.attend(replica, users)

    def _see_to(self, wanted: Iterable[tuple[str, str]]) -> None:
        self._told.update((uid, name) for uid, name in wanted if name in self._declared)
        if self._told:
            self._awaited.set()

    # -- users --------------------------------------------------------------------------------------------------------

    async def attend(self) -> None:
        """Wait for users who come online here, or of whom others tell; who comes meanwhile is seen to together."""
        await self._awaited.wait()
        self._awaited.clear()
        came, self._came = list(self._came), set()
        told, self._told = self._told, set()
        for some in chunks(came, _PAGE):
            await self._ask((uid, name) for uid in some for name in self._members.listeners())
        told, self._told = told | self._told, set()
        for some in chunks(list({*came, *(uid for uid, _ in told)}), _PAGE):
            users = await self._presence.online_among(some)
            for user in users.values():
                self._is_online(user)
            await self._roster.take_all(
                [
                    Wanted(user, declared)
                    for user in users.values()
                    for declared in self.per(thread=False)
                    if (user.uid, declared.name) in told
                ]
            )
        if not all(self._is_ours(uid, name) for uid, name in told):
            self._members.changed.set()  # as who told it sees the replicas, who may know more, or less: see to it again

    async def scan(self) -> None:
        """Look for online users, and threads open here, whose listeners do not run here; most are another replica's."""
        await self._attend_threads(self._threads.users())
        free: set[Instance] = set()
        cursor = None
        while declared := self.per(thread=False):
            page = await self._presence.online_users(cursor, _PAGE)
            instances = [one.instance(uid) for uid in page.users for one in declared]
            free |= await self._take_lacking([one for one in instances if one not in self._roster.running])
            if (cursor := page.cursor) is None:
                break
        self._free_before = free

    async def _take_lacking(self, lacking: Sequence[Instance]) -> set[Instance]:
        """Take those that this replica should run, or that nobody did for long; which of the others are free."""
        instead_of: dict[Instance, str | None] = dict.fromkeys(one for one in lacking if self._is_ours(*one[:2]))
        free = await self._roster.free([one for one in lacking if one not in instead_of])
        for instance in free & self._free_before:
            instead_of[instance] = self._members.preferred(instance.uid, instance.name)
        users = await self._presence.online_among({one.uid for one in instead_of})
        for user in users.values():
            self._is_online(user)
        await self._roster.take_all(
            [
                Wanted(users[one.uid], self._declared[one.name], instead_of=other)
                for one, other in instead_of.items()
                if one.uid in users
            ]
        )
        return free

    def _is_ours(self, uid: str, name: str) -> bool:
        return self._members.preferred(uid, name) in (self._members.me.id, None)

    def _is_online(self, user: User) -> None:
        self._gone_since.pop(user.uid, None)
        for supervisor in self._roster.of(user.uid).values():
            if supervisor.user != user:
                supervisor.restart(user)

    async def check(self) -> None:
        """See which threads are still open, and who is still online."""
        self._check_threads()
        uids = list({instance.uid for instance in self._roster.running})
        self._gone_since = {uid: self._gone_since[uid] for uid in uids if uid in self._gone_since}
        for some in chunks(uids, _PAGE):
            for sessions, user in (await self._presence.access(some)).values():
                if sessions:
                    self._is_online(user)
                else:
                    self._is_offline(user)

    def _is_offline(self, user: User) -> None:
        running = self._roster.of(user.uid)
        for instance, supervisor in running.items():
            if instance.place and supervisor.user != user:
                supervisor.restart(user)
        if time.monotonic() - self._gone_since.setdefault(user.uid, time.monotonic()) >= self._grace_s:
            del self._gone_since[user.uid]
            self._roster.stop(instance for instance in running if not instance.place)

    # -- handing over -------------------------------------------------------------------------------------------------

    async def hand_over(self) -> None:
        """Let some of what another replica should run go; looked for when replicas came or went, and now and then."""
        if self._members.changed.is_set() or time.monotonic() - self._looked_at > _LOOK_EVERY_S:
            self._members.changed.clear()
            self._looked_at = time.monotonic()
            self._misplaced = await self._find_misplaced()
        some, self._misplaced = self._misplaced[:_HANDED_OVER_A_TURN], self._misplaced[_HANDED_OVER_A_TURN:]
        self._roster.stop(instance for instance in some if self._is_misplaced(instance))

    async def _find_misplaced(self) -> list[Instance]:
        """In random order, for several replicas may look at the same time; those of one user together."""
        uids = list({instance.uid for instance in self._roster.running})
        random.shuffle(uids)
        misplaced: list[Instance] = []
        for some in chunks(uids, _PAGE):
            misplaced += [one for uid in some for one in self._roster.of(uid) if self._is_misplaced(one)]
            await asyncio.sleep(0)
        return misplaced

    def _is_misplaced(self, instance: Instance) -> bool:
        running = self._roster.running.get(instance)
        if running is None or instance.place:
            return False
        preferred = self._members.preferred(instance.uid, instance.name)
        if preferred == running.instead_of and time.monotonic() < running.kept_until:
            return False
        return preferred not in (None, self._members.me.id)

    # -- threads ------------------------------------------------------------------------------------------------------

    async def attend_threads(self) -> None:
        """Wait for threads to be opened here, or let go elsewhere."""
        await self._attend_threads(await self._threads.stirred())

    async def _attend_threads(self, uids: Collection[str]) -> None:
        """Have run what the threads of these users that are open here lack, in the mode that counts."""
        declared = self.per(thread=True)
        lacking = {uid: [thread for thread in self._threads.of(uid) if self._lacks(uid, thread)] for uid in uids}
        lacking = {uid: threads for uid, threads in lacking.items() if threads}
        for some in chunks(list(lacking), _PAGE):
            users = await self._presence.access(some)
            await self._roster.take_all(
                [Wanted(users[uid][1], one, thread) for uid in some for thread in lacking[uid] for one in declared]
            )
        for uid in uids:
            for instance, supervisor in self._roster.of(uid).items():
                thread = self._threads.get(uid, instance.place) if instance.place else None
                if thread is not None and thread != supervisor.thread:
                    supervisor.restart(thread=thread)

    def _lacks(self, uid: str, thread: Thread) -> bool:
        return any(one.instance(uid, thread) not in self._roster.running for one in self.per(thread=True))

    def _check_threads(self) -> None:
        self._threads.forget(self._grace_s)
        self._roster.stop(
            instance
            for instance in self._roster.running
            if instance.place and self._threads.get(instance.uid, instance.place) is None
        )
