"""Parameters: read by type, added, never overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from callboard import AlreadyExists, InvalidArgs
from callboard_firebase_management import FirebaseManagement

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
CURRENCIES = "settings_param/currencies"
EURO, FRANC = {"name": "Euro", "region": "Europe"}, {"name": "Swiss Franc", "region": "Europe"}


async def test_add_and_get(service: FirebaseManagement) -> None:
    assert await service.get_param_data("currencies") is None

    assert await service.add_new_param("currencies", {"EUR": EURO}) is True
    assert await service.add_new_param("currencies", {"CHF": FRANC, "a.b/c": [1]}) is True
    assert await service.add_new_param("currencies", {"CHF": FRANC, "x": None}) is True  # a repeated call

    assert await service.get_param_data("currencies") == {"EUR": EURO, "CHF": FRANC, "a.b/c": [1], "x": None}
    assert await service.get_param_data("languages") is None


async def test_a_name_that_is_taken(service: FirebaseManagement, stored: Stored) -> None:
    await service.add_new_param("currencies", {"EUR": EURO})

    with pytest.raises(AlreadyExists, match="`EUR`"):
        await service.add_new_param("currencies", {"CHF": FRANC, "EUR": FRANC})

    assert await stored(CURRENCIES) == {"EUR": EURO}


async def test_additions_at_once_are_all_kept(service: FirebaseManagement) -> None:
    await asyncio.gather(*(service.add_new_param("currencies", {f"C{n}": n}) for n in range(6)))
    assert await service.get_param_data("currencies") == {f"C{n}": n for n in range(6)}


async def test_of_additions_of_one_name_at_once_one_succeeds(service: FirebaseManagement, stored: Stored) -> None:
    ended = await asyncio.gather(
        *(service.add_new_param("currencies", {"EUR": n}) for n in range(6)), return_exceptions=True
    )

    assert [one for one in ended if one is not True] == [one for one in ended if isinstance(one, AlreadyExists)]
    assert ended.count(True) == 1
    assert await stored(CURRENCIES) == {"EUR": ended.index(True)}


async def test_bad_arguments(service: FirebaseManagement, stored: Stored) -> None:
    for call in (
        service.get_param_data("a/b"),
        service.get_param_data(""),
        service.add_new_param("a/b", {"EUR": EURO}),
        service.add_new_param("currencies", {"$op": "server_timestamp"}),
        service.add_new_param("currencies", {"EUR": {"since": {"$op": "server_timestamp"}}}),
        service.add_new_param("currencies", {"__EUR__": 1}),
    ):
        with pytest.raises(InvalidArgs):
            await call
    assert await stored(CURRENCIES) is None
