"""Sessions, and who is online.

A user is online while any of their sessions is alive. A session lives for the TTL after it was registered and after
each heartbeat; nothing revives one that is over, it is registered anew.

A step that touches several slots of a cluster is ordered so that a crash in between leaves at worst a session that
ends by its TTL, or an index entry that the sweep removes. Every transition is decided inside one script on the user's
own keys, so that of several replicas exactly one reports it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from callboard.connections import Connections, redis_errors
from callboard.errors import AlreadyExists, InvalidArgs, Unavailable
from callboard.fleet import presence_lua as lua
from callboard.fleet import scripts
from callboard.fleet.presence_lua import ONLINE_EXPIRY, ONLINE_NAMES, UserKeys, session_key
from callboard.fleet.sessions import (
    Page,
    Session,
    UserPresence,
    check_route,
    decode_companies,
    encode_companies,
    iso,
)
from callboard.fleet.tasks import heed_cancellation
from callboard.fleet.watchers import Callback, Watchers
from callboard.messages import check_identifier
from callboard.service import User
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

if TYPE_CHECKING:
    from types import TracebackType

MAX_SESSIONS = 100
"""Sessions a user may have; one more drops the one that has been silent longest."""
MAX_PAGE = 1_000
_SWEEP_BATCH = 200
_SWEEP_BATCHES = 5
_INDEX = (ONLINE_EXPIRY, ONLINE_NAMES)


class Presence:
    """Every call raises InvalidArgs for an id that is none, and Unavailable without Redis.

    `ttl_s` replaces the settings' TTL and `sweep_interval_s` is how often, in seconds, this replica looks for users
    whose sessions are over (the replicas share the work).
    """

    def __init__(
        self,
        settings: Settings,
        connections: Connections,
        telemetry: Telemetry,
        *,
        ttl_s: float | None = None,
        sweep_interval_s: float = 3.0,
    ) -> None:
        self.ttl_s = settings.ttl_s if ttl_s is None else ttl_s
        self._connections = connections
        self._telemetry = telemetry
        self._sweep_interval_s = sweep_interval_s
        self._watchers = Watchers(telemetry)
        self._sweeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watchers.start()
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="presence sweeper")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        await self._watchers.stop()

    def watch(self, callback: Callback) -> None:
        """Have `await callback(uid, online)` called for what this replica sees of a user's coming and going.

        True: the user came online, or is online and their authorized companies were replaced. False: the user's last
        session ended. Calls for one callback come one after another; one that fails is logged and the next is made;
        one that falls behind is told only a user's latest state.
        """
        self._watchers.add(callback)

    # -- sessions -----------------------------------------------------------------------------------------------------

    async def register(
        self,
        uid: str,
        session_id: str,
        *,
        backend_route: str | None = None,
        authorized_companies_ids: Sequence[str] | None = None,
        move: bool = True,
        holder: str = "",
    ) -> bool:
        """Begin a session, or renew it. True when the user came online by this.

        A session id that another user has moves to this one; with `move` false that is AlreadyExists, and the other
        user keeps it. `authorized_companies_ids` replaces what the user may
        see, [] meaning nothing; None keeps what there was, also from an earlier visit (30 days). `holder`: whose the
        session is from now on, for `unregister`.
        """
        check_identifier(uid)
        check_identifier(session_id, "session_id")
        companies = encode_companies(authorized_companies_ids)
        route = check_route(backend_route)
        ttl_ms = self._ttl_ms()
        with redis_errors(self._connections):
            pipeline = self._pipeline()
            # Indexed before it begins, so that the sweep finds what a crash leaves; and after, in case it was swept
            # in between.
            pipeline.eval(lua.INDEX_ADD, 2, *_INDEX, uid, ttl_ms)
            pipeline.eval(lua.CLAIM_SESSION, 1, session_key(session_id), uid, ttl_ms, int(move))
            _, before = await pipeline.execute()
            if not move and before is not None and before.decode() != uid:
                await self._unindex(uid)
                raise AlreadyExists("This session is another user's.")
            came, changed = await self._run(
                lua.ENTER, UserKeys.of(uid), session_id, ttl_ms, route, companies, MAX_SESSIONS, holder
            )
            if came or changed:
                self._watchers.tell(uid, True)
            if before is not None and before.decode() != uid:
                await self._leave(before.decode(), session_id)
            await self._index(uid, ttl_ms)
        return bool(came)

    async def owner_of(self, session_id: str) -> str | None:
        """Whose session it is; None when there is no such session."""
        check_identifier(session_id, "session_id")
        with redis_errors(self._connections):
            owner: Any = await self._connections.commands.get(session_key(session_id))
        return None if owner is None else str(owner.decode())

    async def unregister(self, session_id: str, *, uid: str | None = None, holder: str = "") -> str | None:
        """End a session; the user's others live on. Returns the user, or None when there is no such session.

        With `uid`, only a session of that user's; with `holder`, not one that another has registered since.
        """
        check_identifier(session_id, "session_id")
        owner = await self.owner_of(session_id)
        if owner is None or uid not in (None, owner):
            return None
        with redis_errors(self._connections):
            alive = await self._leave(owner, session_id, holder)
            if alive is None:
                return None
            # Last, so that a caller who saw this fail half-way can ask again.
            await self._run(lua.FREE_SESSION, (session_key(session_id),), owner)
        return owner if alive else None

    async def heartbeat(self, session_id: str) -> bool:
        """Keep a session alive for another TTL. False when it is over: register it again."""
        check_identifier(session_id, "session_id")
        return not await self.heartbeat_many([session_id])

    async def heartbeat_many(self, session_ids: Iterable[str]) -> set[str]:
        """`heartbeat` for many sessions in three round trips at most; those that are over: register them again.

        Each round trip is one pipeline for all of them: a few hundred at a time take no other caller's turn for long.
        """
        session_ids = list(session_ids)
        owners = await self._owners(session_ids)
        alive = await self._touch([(owner, each) for each, owner in owners.items() if owner is not None])
        return set(session_ids) - {session_id for _, session_id in alive}

    async def keep_alive(self, sessions: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """`heartbeat_many` for pairs of user and session; those that are over, or another user's, are returned."""
        sessions = set(sessions)
        owners = await self._owners([session_id for _, session_id in sessions])
        return sessions - await self._touch([each for each in sessions if owners[each[1]] == each[0]])

    async def _owners(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        for session_id in session_ids:
            check_identifier(session_id, "session_id")
        if not session_ids:
            return {}
        with redis_errors(self._connections):
            pipeline = self._pipeline()
            for session_id in session_ids:
                pipeline.get(session_key(session_id))
            found = await pipeline.execute()
        return {each: owner and owner.decode() for each, owner in zip(session_ids, found, strict=True)}

    async def _touch(self, sessions: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Extend sessions, given with their users; those that are alive."""
        ttl_ms = self._ttl_ms()
        answers = await self._run_all(lua.TOUCH, [(UserKeys.of(uid), (session, ttl_ms)) for uid, session in sessions])
        alive = {each for each, yes in zip(sessions, answers, strict=True) if yes}
        if not alive:
            return set()
        with redis_errors(self._connections):
            extend = self._pipeline()
            for uid, session_id in alive:
                extend.pexpire(session_key(session_id), ttl_ms)
                extend.eval(lua.INDEX_ADD, 2, *_INDEX, uid, ttl_ms)
            indexed = (await extend.execute())[1::2]
            for (uid, _), anew in zip(alive, indexed, strict=True):
                if anew:
                    await self._index_unless_over(uid)
        return alive

    async def _leave(self, uid: str, session_id: str, holder: str = "") -> bool | None:
        """Take a session from a user; whether it was alive. None: it was not taken, another holds it."""
        answer = await self._run(lua.LEAVE, UserKeys.of(uid), session_id, holder)
        if answer is None:
            return None
        alive, offline = answer
        if offline:
            self._watchers.tell(uid, False)
            await self._unindex(uid)
        return bool(alive)

    # -- users --------------------------------------------------------------------------------------------------------

    async def get_user(self, uid: str) -> UserPresence | None:
        """The user's presence; None for one who has never been here, or not for 30 days."""
        expiries, record = await self._read(uid)
        if not expiries and not record:
            return None
        heartbeat = record.get("heartbeat")
        return UserPresence(
            uid,
            "online" if expiries else "offline",
            len(expiries),
            decode_companies(record.get("companies")),
            iso(int(heartbeat)) if heartbeat else None,
            int(self.ttl_s),
        )

    async def list_sessions(self, uid: str) -> list[Session]:
        """The user's sessions that are alive, the one that expires first at the head."""
        expiries, record = await self._read(uid)
        return [
            Session(
                session_id,
                uid,
                record.get(f"route:{session_id}"),
                iso(int(record.get(f"at:{session_id}", expiry))),
                iso(expiry),
            )
            for session_id, expiry in expiries.items()
        ]

    async def online_users(self, cursor: str | None = None, limit: int = 100) -> Page:
        """A page of at most `limit` (1 to 1,000) online users; `cursor` is the page's before."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidArgs(f"limit must be between 1 and {MAX_PAGE}")
        after = "-" if cursor is None else f"({check_identifier(cursor, 'cursor')}"
        with redis_errors(self._connections):
            following, users = await self._run(lua.INDEX_PAGE, _INDEX, after, limit)
        return Page([uid.decode() for uid in users], following.decode() or None)

    async def user(self, uid: str) -> User:
        """The user as listeners see them, online or not."""
        return (await self.access([uid]))[uid][1]

    async def online_among(self, uids: Iterable[str]) -> dict[str, User]:
        """Those of `uids` who are online, in one round trip."""
        return {uid: user for uid, (sessions, user) in (await self.access(uids)).items() if sessions}

    async def access(self, uids: Iterable[str]) -> dict[str, tuple[int, User]]:
        """How many sessions each user has, and the user as listeners see them, online or not; in one round trip."""
        uids = list(uids)
        answers = await self._run_all(lua.READ_ACCESS, [(UserKeys.of(check_identifier(uid)), ()) for uid in uids])
        found = {}
        for uid, (sessions, companies) in zip(uids, answers, strict=True):
            ids = decode_companies(companies.decode() if companies else None)
            found[uid] = (sessions, User(uid, None if ids is None else frozenset(ids)))
        return found

    async def _read(self, uid: str) -> tuple[dict[str, int], dict[str, str]]:
        check_identifier(uid)
        with redis_errors(self._connections):
            scored, fields = await self._run(lua.READ, UserKeys.of(uid))
        names = [text.decode() for text in fields]
        expiries = {scored[i].decode(): int(scored[i + 1]) for i in range(0, len(scored), 2)}
        return expiries, dict(zip(names[::2], names[1::2], strict=True))

    # -- the index of online users and its sweep ----------------------------------------------------------------------

    async def sweep(self) -> bool:
        """Report users whose last session is over, and mend the index; False when there was more than one go's worth.

        Runs by itself every `sweep_interval_s`.
        """
        for _ in range(_SWEEP_BATCHES):
            with redis_errors(self._connections):
                online, due = await self._run(lua.INDEX_DUE, _INDEX, _SWEEP_BATCH)
                self._telemetry.metrics.presence_users.set(online)
                answers = await self._run_all(lua.PURGE, [(UserKeys.of(uid.decode()), ()) for uid in due])
                for name, (offline, left_ms) in zip(due, answers, strict=True):
                    uid = name.decode()
                    if offline:
                        self._watchers.tell(uid, False)
                    if left_ms:
                        await self._index(uid, left_ms)
                    else:
                        await self._unindex(uid)
            if len(due) < _SWEEP_BATCH:
                return True
        return False

    async def _sweep_for_ever(self) -> None:
        done = True
        while True:
            if done:
                await asyncio.sleep(self._sweep_interval_s * random.uniform(0.8, 1.2))  # noqa: S311 - spreads replicas
            try:
                done = await self.sweep()
            except Unavailable:
                done = True  # connections reports the outage; sessions wait
            except Exception as error:  # noqa: BLE001 - a sweep that fails is tried again
                done = True
                self._telemetry.log.error("task_failed", task="presence sweep", **where_raised(error))
            heed_cancellation()

    async def _index(self, uid: str, left_ms: int) -> None:
        if await self._run(lua.INDEX_ADD, _INDEX, uid, left_ms):
            await self._index_unless_over(uid)

    async def _index_unless_over(self, uid: str) -> None:
        """What has put a user into the index may have come too late, after another had taken them out: look again."""
        if not await self._left_ms(uid):
            await self._unindex(uid)

    async def _unindex(self, uid: str) -> None:
        await self._run(lua.INDEX_REMOVE, _INDEX, uid)
        # A session registered meanwhile may have been indexed before the removal: look again.
        if left_ms := await self._left_ms(uid):
            await self._index(uid, left_ms)

    async def _left_ms(self, uid: str) -> int:
        """How long the user's last session lives on; when none does any more, that is told."""
        offline, left_ms = await self._run(lua.PURGE, UserKeys.of(uid))
        if offline:
            self._watchers.tell(uid, False)
        return int(left_ms)

    # -- small change -------------------------------------------------------------------------------------------------

    async def _run(self, script: str, keys: Sequence[str], *args: str | int) -> Any:
        return await scripts.run(self._connections, script, keys, *args)

    async def _run_all(self, script: str, calls: Sequence[scripts.Call]) -> list[Any]:
        return await scripts.run_all(self._connections, script, calls)

    def _pipeline(self) -> Any:
        return self._connections.commands.pipeline(transaction=False)

    def _ttl_ms(self) -> int:
        return max(1, int(self.ttl_s * 1_000))
