"""Listening with Google's client: `firebase_admin.db.Reference.listen`, its events and its reconnects."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import firebase_admin
import pytest
from firebase_admin import db, exceptions

from callboard_local import RealtimeProcess

# Google's client closes the file under its own reader, whose thread then ends with an error.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception in thread Thread-\d+ \(_start_listen\):pytest.PytestUnhandledThreadExceptionWarning"
)

WAIT_S = 20.0

Listen = Callable[[db.Reference], "Heard"]


class Heard:
    """What a listener has heard, in order."""

    def __init__(self, reference: db.Reference) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self._news = threading.Condition()
        self.registration: db.ListenerRegistration = reference.listen(self._hear)

    def _hear(self, event: db.Event) -> None:
        with self._news:
            self.events.append((event.event_type, event.path, event.data))
            self._news.notify_all()

    def until(self, count: int) -> list[tuple[str, str, Any]]:
        """Wait for the first `count` events."""
        self.until_true(lambda events: len(events) >= count)
        return self.events[:count]

    def until_true(self, condition: Callable[[list[tuple[str, str, Any]]], bool]) -> None:
        """Wait for an event that makes the condition true."""
        with self._news:
            assert self._news.wait_for(lambda: condition(self.events), WAIT_S), self.events


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Starts listeners: `heard = listen(reference)`."""
    started: list[Heard] = []

    def start(reference: db.Reference) -> Heard:
        started.append(Heard(reference))
        return started[-1]

    yield start
    for heard in started:
        heard.registration.close()


def control(server: RealtimeProcess, action: str, **options: Any) -> dict[str, Any]:
    return asyncio.run(server.control(action, **options))


def test_the_first_event_tells_all_and_the_next_what_changed(root: db.Reference, listen: Listen) -> None:
    node = root.child("a")
    node.set({"b": 1})
    heard = listen(node)
    heard.until(1)
    node.child("c/d").set([1, 2])
    node.update({"b": None, "c/e": 5})
    pushed = node.child("list").push("x")
    node.child("c").delete()
    node.set("scalar")
    root.delete()
    assert heard.until(7) == [
        ("put", "/", {"b": 1}),
        ("put", "/c/d", [1, 2]),
        ("patch", "/", {"b": None, "c/e": 5}),
        ("put", f"/list/{pushed.key}", "x"),
        ("put", "/c", None),
        ("put", "/", "scalar"),
        ("put", "/", None),
    ]


def test_a_listener_on_nothing_hears_of_its_beginning(root: db.Reference, listen: Listen) -> None:
    heard = listen(root.child("a/b"))
    heard.until(1)
    root.update({"a/b/c": 1, "a/x": 2, "y": 3})
    root.child("a").set({"b": 7})
    assert heard.until(3) == [("put", "/", None), ("patch", "/", {"c": 1}), ("put", "/", 7)]


def test_a_transaction_is_heard_once(root: db.Reference, listen: Listen) -> None:
    heard = listen(root)
    heard.until(1)
    root.child("n").transaction(lambda value: (value or 0) + 1)
    root.child("end").set(True)
    assert heard.until(3)[1:] == [("put", "/n", 1), ("put", "/end", True)]


def test_what_changes_nothing_or_elsewhere_is_not_heard(
    root: db.Reference, listen: Listen, app: firebase_admin.App, realtime_server: RealtimeProcess
) -> None:
    root.set({"a": 1, "b": {"c": 2}})
    heard = listen(root.child("b"))
    heard.until(1)
    root.child("a").set(3)
    root.child("b/c").set(2)
    root.child("b/none").delete()
    root.update({"a": 4, "b/c": 2})
    db.reference("b", app, url=realtime_server.url_of("another")).set("theirs")
    root.child("b/c").set(5)
    assert heard.until(2) == [("put", "/", {"c": 2}), ("put", "/c", 5)]


def test_a_closed_listener_hears_no_more(
    root: db.Reference, listen: Listen, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    heard, other = listen(root), listen(root)
    heard.until(1)
    other.until(1)
    heard.registration.close()
    root.set(1)
    other.until(2)
    assert heard.events == [("put", "/", None)]
    while control(realtime_server, "streams", ns=realtime_namespace)["streams"] > 1:
        pass  # each look is a request


@pytest.mark.parametrize("fault", ["drop", "end", "auth_revoked"])
def test_a_listener_comes_back_after_its_stream_has_ended(
    root: db.Reference, listen: Listen, realtime_server: RealtimeProcess, realtime_namespace: str, fault: str
) -> None:
    root.set({"a": 1})
    heard = listen(root)
    heard.until(1)
    assert control(realtime_server, fault, ns=realtime_namespace)["streams"] == 1
    root.child("a").set(2)  # while it is away, or already back: its next events tell either way
    heard.until_true(lambda events: events[-1] in (("put", "/", {"a": 2}), ("put", "/a", 2)))
    root.child("b").set(3)
    heard.until_true(lambda events: events[-1] == ("put", "/b", 3))
    assert heard.events[0] == ("put", "/", {"a": 1})


def test_a_cancelled_listener_stays_and_hears_no_more(
    root: db.Reference, listen: Listen, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    """What Google's client makes of it: it swallows the event, and nobody is told."""
    heard, other = listen(root.child("a")), listen(root)
    heard.until(1)
    other.until(1)
    control(realtime_server, "cancel", ns=realtime_namespace, path="/a")
    root.child("a").set(1)
    other.until(2)
    assert heard.events == [("put", "/", None)]


def test_a_restarted_server_is_found_again(own_realtime: RealtimeProcess) -> None:
    asyncio.run(own_realtime.control("keep_alive", seconds=0.2))
    app = firebase_admin.initialize_app(options={"databaseURL": own_realtime.url}, name="restart")
    root = db.reference(app=app)
    root.set("before")
    heard = Heard(root)
    heard.until(1)
    asyncio.run(own_realtime.restart())  # its memory is empty now
    assert heard.until(2)[1] == ("put", "/", None)
    asyncio.run(own_realtime.control("keep_alive", seconds=0.2))
    root.set("after")
    assert heard.until(3)[2] == ("put", "/", "after")
    heard.registration.close()
    firebase_admin.delete_app(app)


def test_a_refused_listener_is_told(
    root: db.Reference, listen: Listen, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    control(realtime_server, "refuse", status=403, ns=realtime_namespace, streams_only=True)
    with pytest.raises(exceptions.PermissionDeniedError, match="refused on request of a test"):
        root.listen(print)
    assert root.get() is None  # not a stream
    heard = listen(root)
    assert heard.until(1) == [("put", "/", None)]
