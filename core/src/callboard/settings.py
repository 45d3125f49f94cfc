"""The settings: one frozen object, read once from the environment.

    settings = load(Settings, os.environ)
    settings.drain_timeout_s

A plugin declares its own the same way and finds them at `self.settings`:

    class VectorSettings(Struct, frozen=True, kw_only=True):
        url: Annotated[str, Help("where the vectors live")] = variable("VECTOR_DB_URL", default="embedded")
        api_key: Annotated[Secret | None, Help("credential of the server")] = variable("VECTOR_DB_API_KEY")

Every field names its variable, its default and its help text; a variable that is set to nothing counts as not set.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from callboard.errors import ConfigurationError

S = TypeVar("S", bound=Struct)


class Secret:
    """A value that shows itself only when asked: `secret.reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def Help(  # noqa: N802 - reads as an annotation
    text: str, *, ge: float | None = None, le: float | None = None
) -> msgspec.Meta:
    """The sentence that explains a field, and the range of its values."""
    return msgspec.Meta(description=text, ge=ge, le=le)


def variable(name: str, default: Any = None) -> Any:
    """A field read from the environment variable `name`."""
    return msgspec.field(name=name, default=default)


def load(cls: type[S], environ: Mapping[str, str]) -> S:
    """Read a settings struct from the environment.

    Text is converted to the field's type (`true`/`false`/`1`/`0`, numbers, comma-separated lists).
    Raises ConfigurationError naming the variable; the offending value, which may be a secret, is not repeated.
    """
    given: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        text = environ.get(field.encode_name, "").strip()
        if text:
            given[field.encode_name] = _split(text) if _is_list(field.type) else text
    try:
        return msgspec.convert(given, cls, strict=False, dec_hook=_decode_secret)
    except msgspec.ValidationError as error:
        name = str(error).rpartition("$.")[2].strip("`") if "$." in str(error) else ""
        problem = str(error).split(" - at ")[0].replace("Expected `bool`, got `str`", "it is true, false, 1 or 0")
        if problem.startswith("Invalid enum value"):
            problem = "it is none of the values that it can have"
        raise ConfigurationError(f"{name}: {problem}") from None


def _is_list(hint: Any) -> bool:
    info = msgspec.inspect.type_info(hint)
    if isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    return isinstance(info, msgspec.inspect.VarTupleType)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _decode_secret(kind: type, value: object) -> object:
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    raise NotImplementedError(f"settings cannot hold {kind!r}")


class Settings(Struct, frozen=True, kw_only=True):
    """The core's settings (CONTRACT, Configuration)."""

    # -- who may call
    service_token: Annotated[Secret | None, Help("bearer token of the Reflex back ends; required outside dev mode")] = (
        variable("LISTENERS_SERVICE_TOKEN")
    )
    service_tokens: Annotated[
        Secret | None,
        Help("more credentials, separated by `;`: name:token[:pattern,…], e.g. ci:s3cret:REGISTRY.*"),
    ] = variable("LISTENERS_SERVICE_TOKENS")
    ticket_secret: Annotated[
        Secret | None,
        Help("signs WebSocket tickets; the same on all replicas; derived from the token when unset"),
    ] = variable("LISTENERS_TICKET_SECRET")
    metrics_token: Annotated[Secret | None, Help("bearer token that closes /metrics")] = variable(
        "LISTENERS_METRICS_TOKEN"
    )
    allowed_origins: Annotated[tuple[str, ...], Help("origins a browser's WebSocket may come from")] = variable(
        "LISTENERS_ALLOWED_ORIGINS", default=()
    )

    # -- how it runs
    dev: Annotated[bool, Help("dev mode: loopback only, token `dev`, open /debug, emulators allowed")] = variable(
        "LISTENERS_DEV", default=False
    )
    debug: Annotated[bool, Help("user ids in logs unhashed")] = variable("LISTENERS_DEBUG", default=False)
    allow_emulators: Annotated[bool, Help("permit emulator variables and STRIPE_API_BASE outside dev mode")] = variable(
        "LISTENERS_ALLOW_EMULATORS", default=False
    )
    plugins: Annotated[tuple[str, ...], Help("names of the plugins to load; all installed when empty")] = variable(
        "LISTENERS_PLUGINS", default=()
    )
    strict: Annotated[bool, Help("a plugin that fails to load or open stops the start")] = variable(
        "LISTENERS_STRICT", default=False
    )
    replica: Annotated[str, Help("name of this replica in logs, leases and /debug")] = variable(
        "LISTENERS_REPLICA", default=""
    )

    # -- Redis or Valkey
    use_local_redis: Annotated[
        bool, Help("127.0.0.1:6379 without TLS or password, whatever the other Redis variables say")
    ] = variable("USE_LOCAL_REDIS", default=False)
    redis_host: Annotated[str, Help("host of Redis or Valkey")] = variable("LISTENERS_REDIS_HOST", default="")
    redis_port: Annotated[int, Help("port of Redis or Valkey", ge=1, le=65535)] = variable(
        "LISTENERS_REDIS_PORT", default=6379
    )
    redis_username: Annotated[str, Help("ACL user")] = variable("LISTENERS_REDIS_USERNAME", default="")
    redis_password: Annotated[Secret | None, Help("password")] = variable("LISTENERS_REDIS_PASSWORD")
    redis_tls: Annotated[bool, Help("speak TLS")] = variable("LISTENERS_REDIS_TLS", default=False)
    redis_tls_verify: Annotated[bool, Help("verify the server's certificate and name")] = variable(
        "LISTENERS_REDIS_TLS_VERIFY", default=True
    )
    redis_tls_ca: Annotated[str, Help("file with the authority to trust; the system's when empty")] = variable(
        "LISTENERS_REDIS_TLS_CA", default=""
    )
    redis_db: Annotated[int, Help("database number; 0 in cluster mode", ge=0)] = variable(
        "LISTENERS_REDIS_DB", default=0
    )
    redis_cluster: Annotated[Literal["auto", "true", "false"], Help("cluster mode; auto asks the server")] = variable(
        "LISTENERS_REDIS_CLUSTER", default="auto"
    )

    # -- channels
    channel_prefix: Annotated[str, Help("prefix of a user's channel")] = variable(
        "LISTENERS_CHANNEL_PREFIX", default="user:"
    )
    msg_channel_prefix: Annotated[str, Help("prefix of a user's direct-message channel")] = variable(
        "LISTENERS_MSG_CHANNEL_PREFIX", default="msg:"
    )
    chat_channel_prefix: Annotated[str, Help("prefix of a chat thread's channel")] = variable(
        "LISTENERS_CHAT_CHANNEL_PREFIX", default="chat:"
    )
    msg_on_user_channel: Annotated[bool, Help("publish msg.* on the user's channel too, with the same id")] = variable(
        "LISTENERS_MSG_ON_USER_CHANNEL", default=False
    )

    # -- times and limits
    ttl_s: Annotated[int, Help("seconds a silent session stays online", ge=3)] = variable(
        "LISTENERS_TTL_SECONDS", default=90
    )
    heartbeat_interval_s: Annotated[int, Help("seconds between an open socket's own heartbeats", ge=1)] = variable(
        "LISTENERS_HEARTBEAT_INTERVAL", default=30
    )
    idempotency_ttl_s: Annotated[int, Help("seconds a finished call's answer is kept", ge=1)] = variable(
        "RPC_IDEMP_TTL", default=900
    )
    max_body_bytes: Annotated[int, Help("largest request body, bytes", ge=1024)] = variable(
        "LISTENERS_MAX_BODY_BYTES", default=1_048_576
    )
    max_timeout_ms: Annotated[int, Help("cap on a call's deadline, milliseconds", ge=1)] = variable(
        "LISTENERS_MAX_TIMEOUT_MS", default=600_000
    )
    max_in_flight: Annotated[int, Help("calls in flight beyond which the replica answers 429", ge=1)] = variable(
        "LISTENERS_MAX_IN_FLIGHT", default=1_000
    )
    namespace_concurrency: Annotated[int, Help("async calls a namespace runs at a time", ge=1)] = variable(
        "LISTENERS_NAMESPACE_CONCURRENCY", default=200
    )
    namespace_threads: Annotated[int, Help("threads for a namespace's sync methods", ge=1)] = variable(
        "LISTENERS_NAMESPACE_THREADS", default=16
    )
    max_connections: Annotated[int, Help("WebSockets of this replica; one more is refused with 3011", ge=1)] = variable(
        "LISTENERS_MAX_CONNECTIONS", default=10_000
    )
    max_connections_per_user: Annotated[
        int, Help("WebSockets of one user on this replica; one more is refused with 3505", ge=1)
    ] = variable("LISTENERS_MAX_CONNECTIONS_PER_USER", default=100)
    max_connection_age_s: Annotated[
        int, Help("seconds, ±10 %, after which a WebSocket is closed with 3005, to reconnect", ge=1)
    ] = variable("LISTENERS_MAX_CONNECTION_AGE_S", default=43_200)
    outbox_bytes: Annotated[int, Help("bytes that may wait for a WebSocket that reads too slowly", ge=65_536)] = (
        variable("LISTENERS_OUTBOX_BYTES", default=1_048_576)
    )
    outbox_age_s: Annotated[int, Help("seconds that they may wait", ge=1)] = variable(
        "LISTENERS_OUTBOX_AGE_S", default=20
    )
    ping_interval_s: Annotated[
        int, Help("seconds between pings of a WebSocket; below the load balancer's idle time-out; 0: none", ge=0)
    ] = variable("LISTENERS_PING_INTERVAL_S", default=20)
    drain_timeout_s: Annotated[float, Help("seconds from SIGTERM to exit", ge=1)] = variable(
        "LISTENERS_DRAIN_TIMEOUT_S", default=30.0
    )

    def replica_name(self) -> str:
        """LISTENERS_REPLICA, or the host's name and the process's number: two replicas on one host are two."""
        return self.replica or f"{socket.gethostname()}-{os.getpid()}"

    def redis_address(self) -> tuple[str, int]:
        if self.use_local_redis:
            return "127.0.0.1", 6379
        return self.redis_host, self.redis_port

    def check(self, environ: Mapping[str, str]) -> None:
        """Refuse what must not start: ConfigurationError says which variable to set and why."""
        if not self.dev and self.service_token is None:
            raise ConfigurationError(
                "LISTENERS_SERVICE_TOKEN is not set. Set it to a long random text "
                '(python -c "import secrets; print(secrets.token_urlsafe(32))"), or start with: callboard dev'
            )
        if not self.use_local_redis and not self.redis_host:
            raise ConfigurationError(
                "LISTENERS_REDIS_HOST is not set. Name your Redis or Valkey, set USE_LOCAL_REDIS=true for "
                "127.0.0.1:6379, or start with: callboard dev"
            )
        if self.heartbeat_interval_s * 2 > self.ttl_s:
            raise ConfigurationError(
                "LISTENERS_TTL_SECONDS must be at least twice LISTENERS_HEARTBEAT_INTERVAL, "
                "or one late heartbeat takes a user offline"
            )
        if not (self.dev or self.allow_emulators):
            for name in EMULATOR_VARIABLES:
                if environ.get(name):
                    raise ConfigurationError(
                        f"{name} is set, which switches the security of its back end off. "
                        "Unset it; in a test fleet set LISTENERS_ALLOW_EMULATORS=true"
                    )


EMULATOR_VARIABLES = (
    "FIRESTORE_EMULATOR_HOST",
    "FIREBASE_DATABASE_EMULATOR_HOST",
    "FIREBASE_AUTH_EMULATOR_HOST",
    "STRIPE_API_BASE",
)


def is_loopback(host: str) -> bool:
    """Whether a peer's address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
