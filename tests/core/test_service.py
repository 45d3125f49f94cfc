from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from callboard import Event, InvalidArgs, Listener, Service, Thread, User, listener, method
from callboard.context import Context, current_context
from callboard.service import ListenerSpec, Method

pytestmark = pytest.mark.anyio


class Sample(Service):
    namespace = "SAMPLE"

    @method(effect="read", timeout_s=3, aliases=("other",))
    async def get(self) -> None: ...

    @method
    def put(self) -> None: ...

    def helper(self) -> None: ...

    @listener(begins_with_sync=True)
    class Changes(Listener["Sample"]): ...


class Child(Sample):
    @method(effect="read")
    async def more(self) -> None: ...


def test_methods_are_those_that_are_declared() -> None:
    found = {name: declared for name, _, declared in Sample().methods()}
    assert found == {"get": Method("read", timeout_s=3, aliases=("other",)), "put": Method()}


def test_methods_are_inherited() -> None:
    assert [name for name, _, _ in Child().methods()] == ["get", "more", "put"]


def test_listeners_are_found() -> None:
    assert Sample().listeners() == [ListenerSpec("changes", Sample.Changes, begins_with_sync=True)]


def test_a_listener_without_its_halves_is_refused() -> None:
    with pytest.raises(TypeError, match="no method snapshot"):

        @listener
        class Half: ...


def test_a_listener_may_be_one_per_thread() -> None:
    class Chats(Service):
        namespace = "CHATS"

        @listener(per="thread")
        class Messages(Sample.Changes): ...

    assert Chats().listeners() == [ListenerSpec("messages", Chats.Messages, per="thread")]
    with pytest.raises(TypeError, match="not per 'room'"):
        listener(per="room")  # type: ignore[call-overload]


def test_a_thread_is_named_by_its_place() -> None:
    thread = Thread("acme", "-Nabc")
    assert (thread.place, thread.mode) == (("acme", "-Nabc"), "auto")
    assert thread == Thread("acme", "-Nabc", "auto") != Thread("acme", "-Nabc", "chats")
    for wrong in (("a:b", "t"), ("acme", ""), ("acme", "{t}"), ("acme", "t", "rooms")):
        with pytest.raises(InvalidArgs):
            Thread(*wrong)


def test_what_a_user_may_see() -> None:
    assert User("u").may_see("any")
    assert not User("u", frozenset({"a"})).may_see("b")
    assert User("u", frozenset({"a"})).may_see("a")


class VectorDatabaseService:
    """Stores vectors."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {}
        self.closed = False

    def search_vectors(self, query_vector: list[float], top_k: int = 10) -> list[str]:
        return sorted(self.rows)[:top_k]

    async def upsert_vectors(self, vectors: dict[str, list[float]]) -> int:
        self.rows.update(vectors)
        return len(self.rows)

    @staticmethod
    def distance(first: float, second: float = 0.0) -> float:
        return abs(first - second)

    @classmethod
    def kinds(cls) -> list[str]:
        return [cls.__name__]

    def _private(self) -> None: ...

    def close(self) -> None:
        self.closed = True


async def test_a_plain_class_becomes_a_namespace() -> None:
    wrapped = Service.wrap(
        "VECTOR_DB", VectorDatabaseService, effects={"search_vectors": "read"}, aliases={"upsert_vectors": ("put",)}
    )
    service: Any = wrapped()
    methods = {name: (function, declared) for name, function, declared in service.methods()}
    assert {name: declared for name, (_, declared) in methods.items()} == {
        "distance": Method(),
        "kinds": Method(),
        "search_vectors": Method("read"),
        "upsert_vectors": Method("write", aliases=("put",)),
    }
    await service.open()
    assert await methods["upsert_vectors"][0](vectors={"a": [1.0]}) == 1
    assert methods["search_vectors"][0]([1.0], top_k=1) == ["a"]
    assert methods["distance"][0](3.0, second=1.0) == 2.0
    assert list(inspect.signature(methods["distance"][0]).parameters) == ["first", "second"]
    assert methods["kinds"][0]() == ["VectorDatabaseService"]
    instance = service._instance
    await service.close()
    assert instance.closed


def test_wrapping_names_a_method_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="no public method searhc"):
        Service.wrap("VECTOR_DB", VectorDatabaseService, effects={"searhc": "read"})


def context(published: list[tuple[Event, tuple[str, ...]]], **fields: Any) -> Context:
    async def publish(event: Event, *, specific: tuple[str, ...] = ()) -> None:
        published.append((event, specific))

    return Context(publish, asyncio.get_running_loop(), **fields)


async def test_publishing_from_a_thread_and_not_from_the_loop() -> None:
    published: list[tuple[Event, tuple[str, ...]]] = []
    mine = context(published)
    event = Event(type="a.b", uid="u", payload={})
    await asyncio.to_thread(mine.publish_soon, event, specific=("x",))
    assert published == [(event, ("x",))]
    with pytest.raises(RuntimeError, match="await publish"):
        mine.publish_soon(event)


async def test_progress_goes_to_the_calls_user() -> None:
    published: list[tuple[Event, tuple[str, ...]]] = []
    await context(published, user_id="u").progress(0.5, job_id="j")
    event, _ = published[0]
    assert (event.type, event.uid, event.payload) == ("service.progress_update", "u", {"job_id": "j", "progress": 0.5})
    with pytest.raises(ValueError, match="needs a user"):
        await context(published).progress(1, job_id="j")


async def test_time_left() -> None:
    assert context([]).time_left_s() is None
    assert context([], deadline=0.0).time_left_s() == 0.0


async def test_outside_a_call_the_context_is_the_apps() -> None:
    service = Sample()

    class Host:
        background = context([])

    service.host = Host()  # type: ignore[assignment]
    assert service.context is Host.background
    token = current_context.set(mine := context([]))
    assert service.context is mine
    current_context.reset(token)
