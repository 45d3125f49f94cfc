"""The ways to Redis or Valkey: commands, publishing, and the one pub/sub connection.

    async with Connections(settings, telemetry) as connections:
        with redis_errors(connections):
            await connections.commands.get("callboard:…")     # bytes: nothing is decoded

Opening does not fail when Redis is away; the clients connect when they are used. Every call ends within `call_limit_s`
(3 s), its wait for a free connection included: redis-py's own defaults take 58 s against a hung server. TLS is never
given up for plain text. RESP2 throughout: nothing here needs RESP3's pushes, and they arrive inside other reads.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, cast

from redis import exceptions as redis
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from callboard.clients import BoundedCluster, BoundedRedis, Bounds, PlainOrTlsConnection, Subscriber, Trust
from callboard.errors import ConfigurationError, Unavailable
from callboard.settings import Settings
from callboard.telemetry import Telemetry, where_raised

State = Literal["unknown", "ok", "down"]
Mode = Literal["unknown", "plain", "cluster"]
_REBUILD_PAUSE_S = 1.0
_UNAVAILABLE = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ClusterError,
    redis.RedisClusterException,
    redis.AskError,  # and MovedError
    redis.TryAgainError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    redis.NoPermissionError,
    redis.InvalidResponse,
    OSError,
)

_PASSING = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN", "UNKILLABLE"}
)
"""First words of refusals that say nothing of the command: the same one may be served a moment later."""

_SET_UP = {
    "ACL failure in script": "LISTENERS_REDIS_USERNAME",
    "The user executing the script can't": "LISTENERS_REDIS_USERNAME",  # Redis 7.0
    "DB index is out of range": "LISTENERS_REDIS_DB",
    "SELECT is not allowed in cluster mode": "LISTENERS_REDIS_DB",
}
"""Refusals of how we are set up, by what is in them, and the variable to look at."""


class Connections:
    """The clients of one app. `commands` and `publisher` may be replaced by new ones: ask for them at every use.

    `state` is the last known one and never asks; every `redis_errors` updates it. `last_error` says in words what is
    wrong while the state is `down`; it names no secret.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        *,
        attempt_timeout_s: float = 1.0,
        call_limit_s: float = 3.0,
        max_connections: int = 50,
    ) -> None:
        """`attempt_timeout_s` bounds each connect and each answer. ConfigurationError for an unusable CA file."""
        local = settings.use_local_redis
        self.host, self.port = settings.redis_address()
        self.state: State = "unknown"
        self.last_error: str | None = None
        self._told: set[str] = set()
        self.mode: Mode = "unknown"
        self._log = telemetry.log
        self._asked: Literal["auto", "true", "false"] = settings.redis_cluster
        self._call_limit_s = call_limit_s
        self._max_connections = max_connections
        self._tls = None if local or not settings.redis_tls else _tls_context(settings)
        password = None if local else settings.redis_password
        self._db = 0 if local else settings.redis_db
        self._options: dict[str, Any] = {
            "username": (not local and settings.redis_username) or None,
            "password": password.reveal() if password else None,
            "socket_connect_timeout": attempt_timeout_s,
            "socket_timeout": attempt_timeout_s,
            "socket_keepalive": True,
            "socket_keepalive_options": _keepalive(),
            "protocol": 2,
            "driver_info": None,
        }
        if self._asked == "true" and self._db:
            raise ConfigurationError("LISTENERS_REDIS_DB must be 0 when LISTENERS_REDIS_CLUSTER is true")
        self._trust = Trust()
        self._closing: dict[asyncio.Task[None], Redis] = {}
        self._rebuilt_at = 0.0
        self._has_served = False
        self._use("plain" if self._asked != "true" else "cluster")

    @property
    def commands(self) -> Redis:
        """For everything but pub/sub; at most one retry, so a command may run twice: make it idempotent."""
        return self._commands

    @property
    def publisher(self) -> Redis:
        """For PUBLISH: never retried, because a PUBLISH that is sent twice arrives twice."""
        return self._publisher

    async def __aenter__(self) -> Self:
        await self.find_mode()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        closing = dict(self._closing)
        for task in closing:
            task.cancel()
        if closing:
            await asyncio.wait(closing)
        for client in (*closing.values(), self._commands, self._publisher):
            await _close(client)

    async def find_mode(self) -> None:
        """Ask the server whether it is a cluster, unless that is settled. Never raises: `state` tells."""
        if self._asked != "auto" or self.mode != "unknown":
            return
        try:
            with redis_errors(self):
                clustered = await self._is_clustered()
        except Unavailable:
            return
        if clustered:
            self._use("cluster")
        self.mode = "cluster" if clustered else "plain"

    async def _is_clustered(self) -> bool:
        try:
            answer = await self.commands.info("cluster")
            return bool(answer.get("cluster_enabled"))
        except redis.ResponseError:
            pass  # refused
        try:
            await self.commands.cluster("INFO")
        except redis.ResponseError:
            return False  # none, or not ours to know: a MOVED would tell
        return True

    def distrust(self) -> None:
        """Redis was silent where it should not: what lies idle now is connected anew before its next use.

        Else each such connection would cost a call its time-out, until the kernel has given it up (25 s).
        """
        self._trust.since = time.monotonic()

    def subscriber(self) -> Subscriber:
        """A fresh pub/sub connection, not yet open. In a cluster any node will do: PUBLISH reaches all of them."""
        host, port = self.host, self.port
        if isinstance(self._commands, RedisCluster) and (nodes := self._commands.get_nodes()):
            node = random.choice(nodes)  # noqa: S311 - spreads the load, guards nothing
            host, port = node.host, int(node.port)
        return Subscriber(PlainOrTlsConnection(host=host, port=port, tls=self._tls, **self._options))

    def _use(self, kind: Literal["plain", "cluster"]) -> None:
        previous = getattr(self, "_commands", None), getattr(self, "_publisher", None)
        self._commands = self._client(kind, retries=1)
        self._publisher = self._client(kind, retries=0)
        if kind == "cluster" or self._asked == "false":
            self.mode = kind
        for client in previous:
            if client is not None:
                self._close_later(client)

    def _client(self, kind: Literal["plain", "cluster"], *, retries: int) -> Redis:
        bounds = Bounds(self._call_limit_s, self._max_connections)
        retry = Retry(NoBackoff(), retries)
        if kind == "cluster":
            clustered = BoundedCluster(
                bounds, self.host, self.port, self._tls, self._trust, retry=retry, **self._options
            )
            return cast(Redis, clustered)
        pool = ConnectionPool(
            PlainOrTlsConnection,
            host=self.host,
            port=self.port,
            db=self._db,
            tls=self._tls,
            trust=self._trust,
            retry=retry,
            **self._options,
        )
        return BoundedRedis(bounds, pool)

    def _note(self, error: BaseException | None) -> None:
        if error is None:
            self.state, self.last_error = "ok", None
            self._has_served = True
            return
        self.state, self.last_error = "down", self.explain(error)
        if _is_refusal(error) and self.last_error not in self._told:
            # It costs no connection, so the bus has nothing to tell. There are as many texts as commands, at most.
            self._told.add(self.last_error)
            self._log.error("redis_refused", reason=self.last_error)
        now = time.monotonic()
        plain = not isinstance(self._commands, RedisCluster)
        if plain and _is_elsewhere(error) and now - self._rebuilt_at > _REBUILD_PAUSE_S:
            # New clients look the name up again, and find the new primary, or the cluster that we took for one server.
            self._rebuilt_at = now
            moved = isinstance(error, redis.AskError) and self._asked == "auto" and not self._db
            self._use("cluster" if moved else "plain")

    def explain(self, error: BaseException) -> str:
        """What is wrong, for people: the address, the error, the variable to look at; no secret."""
        where = f"{self.host}:{self.port}"
        causes = list(_causes(error))
        if untrusted := next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None):
            return f"{where}: the certificate is not trusted: {untrusted.verify_message} (LISTENERS_REDIS_TLS_CA)"
        if any(isinstance(cause, ssl.SSLError) for cause in causes):
            return f"{where}: the TLS handshake failed; does this port speak TLS? (LISTENERS_REDIS_TLS)"
        if isinstance(error, redis.AuthenticationError):
            return (
                f"{where}: the server refuses our user or password (LISTENERS_REDIS_USERNAME, LISTENERS_REDIS_PASSWORD)"
            )
        if isinstance(error, redis.MovedError) and self._asked == "false":
            return f"{where}: the server is a cluster, but LISTENERS_REDIS_CLUSTER is false"
        if not self._has_served and _says_nothing(error):
            hint = "does this port speak TLS?" if self._tls else "does this port want TLS?"
            return f"{where}: {error}; the address may be wrong, or {hint} (LISTENERS_REDIS_TLS)"
        text = _text(error)
        if isinstance(error, redis.NoPermissionError):
            return f"{where}: {text} (LISTENERS_REDIS_USERNAME)"
        if variable := _set_up(error):
            return f"{where}: {text.rpartition(' script: ')[0] or text} ({variable})"
        return f"{where}: {type(error).__name__}: {text}"

    def _close_later(self, client: Redis) -> None:
        task = asyncio.get_running_loop().create_task(self._close_when_unused(client), name="close a Redis client")
        self._closing[task] = client
        task.add_done_callback(self._is_closed)

    def _is_closed(self, task: asyncio.Task[None]) -> None:
        del self._closing[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("task_died", task=task.get_name(), **where_raised(error))

    async def _close_when_unused(self, client: Redis) -> None:
        await asyncio.sleep(self._call_limit_s)  # calls in flight end by then
        await _close(client)


@contextmanager
def redis_errors(connections: Connections, *, proves: bool = True) -> Iterator[None]:
    """Around the use of a client: what says that Redis cannot serve becomes Unavailable, the state is kept.

    So does what says that it may not serve us. Other refusals (a wrong type, an error inside a script) are defects and
    pass as they are. `proves` false: that nothing fails does not mean that Redis serves, as when a connection opens.
    """
    try:
        yield
    except _UNAVAILABLE as error:
        connections._note(error)
        raise Unavailable("Redis cannot serve this now.") from error
    except redis.ResponseError as error:
        if _text(error).partition(" ")[0] not in _PASSING and _set_up(error) is None:
            raise
        connections._note(error)
        raise Unavailable("Redis cannot serve this now.") from error
    if proves:
        connections._note(None)


async def _close(client: Redis) -> None:
    try:
        await (client.shut() if isinstance(client, BoundedCluster) else client.aclose())
    except (*_UNAVAILABLE, redis.RedisError):
        return  # the sockets are closed all the same; the server has not heard of it


def _tls_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.redis_tls_ca or None)
    except OSError as error:
        raise ConfigurationError(
            f"LISTENERS_REDIS_TLS_CA: {settings.redis_tls_ca} holds no usable authority: {error}"
        ) from None
    if not settings.redis_tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _keepalive() -> dict[int, int]:
    """A peer that vanished without a word is noticed after 25 s at the latest, with bytes in flight or without."""
    wanted = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def _text(error: BaseException) -> str:
    """What the server said: a pipeline puts the command before it, arguments and all, and quotes it."""
    _, is_pipelined, said = str(error).rpartition("caused error: ")
    return said.strip("(),'\"").replace("\\'", "'") if is_pipelined else said


def _set_up(error: BaseException) -> str | None:
    text = _text(error)
    return next((variable for refusal, variable in _SET_UP.items() if refusal in text), None)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, redis.NoPermissionError) or _set_up(error) is not None


def _is_elsewhere(error: BaseException) -> bool:
    return isinstance(error, redis.AskError | redis.ClusterDownError | redis.ReadOnlyError)


def _says_nothing(error: BaseException) -> bool:
    """The peer is silent, or hangs up without a word, as one does that waits for TLS."""
    cut = any(isinstance(cause, ConnectionResetError | asyncio.IncompleteReadError) for cause in _causes(error))
    return cut or isinstance(error, redis.TimeoutError) or "closed by server" in str(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
