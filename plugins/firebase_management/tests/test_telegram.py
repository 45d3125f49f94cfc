"""Telegram users and the mandates they may act for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

import pytest
from google.cloud.firestore import AsyncClient

from callboard import InvalidArgs
from callboard_firebase_management import FirebaseManagement

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
ACME, BETA = "clients/ada/bo_clients/b1/mandates/acme", "clients/ada/bo_clients/b1/mandates/be.ta"
BOB = "telegram_users/bob"


async def mandates(stored: Stored) -> list[str]:
    return sorted((await stored(BOB) or {})["authorized_mandates"])


async def test_create_and_add_a_mandate(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.create_telegram_user("ada", ACME, "@Bob", {"mandate_doc_id": "acme", "n": 1}) is True

    bob = await stored(BOB) or {}
    created, updated = bob.pop("created_at"), bob.pop("updated_at")
    assert isinstance(created, datetime)
    assert created == updated == bob["authorized_mandates"][ACME].pop("added_at")
    assert bob == {
        "telegram_username": "bob",
        "is_active": True,
        "telegram_chat_id": None,
        "last_activity": None,
        "authorized_mandates": {
            ACME: {"firebase_user_id": "ada", "mandate_path": ACME, "mandate_doc_id": "acme", "n": 1},
        },
    }

    assert await service.create_telegram_user("ada", ACME, "bob") is False
    assert await service.create_telegram_user("charles", BETA, "BOB") is True
    after = await stored(BOB) or {}
    assert after["created_at"] == created
    assert after["updated_at"] > updated
    assert await mandates(stored) == [ACME, BETA]
    assert after["authorized_mandates"][ACME]["n"] == 1


async def test_get(service: FirebaseManagement, store: Store) -> None:
    assert await service.get_telegram_user_by_username("bob") is None

    await store(BOB, {"is_active": False, "telegram_chat_id": 7})
    await store("telegram_users/Older", {"is_active": True})

    bob = {"is_active": False, "telegram_chat_id": 7, "doc_id": "bob"}
    assert await service.get_telegram_user_by_username(" @BOB ") == bob
    assert await service.get_telegram_user_by_username("Older") == {"is_active": True, "doc_id": "Older"}


async def test_a_user_named_with_capitals_by_an_earlier_writer_is_kept(
    service: FirebaseManagement, store: Store, stored: Stored
) -> None:
    await store("telegram_users/Bob", {"is_active": True, "authorized_mandates": {BETA: {}}})

    assert await service.create_telegram_user("ada", ACME, "Bob") is True

    assert await stored(BOB) is None
    assert await service.is_telegram_user_authorized("Bob", ACME) is True
    assert await service.delete_telegram_user("Bob") is True
    assert await stored("telegram_users/Bob") is None


@pytest.mark.parametrize(
    ("fields", "authorized"),
    [
        ({"is_active": True, "authorized_mandates": {ACME: {}}}, True),
        ({"is_active": True, "authorized_mandates": {BETA: {}}}, False),
        ({"is_active": False, "authorized_mandates": {ACME: {}}}, False),
        ({"is_active": "true", "authorized_mandates": {ACME: {}}}, False),
        ({"authorized_mandates": {ACME: {}}}, False),
        ({"is_active": True, "authorized_mandates": [ACME]}, False),
        ({"is_active": True}, False),
    ],
)
async def test_authorized(service: FirebaseManagement, store: Store, fields: dict[str, Any], authorized: bool) -> None:
    assert await service.is_telegram_user_authorized("bob", ACME) is False
    await store(BOB, fields)
    assert await service.is_telegram_user_authorized("bob", ACME) is authorized


async def test_delete_withdraws_mandates_and_then_the_user(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.delete_telegram_user("bob", ACME) is False
    for mandate in (ACME, BETA):
        await service.create_telegram_user("ada", mandate, "bob")

    assert await service.delete_telegram_user("bob", BETA) is True
    assert await mandates(stored) == [ACME]
    assert await service.delete_telegram_user("bob", BETA) is False
    assert await service.delete_telegram_user("@Bob", ACME) is True
    assert await stored(BOB) is None


async def test_delete_of_a_user_whatever_their_mandates(service: FirebaseManagement, stored: Stored) -> None:
    for mandate in (ACME, BETA):
        await service.create_telegram_user("ada", mandate, "bob")

    assert await service.delete_telegram_user("bob") is True
    assert await service.delete_telegram_user("bob") is False
    assert await stored(BOB) is None


@pytest.mark.parametrize("mandate", [ACME, None])
async def test_who_was_deleted_is_not_authorized_by_another_spelling(
    service: FirebaseManagement, store: Store, stored: Stored, mandate: str | None
) -> None:
    await store("telegram_users/Bob", {"is_active": True, "authorized_mandates": {ACME: {}}})
    await service.create_telegram_user("ada", ACME, "bob")

    assert await service.delete_telegram_user("Bob", mandate) is True

    assert await service.is_telegram_user_authorized("Bob", ACME) is False
    assert [await stored(BOB), await stored("telegram_users/Bob")] == [None, None]


async def test_mandates_added_at_once_are_all_kept(service: FirebaseManagement, stored: Stored) -> None:
    added = [f"clients/ada/bo_clients/b1/mandates/m{n}" for n in range(6)]

    assert await asyncio.gather(*(service.create_telegram_user("ada", one, "bob") for one in added)) == [True] * 6

    assert await mandates(stored) == added


async def test_mandates_added_and_withdrawn_at_once_end_as_said(service: FirebaseManagement, stored: Stored) -> None:
    withdrawn, added = ([f"mandates/m{n}" for n in numbers] for numbers in (range(4), range(4, 8)))
    for one in withdrawn:
        await service.create_telegram_user("ada", one, "bob")

    calls = [service.delete_telegram_user("bob", one) for one in withdrawn]
    calls += [service.create_telegram_user("ada", one, "bob") for one in added]

    assert all(await asyncio.gather(*calls))
    assert await mandates(stored) == added


async def test_a_last_mandate_withdrawn_takes_no_new_one_with_it(service: FirebaseManagement, stored: Stored) -> None:
    for _ in range(5):
        await service.create_telegram_user("ada", ACME, "bob")
        withdrawn = service.delete_telegram_user("bob", ACME)
        assert all(await asyncio.gather(withdrawn, service.create_telegram_user("ada", BETA, "bob")))
        assert await mandates(stored) == [BETA]
        await service.delete_telegram_user("bob")


async def test_a_writer_that_only_reads_first_would_take_a_new_mandate_with_the_last(
    client: AsyncClient, store: Store, stored: Stored
) -> None:
    """The negative control: what the precondition on the version that was read protects from."""
    await store(BOB, {"authorized_mandates": {"m1": {}}})

    left = ((await client.document(BOB).get()).to_dict() or {})["authorized_mandates"].keys() - {"m1"}
    await client.document(BOB).update({"authorized_mandates.m2": {}})  # another writer, between read and delete
    if not left:
        await client.document(BOB).delete()

    assert await stored(BOB) is None


async def test_bad_arguments(service: FirebaseManagement, stored: Stored) -> None:
    for call in (
        service.create_telegram_user("a/b", ACME, "bob"),
        service.create_telegram_user("ada", "clients/ada/bo_clients", "bob"),
        service.create_telegram_user("ada", ACME, "@"),
        service.create_telegram_user("ada", ACME, "a/b"),
        service.create_telegram_user("ada", ACME, "bob", {"x": [[1]]}),
        service.create_telegram_user("ada", ACME, "bob", {"x": {"$op": "delete"}}),
        service.get_telegram_user_by_username(""),
        service.is_telegram_user_authorized("bob", "/"),
        service.delete_telegram_user("..", ACME),
        service.delete_telegram_user("bob", "clients"),
    ):
        with pytest.raises(InvalidArgs):
            await call
    assert await stored(BOB) is None
