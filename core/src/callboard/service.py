"""How a plugin declares itself.

    class Greeter(Service):
        namespace = "GREETER"

        @method(effect="read")
        async def greet(self, name: str) -> str:
            return f"hello {name}"

A service is built once per app, opened before the first call and closed after the last. Its methods are found at
start by their decorator, never by name at call time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import msgspec

from callboard.context import Context, current_context
from callboard.errors import InvalidArgs
from callboard.messages import Event, check_identifier

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from callboard.host import Host

Effect = Literal["read", "write"]
ThreadMode = Literal["chats", "job_chats", "auto"]
F = TypeVar("F", bound=Callable[..., Any])
L = TypeVar("L", bound=type)
ServiceT = TypeVar("ServiceT", bound="Service")
_MARK = "__callboard__"

RetrySafe: TypeAlias = "bool | Callable[[Mapping[str, Any]], bool]"
"""Whether a method is, or whether it is with these arguments (by name, converted)."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a method declares. `aliases` are further names: `other_name`, or `OTHER_NAMESPACE.name`."""

    effect: Effect = "write"
    retry_safe: RetrySafe = False
    timeout_s: float | None = None
    keyed: bool = True
    aliases: tuple[str, ...] = ()

    def is_retry_safe(self, arguments: Mapping[str, Any]) -> bool:
        return self.retry_safe if isinstance(self.retry_safe, bool) else self.retry_safe(arguments)


@overload
def method(function: F, /) -> F: ...
@overload
def method(
    *,
    effect: Effect = ...,
    retry_safe: RetrySafe = ...,
    timeout_s: float | None = ...,
    keyed: bool = ...,
    aliases: tuple[str, ...] = ...,
) -> Callable[[F], F]: ...
def method(
    function: F | None = None,
    /,
    *,
    effect: Effect = "write",
    retry_safe: RetrySafe = False,
    timeout_s: float | None = None,
    keyed: bool = True,
    aliases: tuple[str, ...] = (),
) -> F | Callable[[F], F]:
    """Make a function callable as `NAMESPACE.name`.

    `effect`: a `read` changes nothing and ignores idempotency keys; a `write` honours them.
    `retry_safe`: running it twice ends in the same state, so an interrupted call may be run again; where that depends
    on what is written, a function that looks at the arguments.
    `timeout_s`: a cap on the caller's deadline, seconds.
    `keyed`: false for a write that is meant each time it is sent, such as a heartbeat: its key is ignored, since some
    clients make the key of the arguments alone, and a replay would answer without doing anything.
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, Method(effect, retry_safe, timeout_s, keyed, aliases))
        return function

    return mark if function is None else mark(function)


class User(msgspec.Struct, frozen=True):
    """The user a listener works for. `authorized_companies_ids` of None: all companies."""

    uid: str
    authorized_companies_ids: frozenset[str] | None = None

    def may_see(self, company_id: str | None) -> bool:
        return self.authorized_companies_ids is None or company_id in self.authorized_companies_ids


class Thread(msgspec.Struct, frozen=True):
    """A chat thread that a user has open. `mode`: the kind it is of, `auto` where the opener does not know.

    InvalidArgs for a space code or a thread key that is none, or another mode.
    """

    space_code: str
    thread_key: str
    mode: ThreadMode = "auto"

    def __post_init__(self) -> None:
        check_identifier(self.space_code, "space_code")
        check_identifier(self.thread_key, "thread_key")
        if self.mode not in get_args(ThreadMode):
            raise InvalidArgs(f"mode must be one of {', '.join(get_args(ThreadMode))}")

    @classmethod
    def named(cls, space_code: str | None, thread_key: str | None, mode: ThreadMode = "auto") -> Thread | None:
        """The thread that optional arguments name; None when they name none, InvalidArgs for half a name."""
        if space_code is None and thread_key is None:
            return None
        if space_code is None or thread_key is None:
            raise InvalidArgs("space_code and thread_key go together.")
        return cls(space_code, thread_key, mode)

    @property
    def place(self) -> tuple[str, str]:
        """What tells it from other threads, and ends its channel: `chat:{uid}:{space_code}:{thread_key}`."""
        return self.space_code, self.thread_key


class Listener(Generic[ServiceT]):
    """Base of a listener, for its types; any class with these two halves will do.

    One is made per user (or per user and open thread) and listening, so what it remembers goes when the user does.
    """

    service: ServiceT
    thread: Thread
    """Which thread this one is for; there only if the listener is declared `per="thread"`."""

    async def snapshot(self, user: User) -> list[Event]:
        """Read the source and return its sync events: the state as a whole."""
        raise NotImplementedError

    def changes(self, user: User) -> AsyncIterator[Event]:
        """The stream of deltas, for as long as the user is online, or has the thread open."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ListenerSpec:
    """A listener as declared: its name in logs and metrics, its class, whether `changes` begins with its own sync.

    `per`: one runs for each online user, or for each user and thread they have open.
    """

    name: str
    factory: type
    begins_with_sync: bool = False
    per: Literal["user", "thread"] = "user"


@overload
def listener(cls: L, /) -> L: ...
@overload
def listener(
    *, name: str = ..., begins_with_sync: bool = ..., per: Literal["user", "thread"] = ...
) -> Callable[[L], L]: ...
def listener(
    cls: L | None = None,
    /,
    *,
    name: str = "",
    begins_with_sync: bool = False,
    per: Literal["user", "thread"] = "user",
) -> L | Callable[[L], L]:
    """Declare a class inside a service as a listener, run once per online user, on one replica.

    `begins_with_sync`: `changes` itself yields the sync events first, from the same read that starts the stream, so
    that nothing falls between the two. Without it the core calls `snapshot` when the stream has been started.
    `per="thread"`: one runs for each chat thread that a user has open, with that thread as `self.thread`. Its events
    are named `chat.*`, and the core publishes them on the thread's own channel.
    """
    if per not in ("user", "thread"):
        raise TypeError(f"a listener is per user or per thread, not per {per!r}")

    def mark(cls: L) -> L:
        for half in ("snapshot", "changes"):
            if not callable(getattr(cls, half, None)):
                raise TypeError(f"the listener {cls.__qualname__} has no method {half}(self, user)")
        setattr(cls, _MARK, ListenerSpec(name or cls.__name__.lower(), cls, begins_with_sync, per))
        return cls

    return mark if cls is None else mark(cls)


class Service:
    """Base of a namespace. `open` and `close` are the two halves of its life; both may be left out."""

    namespace: ClassVar[str]
    channels: ClassVar[Mapping[str, str]] = {}
    """First segment of event types → variable that holds their channel prefix (default: `<segment>:`)."""
    Settings: ClassVar[type[msgspec.Struct] | None] = None

    settings: Any = None
    host: Host
    log: FilteringBoundLogger

    async def open(self) -> None:
        """Acquire what the methods need."""

    async def close(self) -> None:
        """Release it."""

    async def health(self) -> dict[str, Any]:
        """The namespace's own check, at `/healthz/{NAMESPACE}`: `{"status": "ok", …}`, or raise."""
        return {"status": "ok"}

    async def debug(self) -> dict[str, Any]:
        """What `/debug`, which needs the service token, shows of the namespace beyond `health`; never a secret."""
        return await self.health()

    @property
    def context(self) -> Context:
        """The running call's context; outside a call (a listener, a background task) the app's own."""
        return current_context.get(None) or self.host.background

    def methods(self) -> Iterator[tuple[str, Callable[..., Any], Method]]:
        """The declared methods: name, bound function, declaration."""
        for name, function in inspect.getmembers(type(self), inspect.isfunction):
            declared = getattr(function, _MARK, None)
            if isinstance(declared, Method):
                yield name, getattr(self, name), declared

    def listeners(self) -> list[ListenerSpec]:
        """The declared listeners, asked once at start; override it to listen to nothing under some settings."""
        return [
            declared
            for _, member in inspect.getmembers(type(self), inspect.isclass)
            if isinstance(declared := vars(member).get(_MARK), ListenerSpec)
        ]

    @staticmethod
    def wrap(
        namespace: str,
        cls: type,
        *,
        effects: Mapping[str, Effect] | None = None,
        aliases: Mapping[str, tuple[str, ...]] | None = None,
        channels: Mapping[str, str] | None = None,
    ) -> type[Service]:
        """Make a namespace of a plain class: every public function of it is a method, a plain write unless declared.

            Service.wrap("VECTOR_DB", VectorDatabaseService, effects={"search_vectors": "read"})

        The class is built without arguments when the service opens, on a thread; its `close()`, if any, is called
        at the end.
        """
        names = {name for name, _ in inspect.getmembers(cls, inspect.isroutine) if not name.startswith("_")}
        for mentioned in {*(effects or {}), *(aliases or {})}:
            if mentioned not in names:
                raise TypeError(f"{cls.__qualname__} has no public method {mentioned}")
        declared = {
            name: Method((effects or {}).get(name, "write"), aliases=(aliases or {}).get(name, ()))
            for name in sorted(names - {"close"})
        }
        attributes = {"namespace": namespace, "channels": channels or {}, "_wrapped": cls, "_declared": declared}
        return type(f"Wrapped{cls.__name__}", (_WrappedService,), {**attributes, "__doc__": cls.__doc__})


class _WrappedService(Service):
    _wrapped: ClassVar[type]
    _declared: ClassVar[Mapping[str, Method]]
    _instance: Any = None

    async def open(self) -> None:
        self._instance = await asyncio.to_thread(self._wrapped)

    async def close(self) -> None:
        close = getattr(self._instance, "close", None)
        if close is None:
            return
        outcome = await asyncio.to_thread(close)
        if inspect.isawaitable(outcome):
            await outcome

    def methods(self) -> Iterator[tuple[str, Callable[..., Any], Method]]:
        for name, declared in self._declared.items():
            yield name, self._late_bound(name), declared

    def _late_bound(self, name: str) -> Callable[..., Any]:
        # The table is compiled before open() builds the instance, so the function looks it up when called.
        function = getattr(self._wrapped, name)
        signature = inspect.signature(function)
        if inspect.isfunction(inspect.getattr_static(self._wrapped, name)):  # not static, not a classmethod
            signature = signature.replace(parameters=list(signature.parameters.values())[1:])

        def sync_call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._instance, name)(*args, **kwargs)

        async def async_call(*args: Any, **kwargs: Any) -> Any:
            return await getattr(self._instance, name)(*args, **kwargs)

        call: Any = async_call if inspect.iscoroutinefunction(function) else sync_call
        call.__name__, call.__doc__, call.__signature__, call.__hints_of__ = name, function.__doc__, signature, function
        return call  # type: ignore[no-any-return]
