"""What batches of a window mean, and the ids of changes."""

from __future__ import annotations

import random
from typing import Any

import pytest

from callboard.messages import utc_now
from callboard_firebase import BURST
from callboard_firebase_realtime import window as module
from callboard_firebase_realtime.window import Told, Window, change_id, minute


class Node:
    """A node, and the window of its newest children as the database shows it, batch by batch."""

    def __init__(self, limit: int = 5, **children: Any) -> None:
        self.children = children
        self.limit = limit
        self.seen: dict[str, Any] = {}
        self.window = Window(lambda value: value != "hidden", limit)
        assert self.batch(initial=True) is None

    def newest(self) -> dict[str, Any]:
        return {key: self.children[key] for key in sorted(self.children)[-self.limit :]}

    def batch(self, *, initial: bool = False) -> list[Told] | None:
        now = self.newest()
        changed = [key for key in {**now, **self.seen} if now.get(key) != self.seen.get(key)]
        self.seen = now
        return self.window.read(changed, now, initial=initial)

    def told(self) -> list[str] | None:
        batch = self.batch()
        return None if batch is None else [one.key for one in batch]


def test_new_and_changed_children_are_told_in_order() -> None:
    node = Node(a="1")
    node.children |= {"c": "3", "b": "2", "a": "changed"}

    batch = node.batch()

    assert batch is not None
    assert [(one.key, one.value) for one in batch] == [("a", "changed"), ("b", "2"), ("c", "3")]
    assert node.window.visible() == ["a", "b", "c"]


def test_one_that_goes_makes_a_sync() -> None:
    node = Node(a="1", b="2")
    del node.children["b"]
    assert node.told() is None
    assert node.window.visible() == ["a"]

    node.children["a"] = "hidden"
    assert node.told() is None
    node.children["a"] = "hidden still"
    assert node.told() == ["a"]


def test_what_is_hidden_is_not_told() -> None:
    node = Node(a="hidden")
    node.children["b"] = "hidden"
    assert node.told() == []
    del node.children["b"]
    assert node.told() == []


def test_a_full_window_tells_new_ones_alone() -> None:
    node = Node(limit=3, a="1", b="2", c="3")
    node.children["d"] = "4"  # and `a` leaves the window
    assert node.told() == ["d"]
    assert node.window.visible() == ["b", "c", "d"]
    assert node.window._shown.keys() == {"b", "c", "d"}  # what has left is not remembered


def test_an_older_one_that_comes_in_makes_a_sync() -> None:
    node = Node(limit=3, a="1", b="2", c="3", d="4")
    del node.children["c"]  # and `a` enters the window
    assert node.told() is None
    assert node.window.visible() == ["a", "b", "d"]


def test_an_older_one_that_comes_in_later_than_another_goes_makes_a_sync_too() -> None:
    """The database tells the two apart: first the one that goes, then the one that takes the place."""
    node = Node(limit=3, a="1", b="2", c="3")
    node.children["d"] = "4"
    assert node.told() == ["d"]

    window, left = node.window, {"b": "2", "d": "4"}
    assert window.read(["c"], left) is None
    assert window.read(["a"], {**left, "a": "1"}) is None
    assert window.visible() == ["a", "b", "d"]


def test_what_has_changed_out_of_sight_does_not_stay_as_it_was_shown() -> None:
    gone, hidden = Node(limit=2, a="1", b="2"), Node(limit=2, a="1", b="2")
    for node in (gone, hidden):
        node.children |= {"c": "hidden"}  # and `a` leaves the window
        assert node.told() == []
    del gone.children["a"]
    hidden.children["a"] = "hidden"
    for node in (gone, hidden):
        assert node.batch() == []
        del node.children["c"]
        assert node.told() is None
        assert node.window.visible() == ["b"]


def test_a_key_below_the_others_is_new_where_nothing_is_older_than_the_window() -> None:
    node = Node(b="2")
    node.children["a"] = "1"  # made by a clock that is behind
    assert node.told() == ["a"]
    assert node.window.visible() == ["a", "b"]


def test_a_burst_is_one_sync() -> None:
    node = Node(limit=500)
    node.children |= {f"k{n:03}": n for n in range(BURST)}
    assert len(node.told() or []) == BURST

    node.children |= {f"l{n:03}": n for n in range(BURST + 1)}
    assert node.told() is None
    assert len(node.window.visible()) == 2 * BURST + 1


def test_what_consumers_are_told_is_what_is_there() -> None:
    """Random changes, read in random batches: a consumer that applies them ends with the window's visible children."""
    for seed in range(200):
        chance = random.Random(seed)
        node = Node(limit=8)
        consumer: dict[str, Any] = {}
        for step in range(60):
            key = f"k{chance.choice([step, chance.randrange(60)]):02}"
            if chance.random() < 0.3:
                node.children.pop(key, None)
            else:
                node.children[key] = chance.choice(["hidden", step, step])
            if chance.random() < 0.5:
                continue
            batch = node.batch()
            if batch is None:
                consumer = {one: node.seen[one] for one in node.window.visible()}
            else:
                consumer |= {one.key: one.value for one in batch}
            shown = {one: value for one, value in node.newest().items() if value != "hidden"}
            assert node.window.visible() == sorted(shown), seed
            # A consumer may keep older ones than the window has.
            assert {one: consumer.get(one) for one in shown} == shown, seed
            oldest = min(node.newest(), default="")
            newer = {one for one in consumer if one >= oldest}
            if len(node.newest()) == node.limit:
                assert newer == set(shown), seed
            elif len(node.newest()) < node.limit:
                assert set(consumer) == set(shown), seed


@pytest.fixture
def one_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "minute", lambda: "2025-09-20T11:44")


@pytest.mark.usefixtures("one_minute")
def test_two_replicas_name_one_change_alike() -> None:
    # One has been there from the start, the other has seen the state alone.
    first = Node()
    first.children["a"] = {"text": 1, "read": False}
    first.batch()
    second = Node(**first.children)
    for change in ({"read": True, "text": 1}, {"read": True, "text": 2}, {"read": False, "text": 2}):
        names = []
        for node in (first, second):
            node.children["a"] = change
            batch = node.batch()
            assert batch is not None
            names.append(change_id("acme/chats/t/messages", "chat.message", batch))
        assert names[0] == names[1]


@pytest.mark.usefixtures("one_minute")
def test_a_change_that_happens_again_has_another_name() -> None:
    node = Node(a={"read": False})
    names = set()
    for read in (True, False) * 10:
        node.children["a"] = {"read": read}
        batch = node.batch()
        assert batch is not None
        names.add(change_id("path", "msg.new", batch))
    assert len(names) == 20


def test_names_differ_by_minute_path_and_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for now in ("2025-09-20T11:44", "2025-09-20T11:45"):
        monkeypatch.setattr(module, "minute", lambda now=now: now)
        node = Node()
        node.children["a"] = 1
        batch = node.batch()
        assert batch is not None
        names |= {change_id(path, kind, batch) for path in ("p", "q") for kind in ("msg.new", "chat.message")}
    assert len(names) == 8


def test_the_minute() -> None:
    assert utc_now().startswith(minute())
    assert len(minute()) == len("2025-09-20T11:44")


def test_what_others_alone_may_have_seen_makes_a_sync() -> None:
    window = Window(lambda value: value != "hidden", 5)
    assert window.read([], {"a": "1", "b": "hidden"}, initial=True) is None
    for changed, children in (("c", {"a": "1", "b": "hidden"}), ("b", {"a": "1", "b": "hidden"})):
        assert window.read([changed], children) == []
        assert window.read([changed], children, passed={changed}) is None
    [told] = window.read(["a"], {"a": "1", "b": "hidden"}, passed={"a"}) or []
    assert (told.key, told.value) == ("a", "1")
