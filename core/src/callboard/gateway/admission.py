"""Who may open `/ws`, and what for: the origin, the query, the credential (CONTRACT, WebSocket)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import msgspec

from callboard.credentials import ISSUES_TICKETS, Credentials
from callboard.errors import CallError, InvalidArgs, PermissionDenied, Unauthenticated, Unavailable
from callboard.gateway.closing import CloseCode, Refused
from callboard.gateway.socket import Socket
from callboard.gateway.tickets import Tickets
from callboard.identity import VerifiedToken
from callboard.messages import check_identifier, encode, new_id
from callboard.service import Thread, ThreadMode, User
from callboard.settings import Settings, is_loopback

_FIRST_FRAME_TIMEOUT_S = 5.0
_VERIFY_TIMEOUT_S = 15.0
_MAX_QUERY_BYTES = 4_096

SessionOwner = Callable[[str], Awaitable[str | None]]
"""Whose session an id is (`Presence.owner_of`)."""

UserOf = Callable[[str], Awaitable[User]]
"""What a user may see (`Presence.user`)."""

VerifyToken = Callable[[str], Awaitable[VerifiedToken]]
"""Checks an ID token (`TokenVerifier.verify`)."""


class Visit(msgspec.Struct, kw_only=True):
    """What a client asked for in the query."""

    uid: str
    session_id: str = ""
    space_code: str | None = None
    thread_key: str | None = None
    mode: ThreadMode = "auto"

    @property
    def thread(self) -> Thread | None:
        """The chat thread that the connection names."""
        return Thread.named(self.space_code, self.thread_key, self.mode)


class Admitted(NamedTuple):
    visit: Visit
    credential: str
    """A credential's name, `ticket` or `id_token`."""
    expires_in_s: float | None
    acts_for_users: bool = False
    """A service's: it may take a session id from another user and open any thread. A user's own may not."""
    token: VerifiedToken | None = None


class _FirstFrame(msgspec.Struct):
    type: str
    payload: msgspec.Raw = msgspec.Raw(b"{}")


class _TicketPayload(msgspec.Struct):
    ticket: str


class _TokenPayload(msgspec.Struct, rename={"session_id": "sessionId"}):
    token: str
    uid: str | None = None
    session_id: str | None = None


class Admission:
    """Lets sockets in, or raises Refused with the close code."""

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        tickets: Tickets,
        session_owner: SessionOwner,
        user_of: UserOf,
        *,
        first_frame_timeout_s: float = _FIRST_FRAME_TIMEOUT_S,
    ) -> None:
        self._dev = settings.dev
        self._origins = {_normal(origin) for origin in settings.allowed_origins}
        self._credentials = credentials
        self._tickets = tickets
        self._session_owner = session_owner
        self._user_of = user_of
        self._first_frame_timeout_s = first_frame_timeout_s
        self._first_frame = msgspec.json.Decoder(_FirstFrame)
        self.verify_token: VerifyToken | None = None

    async def admit(self, socket: Socket) -> Admitted:
        """Check a socket that was accepted; a client without an Authorization header has 5 s for its first frame."""
        try:
            self._check_origin(socket)
            visit = parse_query(socket.query)
            admitted = await self._identify(socket, visit)
        except InvalidArgs as error:
            raise Refused(CloseCode.BAD_REQUEST, error.message) from None
        except Unauthenticated as error:
            raise Refused(CloseCode.BAD_CREDENTIAL, error.message) from None
        except PermissionDenied as error:
            raise Refused(CloseCode.BAD_CREDENTIAL, error.message) from None
        except Unavailable:
            raise Refused(CloseCode.UNAVAILABLE) from None
        visit.session_id = visit.session_id or new_id()
        return admitted

    def _check_origin(self, socket: Socket) -> None:
        """A browser says where its page is from; a page from elsewhere must not use its visitor's connection."""
        for name, value in socket.headers:
            if name == b"origin":
                origin = _normal(value.decode("latin-1"))
                if origin not in self._origins and not (self._dev and _is_local(origin)):
                    raise Refused(CloseCode.FORBIDDEN, "This origin is not allowed.")

    async def _identify(self, socket: Socket, visit: Visit) -> Admitted:
        if any(name == b"authorization" for name, _ in socket.headers):
            credential = self._credentials.identify_headers(socket.headers)
            if not credential.allows(ISSUES_TICKETS):  # who may issue tickets may also do without
                raise Refused(CloseCode.FORBIDDEN)
            return Admitted(visit, credential.name, None, acts_for_users=True)
        try:
            async with asyncio.timeout(self._first_frame_timeout_s):
                text = await socket.receive()
        except TimeoutError:
            raise Refused(CloseCode.BAD_CREDENTIAL, "No credential came in time.") from None
        try:
            frame = self._first_frame.decode(text)
            if frame.type == "auth.ticket":
                return await self._by_ticket(msgspec.json.decode(frame.payload, type=_TicketPayload), visit)
            if frame.type == "auth.firebase_token":
                payload = msgspec.json.decode(frame.payload, type=_TokenPayload)
                return await self._by_token(socket, payload, visit)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise Refused(CloseCode.BAD_REQUEST, "The first frame is not a credential.") from None
        raise Refused(CloseCode.BAD_CREDENTIAL, "The first frame is not a credential.")

    async def _by_ticket(self, payload: _TicketPayload, visit: Visit) -> Admitted:
        uid = await self._tickets.redeem(payload.ticket)
        if uid != visit.uid:
            raise Refused(CloseCode.FORBIDDEN)
        await self._check_space(visit)
        return Admitted(visit, "ticket", None)

    async def _by_token(self, socket: Socket, payload: _TokenPayload, visit: Visit) -> Admitted:
        try:
            if self.verify_token is None:
                raise Unauthenticated("This service takes no ID tokens.")
            try:
                async with asyncio.timeout(_VERIFY_TIMEOUT_S):
                    verified = await self.verify_token(payload.token)
            except TimeoutError:
                raise Unavailable("ID tokens cannot be checked now.") from None
            if verified.uid != visit.uid or payload.uid not in (None, verified.uid):
                raise Refused(CloseCode.FORBIDDEN)
            await self._check_space(visit)
            if not visit.session_id and payload.session_id:
                visit.session_id = check_identifier(payload.session_id, "sessionId")
        except (CallError, Refused) as error:
            reason = error.reason if isinstance(error, Refused) else error.message
            await socket.send(encode({"type": "auth.login_error", "payload": {"message": reason}}).decode())
            raise
        if not visit.session_id or await self._is_anothers(visit):
            visit.session_id = new_id()
        confirmed = {"uid": verified.uid, "sessionId": visit.session_id}
        await socket.send(encode({"type": "auth.session_confirmed", "payload": confirmed}).decode())
        return Admitted(visit, "id_token", max(0.0, verified.expires_at - time.time()), token=verified)

    async def _check_space(self, visit: Visit) -> None:
        """Spaces are companies': one that the user may not see is refused. Unavailable without Redis, which knows."""
        if visit.space_code is not None and not (await self._user_of(visit.uid)).may_see(visit.space_code):
            raise Refused(CloseCode.FORBIDDEN, "This space is not the user's.")

    async def _is_anothers(self, visit: Visit) -> bool:
        """Whether the session is another user's now, so that the id that is confirmed is the one that is used."""
        try:
            return await self._session_owner(visit.session_id) not in (None, visit.uid)
        except Unavailable:
            return False  # whoever registers it is told


def parse_query(query: bytes) -> Visit:
    """The query string as a Visit; InvalidArgs. Parameters that are not ours are ignored."""
    if len(query) > _MAX_QUERY_BYTES:
        raise InvalidArgs("The query is too long.")
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=50)
    except ValueError:
        raise InvalidArgs("The query is malformed.") from None
    given = {name: value for name, value in pairs if name in Visit.__struct_fields__}
    if len(given) != sum(name in given for name, _ in pairs):
        raise InvalidArgs("The query names a parameter twice.")
    for name in ("uid", "session_id", "space_code", "thread_key"):
        if name in given:
            check_identifier(given[name], name)
    if "uid" not in given:
        raise InvalidArgs("The query must name a uid.")
    try:
        visit = msgspec.convert(given, Visit)
    except msgspec.ValidationError:
        raise InvalidArgs("mode must be chats, job_chats or auto") from None
    Thread.named(visit.space_code, visit.thread_key)  # both or none
    return visit


def _normal(origin: str) -> str:
    return origin.strip().rstrip("/").lower()


def _is_local(origin: str) -> bool:
    try:
        return is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return False
