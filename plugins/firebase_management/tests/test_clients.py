"""A user's first documents, and the list of customers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

import pytest
from google.cloud.firestore import AsyncClient

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase_management import FirebaseManagement, clients

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
CLIENT, COMPANY = "clients/ada", "clients/ada/bo_clients/ada"
ADA = {"uid": "ada", "email": "ada@example.org", "displayName": "Ada", "photoUrl": "https://example.org/ada.png"}


async def test_the_first_call_creates_both_documents(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.check_and_create_client_document(ADA) is True

    client, company = await stored(CLIENT) or {}, await stored(COMPANY) or {}
    assert isinstance(client.pop("created_at"), datetime)
    assert client == {**ADA, "client_email": "ada@example.org", "client_name": "Ada"}
    assert isinstance(company.pop("created_at"), datetime)
    assert company.pop("client_uuid").startswith("client_")
    assert company == {"client_name": "Ada"}


async def test_later_calls_change_nothing(service: FirebaseManagement, stored: Stored) -> None:
    await service.check_and_create_client_document(ADA)
    before = await stored(CLIENT), await stored(COMPANY)

    assert await service.check_and_create_client_document({**ADA, "displayName": "Someone"}) is False

    assert (await stored(CLIENT), await stored(COMPANY)) == before


async def test_of_calls_at_once_one_creates(service: FirebaseManagement, stored: Stored) -> None:
    names = [f"name {n}" for n in range(8)]

    created = await asyncio.gather(
        *(service.check_and_create_client_document({"uid": "ada", "displayName": name}) for name in names)
    )

    assert created.count(True) == 1
    winner = names[created.index(True)]
    assert [(await stored(path) or {})["client_name"] for path in (CLIENT, COMPANY)] == [winner, winner]


async def test_a_write_that_was_sent_twice_has_created(
    service: FirebaseManagement, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Google's client does when the first answer is lost: the second finds what the first made."""
    create, sent = service._create, []

    async def twice(*args: Any) -> None:
        sent.append(args)
        await create(*args)
        await create(*args)

    monkeypatch.setattr(service, "_create", twice)

    assert await service.check_and_create_client_document(ADA) is True
    assert len(sent) == 1
    assert (await stored(COMPANY) or {})["client_name"] == "Ada"


async def test_calls_that_read_first_would_all_create(client: AsyncClient, stored: Stored) -> None:
    """The negative control: what `create` protects from."""
    everyone_has_read = asyncio.Barrier(2)

    async def check_and_create(name: str) -> bool:
        missing = not (await client.document(CLIENT).get()).exists
        await everyone_has_read.wait()
        if missing:
            await client.document(CLIENT).set({"client_name": name})
        return missing

    assert all(await asyncio.gather(check_and_create("one"), check_and_create("two")))


@pytest.mark.parametrize(("there", "created"), [(CLIENT, False), (COMPANY, True)])
async def test_a_gap_is_filled(
    service: FirebaseManagement, store: Store, stored: Stored, there: str, created: bool
) -> None:
    await store(there, {"client_name": "as it was", "client_uuid": "older"})

    assert await service.check_and_create_client_document(ADA) is created

    assert await stored(there) == {"client_name": "as it was", "client_uuid": "older"}
    [missing] = {CLIENT, COMPANY} - {there}
    assert (await stored(missing) or {})["client_name"] == "Ada"
    assert await service.check_and_create_client_document(ADA) is False


async def test_of_calls_that_see_one_gap_one_creates(service: FirebaseManagement, store: Store) -> None:
    await store(COMPANY, {"client_name": "as it was"})
    created = await asyncio.gather(*(service.check_and_create_client_document(ADA) for _ in range(6)))
    assert created.count(True) == 1


async def test_documents_beneath_do_not_count_as_the_client(service: FirebaseManagement, store: Store) -> None:
    await store("clients/ada/notifications/j1", {"read": False})
    assert await service.check_and_create_client_document({"uid": "ada"}) is True


@pytest.mark.parametrize(
    "user_data",
    [
        {},
        {"email": "a@b"},
        {"uid": ""},
        {"uid": "a/b"},
        {"uid": 1},
        {"uid": "ada", "email": 1},
        {"uid": "ada", "displayName": {"$op": "server_timestamp"}},
        {"uid": "ada", "x": {"$op": "delete"}},
        {"$op": "delete"},
    ],
)
async def test_user_data_of_nobody(service: FirebaseManagement, stored: Stored, user_data: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgs):
        await service.check_and_create_client_document(user_data)
    assert await stored(CLIENT) is None


async def test_customers(service: FirebaseManagement, store: Store) -> None:
    await service.check_and_create_client_document(ADA)
    assert await service.get_customer_list("ada") == []

    await store("clients/ada/bo_clients/b", {"client_name": "Babbage"})
    await store("clients/ada/bo_clients/a", {"client_name": "ACME", "client_mail": "a@example.org"})
    await store("clients/charles/bo_clients/c", {"client_name": "another user's"})

    assert await service.get_customer_list("ada") == [
        {"client_name": "ACME", "client_mail": "a@example.org", "doc_id": "a"},
        {"client_name": "Babbage", "doc_id": "b"},
    ]
    with pytest.raises(InvalidArgs):
        await service.get_customer_list("a/b")


async def test_more_customers_than_a_list_holds(
    service: FirebaseManagement, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MAX_LISTED", 2)
    for number in range(3):
        await store(f"clients/ada/bo_clients/{number}", {})
        if number < 2:
            assert len(await service.get_customer_list("ada")) == number + 1
    with pytest.raises(FailedPrecondition):
        await service.get_customer_list("ada")
