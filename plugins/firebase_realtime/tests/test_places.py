"""Paths from checked parts; keys, their order and their times."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from callboard import InvalidArgs
from callboard_firebase.realtime import PushIds
from callboard_firebase_realtime.places import (
    children,
    has_thread,
    inbox_path,
    key_order,
    made_at,
    messages_path,
    space_path,
    thread_path,
    threads_path,
)

WHEN = datetime(2025, 9, 20, 11, 44, 0, 123_000, tzinfo=UTC)


def test_the_paths_of_the_contract() -> None:
    assert space_path("acme") == "acme"
    assert threads_path("acme", "chats") == "acme/chats"
    assert thread_path("acme", "-Nabc", "job_chats") == "acme/job_chats/-Nabc"
    assert messages_path("acme", "-Nabc", "chats") == "acme/chats/-Nabc/messages"
    assert inbox_path("ada") == "clients/ada/direct_message_notif"


def test_threads_that_the_database_cannot_hold() -> None:
    assert has_thread("a@b=c+d", "-N1")
    assert not has_thread("a.b", "t1")
    assert not has_thread("acme", "t.1")
    assert not has_thread("clients", "t1")


@pytest.mark.parametrize("odd", ["", "a/b", "..", "a.b", "a$", "a#b", "[a]", "a b", "é", "x" * 129, 3, None])
def test_no_part_can_leave_its_place(odd: Any) -> None:
    with pytest.raises(InvalidArgs):
        space_path(odd)
    with pytest.raises(InvalidArgs):
        threads_path(odd, "chats")
    with pytest.raises(InvalidArgs):
        thread_path("acme", odd, "chats")
    with pytest.raises(InvalidArgs):
        inbox_path(odd)


def test_the_users_own_data_is_no_space() -> None:
    with pytest.raises(InvalidArgs, match="clients"):
        space_path("clients")
    with pytest.raises(InvalidArgs, match="clients"):
        messages_path("clients", "ada", "chats")


def test_children_of_whatever_is_there() -> None:
    assert children({"a": 1}) == {"a": 1}
    assert children(["x", None, {"y": 1}]) == {"0": "x", "2": {"y": 1}}
    for nothing in (None, "text", 3, True):
        assert children(nothing) == {}


def test_keys_have_the_databases_order() -> None:
    ordered = ["-7", "0", "2", "10", "2147483647", "-Nabc", "007", "2147483648", "9999999999", "Z", "a", "é"]
    mixed = ordered[:]
    random.Random(7).shuffle(mixed)

    # Integers of 32 bits by their number; whatever looks like one and is none is a text.
    assert sorted(mixed, key=key_order) == ordered


def test_when_a_key_was_made() -> None:
    made = PushIds(lambda: WHEN.timestamp()).next()

    assert made_at(made) == WHEN
    assert made_at("job1") == made_at("x" * 21) == datetime(1970, 1, 1, tzinfo=UTC)
    assert made_at("z" * 20).year > 9_000 or made_at("z" * 20).year == 1970  # beyond the calendar at most
