from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import RedisError

from callboard.events.subscriptions import Subscriptions

pytestmark = pytest.mark.anyio

ALL = 1000


def confirm(book: Subscriptions, *commands: tuple[str, str]) -> None:
    for verb, channel in commands:
        assert book.answered([verb.lower().encode(), channel.encode(), 1]) is None


@pytest.fixture
async def book() -> Subscriptions:
    book = Subscriptions()
    book.begin()
    return book


async def test_wishes_of_one_turn_are_one_command_each(book: Subscriptions) -> None:
    for channel in ("a", "b", "a"):
        book.want(channel)
    assert book.commands(ALL) == [("SUBSCRIBE", "a"), ("SUBSCRIBE", "b")]
    assert book.commands(ALL) == []


async def test_churn_within_a_turn_is_not_sent(book: Subscriptions) -> None:
    book.want("a")
    book.unwant("a")
    assert book.commands(ALL) == []
    book.want("a")
    confirm(book, *book.commands(ALL))
    book.unwant("a")
    assert book.want("a") is None  # it was never given up
    assert book.commands(ALL) == []


async def test_commands_come_in_portions(book: Subscriptions) -> None:
    for number in range(5):
        book.want(str(number))
    assert [len(book.commands(2)), book.any_due, len(book.commands(2)), len(book.commands(2))] == [2, True, 2, 1]
    assert not book.any_due


async def test_all_who_wait_for_a_channel_learn_of_its_confirmation(book: Subscriptions) -> None:
    waiting = [book.want("a"), book.want("a")]
    confirm(book, *book.commands(ALL))
    assert [await future for future in waiting if future] == [None, None]
    assert book.want("a") is None


async def test_the_confirmation_of_an_earlier_subscription_is_not_taken_for_the_last(book: Subscriptions) -> None:
    book.want("a")
    first = book.commands(ALL)
    book.unwant("a")
    second = book.commands(ALL)
    waiting = book.want("a")
    third = book.commands(ALL)
    assert (first, second, third) == ([("SUBSCRIBE", "a")], [("UNSUBSCRIBE", "a")], [("SUBSCRIBE", "a")])
    assert waiting
    confirm(book, *first, *second)
    assert not waiting.done()
    confirm(book, *third)
    assert waiting.done()


async def test_a_new_connection_is_owed_everything_that_is_wanted(book: Subscriptions) -> None:
    for channel in ("a", "b", "c"):
        book.want(channel)
    book.unwant("b")
    confirm(book, *book.commands(ALL))
    assert book.restored.is_set()
    book.end()
    assert book.want("a") is not None  # nothing is confirmed without a connection
    book.begin()
    assert not book.restored.is_set()
    commands = book.commands(ALL)
    assert commands == [("SUBSCRIBE", "a"), ("SUBSCRIBE", "c")]
    confirm(book, commands[0])
    assert not book.restored.is_set()
    confirm(book, commands[1])
    assert book.restored.is_set()


async def test_a_wish_taken_back_is_not_waited_for(book: Subscriptions) -> None:
    book.want("a")
    book.want("b")
    book.begin()
    book.unwant("b")
    confirm(book, *book.commands(ALL))
    assert book.restored.is_set()


async def test_a_refusal_names_its_channel_and_is_tried_again_when_asked(book: Subscriptions) -> None:
    waiting = [book.want("a"), book.want("b")]
    book.commands(ALL)
    assert book.answered(Exception("NOPERM no access to this channel")) == "a"
    confirm(book, ("SUBSCRIBE", "b"))
    answers = await asyncio.gather(*(future for future in waiting if future))
    assert answers == ["NOPERM no access to this channel", None]
    book.want("a")
    assert book.commands(ALL) == [("SUBSCRIBE", "a")]


@pytest.mark.parametrize("error", ["MOVED 1 other:6379", "CLUSTERDOWN", "LOADING", "NOAUTH Authentication required."])
async def test_another_refusal_ends_the_connection(book: Subscriptions, error: str) -> None:
    book.want("a")
    book.commands(ALL)
    with pytest.raises(RedisError):
        book.answered(Exception(error))


async def test_a_confirmation_nobody_asked_for_ends_the_connection(book: Subscriptions) -> None:
    book.want("a")
    confirm(book, *book.commands(ALL))
    with pytest.raises(RedisError):
        book.answered([b"subscribe", b"a", 1])  # it was subscribed anew behind our back: something was missed


async def test_an_unsubscription_by_the_server_ends_the_connection(book: Subscriptions) -> None:
    book.want("a")
    confirm(book, *book.commands(ALL))
    book.want("b")
    book.commands(ALL)
    with pytest.raises(RedisError):
        book.answered([b"unsubscribe", b"a", 0])
