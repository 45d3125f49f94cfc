"""Requests to take part in the beta, one for each address."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard import InvalidArgs
from callboard_firebase import segment
from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.beta import document_id, normalised

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
ADA = "beta_request/ada@example.org"


async def test_create_and_update(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.get_beta_request_by_email("ada@example.org") is None

    first = {"email": " Ada@Example.org", "company": "ACME", "answers": {"a": 1}, "created_at": "1999"}
    assert await service.create_or_update_beta_request(first) == "ada@example.org"
    found = await stored(ADA) or {}
    created, updated = found.pop("created_at"), found.pop("updated_at")
    assert isinstance(created, datetime)
    assert created == updated
    assert found == {"email": "ada@example.org", "company": "ACME", "answers": {"a": 1}, "authorized_access": False}

    again = {"email": "ADA@example.org", "answers": {"b": 2}, "created_at": "1999"}
    assert await service.create_or_update_beta_request(again) == "ada@example.org"
    found = await stored(ADA) or {}
    assert found.pop("created_at") == created
    assert found.pop("updated_at") > updated
    merged = {"email": "ada@example.org", "company": "ACME", "answers": {"a": 1, "b": 2}, "authorized_access": False}
    assert found == merged


async def test_an_update_leaves_the_access_that_was_given(service: FirebaseManagement, stored: Stored) -> None:
    await service.create_or_update_beta_request({"email": "ada@example.org", "authorized_access": True})
    await service.create_or_update_beta_request({"email": "ada@example.org", "company": "ACME"})
    assert (await stored(ADA) or {})["authorized_access"] is True


async def test_get_by_any_spelling(service: FirebaseManagement) -> None:
    await service.create_or_update_beta_request({"email": "ada@example.org"})

    found = await service.get_beta_request_by_email(" ADA@example.ORG ") or {}

    assert (found["email"], found["doc_id"], found["authorized_access"]) == (
        "ada@example.org",
        "ada@example.org",
        False,
    )


@pytest.mark.parametrize(
    ("email", "doc_id"),
    [("a/b@example.org", "a%2Fb@example.org"), ("a%2fb@example.org", "a%252fb@example.org"), ('"a@b"@c', '"a@b"@c')],
)
async def test_addresses_that_are_no_names_of_documents(
    service: FirebaseManagement, stored: Stored, email: str, doc_id: str
) -> None:
    assert await service.create_or_update_beta_request({"email": email}) == doc_id
    assert (await stored(f"beta_request/{doc_id}") or {})["email"] == email
    assert (await service.get_beta_request_by_email(email) or {})["email"] == email


async def test_a_request_named_as_it_was_typed_is_kept(
    service: FirebaseManagement, store: Store, stored: Stored
) -> None:
    await store("beta_request/Ada@example.org", {"email": "Ada@example.org", "authorized_access": True})

    found = await service.get_beta_request_by_email("Ada@example.org") or {}
    assert (found["authorized_access"], found["doc_id"]) == (True, "Ada@example.org")
    assert await service.create_or_update_beta_request({"email": "Ada@example.org", "n": 1}) == "Ada@example.org"

    assert await stored(ADA) is None
    assert (await stored("beta_request/Ada@example.org") or {})["authorized_access"] is True


async def test_requests_at_once_are_one_and_lose_nothing(service: FirebaseManagement, stored: Stored) -> None:
    ids = await asyncio.gather(
        *(service.create_or_update_beta_request({"email": "ada@example.org", f"f{n}": n}) for n in range(8))
    )

    assert set(ids) == {"ada@example.org"}
    found = await stored(ADA) or {}
    assert {name: found[name] for name in found if name.startswith("f")} == {f"f{n}": n for n in range(8)}
    assert isinstance(found["created_at"], datetime)
    assert found["authorized_access"] is False


NAMES = st.text("aAé%/25fF.@_", min_size=1, max_size=8)


@given(NAMES, NAMES)
def test_two_addresses_have_one_document_only_when_they_are_one(first: str, second: str) -> None:
    ids = [segment(document_id(normalised(f"{name}@host"))) for name in (first, second)]
    assert (ids[0] == ids[1]) == (first.lower() == second.lower())


@pytest.mark.parametrize("email", ["", "ada", "@example.org", "ada@", "a b@example.org", "ada@exa\nmple.org"])
def test_what_is_no_address(email: str) -> None:
    with pytest.raises(InvalidArgs):
        normalised(email)


async def test_bad_arguments(service: FirebaseManagement) -> None:
    for call in (
        service.get_beta_request_by_email("ada"),
        service.create_or_update_beta_request({}),
        service.create_or_update_beta_request({"email": 1}),
        service.create_or_update_beta_request({"email": "ada@example.org", "x": [[1]]}),
        service.create_or_update_beta_request({"email": "ada@example.org", "x": {"$op": "delete"}}),
    ):
        with pytest.raises(InvalidArgs):
            await call
    assert await service.get_beta_request_by_email("ada@example.org") is None
