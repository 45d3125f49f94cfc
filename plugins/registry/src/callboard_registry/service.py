"""Namespace REGISTRY: sessions, presence, WebSocket tickets; a thin layer over the core's own parts."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Annotated, Any

from msgspec import Meta, Struct

from callboard import ConfigurationError, Service, Thread, method
from callboard.fleet.sessions import Page, Session, UserPresence
from callboard.messages import check_identifier
from callboard.service import ThreadMode
from callboard_registry.mirror import Mirror, Store

MAX_TICKET_TTL_S = 3_600


class Registered(Struct, frozen=True):
    """A session that lives for `ttl_seconds`, and again after each heartbeat. `came_online`: the user was offline."""

    user_id: str
    session_id: str
    came_online: bool
    ttl_seconds: int
    heartbeat_interval_seconds: int


class Unregistered(Struct, frozen=True):
    """`user_id` is whose session ended; None when there was no such session, which is no error."""

    session_id: str
    user_id: str | None


class Alive(Struct, frozen=True):
    """`alive` false: the session is over or was never there; register it again."""

    session_id: str
    alive: bool


class Synced(Struct, frozen=True):
    """How many sync events went out on the user's channels; `failed` names the listeners whose did not."""

    user_id: str
    events: int
    failed: list[str]


class ListenerStatus(Struct, frozen=True):
    """`active`: a replica runs the listener for this user (and thread) now. `online`: the user is."""

    user_id: str
    listener_type: str
    active: bool
    online: bool


class Ticket(Struct, frozen=True):
    """A secret that opens one WebSocket as this user, once, within `ttl_s` seconds."""

    ticket: str
    ttl_s: int


class Registry(Service):
    """Sessions, who is online, and tickets for WebSockets; mirrored to Firestore where there is one."""

    namespace = "REGISTRY"

    _mirror: Mirror | None = None
    _mirror_off: str | None = None

    async def open(self) -> None:
        self._closing = AsyncExitStack()
        store = await self._store()
        if store is None:
            self.log.info("registry_mirror_off", reason=self._mirror_off)
            return
        mirror = Mirror(self.host.presence, self.host.connections, store, self.log)
        self._mirror = await self._closing.enter_async_context(mirror)
        self.host.presence.watch(self._on_transition)

    async def close(self) -> None:
        await self._closing.aclose()

    async def health(self) -> dict[str, Any]:
        """`mirror` is what `Mirror.health` says, or `{"status": "off", "reason": …}`; it never makes REGISTRY sick."""
        mirror = self._mirror.health() if self._mirror else {"status": "off", "reason": self._mirror_off}
        return {"status": "ok", "mirror": mirror}

    # -- sessions

    @method(effect="write", retry_safe=True)
    async def register_user(
        self,
        user_id: str,
        session_id: str,
        backend_route: str | None = None,
        authorized_companies_ids: list[str] | None = None,
    ) -> Registered:
        """Begin a session, or renew it; the user's other sessions stay as they are.

        `authorized_companies_ids` replaces, for all of the user's sessions, which companies' items they are shown; []
        means none, and when it is left out what was given before still holds.
        """
        check_identifier(user_id, "user_id")
        came_online = await self.host.presence.register(
            user_id, session_id, backend_route=backend_route, authorized_companies_ids=authorized_companies_ids
        )
        settings = self.host.settings
        return Registered(user_id, session_id, came_online, settings.ttl_s, settings.heartbeat_interval_s)

    @method(effect="write", retry_safe=True, keyed=False)
    async def unregister_session(self, session_id: str) -> Unregistered:
        """End a session. The user goes offline only when it was their last."""
        return Unregistered(session_id, await self.host.presence.unregister(session_id))

    @method(effect="write", retry_safe=True, keyed=False)
    async def heartbeat(self, session_id: str) -> Alive:
        """Keep a session alive for another TTL. Sessions of open WebSockets do it by themselves."""
        return Alive(session_id, await self.host.presence.heartbeat(session_id))

    @method(effect="read")
    async def list_sessions(self, user_id: str) -> list[Session]:
        """The user's sessions that are alive, the one that expires first at the head."""
        return await self.host.presence.list_sessions(check_identifier(user_id, "user_id"))

    # -- users

    @method(effect="read")
    async def get_user(self, user_id: str) -> UserPresence | None:
        """The user's presence; None for one who has never been here, or not for 30 days."""
        return await self.host.presence.get_user(check_identifier(user_id, "user_id"))

    @method(effect="read")
    async def online_users(self, cursor: str | None = None, limit: Annotated[int, Meta(ge=1, le=1_000)] = 100) -> Page:
        """A page of online users, sorted by id; give its `cursor` to get the next one. None: that was the last."""
        return await self.host.presence.online_users(cursor, limit)

    @method(effect="write", retry_safe=True, keyed=False)
    async def sync(
        self,
        user_id: str,
        space_code: str | None = None,
        thread_key: str | None = None,
        mode: ThreadMode = "auto",
    ) -> Synced:
        """Read every listener's source and publish the user's state, as sync events, on the user's channels.

        For consumers that read Redis directly and may have missed something. A WebSocket needs it never. With
        `space_code` and `thread_key`, that chat thread's state alone, on the thread's channel; without them, also that
        of the threads which the answering replica has open for the user.
        """
        thread = Thread.named(space_code, thread_key, mode)
        synced = await self.host.listeners.sync(check_identifier(user_id, "user_id"), thread)
        return Synced(user_id, synced.events, synced.failed)

    @method(effect="read")
    async def check_listener_status(
        self,
        user_id: str,
        listener_type: Annotated[str, Meta(min_length=1, max_length=64)],
        space_code: str | None = None,
        thread_key: str | None = None,
    ) -> ListenerStatus:
        """Whether a listener runs for the user: `notifications`, `workflow`, …, as `/debug` names them.

        `space_code` and `thread_key` name the thread of a listener that runs per thread; INVALID_ARGS without them.
        """
        check_identifier(user_id, "user_id")
        thread = Thread.named(space_code, thread_key)
        online = bool(await self.host.presence.online_among([user_id]))
        owner = await self.host.listeners.owner(user_id, listener_type, thread)
        return ListenerStatus(user_id, listener_type, owner is not None, online)

    # A `read`, though it makes something: what a write returns is stored for its retry, and a ticket is a secret that
    # must lie nowhere. A retry gets another ticket; the first, unused, ends by itself.
    @method(effect="read")
    async def issue_ticket(self, user_id: str, ttl_s: Annotated[int, Meta(ge=1, le=MAX_TICKET_TTL_S)] = 60) -> Ticket:
        """A ticket for one WebSocket of this user, for the first frame `{"type": "auth.ticket", …}`."""
        return Ticket(self.host.tickets.issue(check_identifier(user_id, "user_id"), ttl_s), ttl_s)

    # -- the mirror

    async def _on_transition(self, uid: str, _: bool) -> None:
        if self._mirror is not None:
            self._mirror.note(uid)

    async def _store(self) -> Store | None:
        """Firestore, or None when callboard-firebase is not installed or not configured."""
        try:
            from callboard_firebase import Firebase
            from callboard_registry.firestore import RegistryDocuments
        except ImportError as error:
            what = "is not installed" if error.name == "callboard_firebase" else "cannot be imported"
            self._mirror_off = f"callboard-firebase {what}"
            return None
        try:
            firebase = await self.host.shared(Firebase)
        except ConfigurationError as error:
            self._mirror_off = error.message
            return None
        if not firebase.configured:
            self._mirror_off = "no Firebase is configured"
            return None
        settings = self.host.settings
        return RegistryDocuments(firebase.client, ttl_s=settings.ttl_s, instance_id=settings.replica_name())
