"""Mandates: a user's in short, and one whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import pytest

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase_management import FirebaseManagement, mandates

pytestmark = pytest.mark.anyio

Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
ACME = "clients/ada/bo_clients/acme"


async def test_summary_of_all_of_a_users_mandates(
    service: FirebaseManagement, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mandates, "READ_AT_ONCE", 1)  # more than one request for the names
    assert await service.fetch_all_mandates_summary("ada") == []
    await store("clients/ada/bo_clients/babbage", {"client_name": "Babbage"})
    await store(ACME, {"client_name": "ACME"})
    await store(
        f"{ACME}/mandates/m2",
        {"legal_name": "ACME Ltd", "contact_space_name": "acme", "contact_space_id": "s2", "base_currency": "GBP"},
    )
    await store(f"{ACME}/mandates/m1", {"legal_name": 7, "isactive": False, "large": "x" * 1_000})
    await store("clients/ada/bo_clients/babbage/mandates/m3", {"legal_name": "Same name"})
    await store("clients/ada/bo_clients/gone/mandates/m4", {"legal_name": "Same name"})
    for elsewhere in ("clients/ada2/bo_clients/x", "clients/ad/bo_clients/x", "clients/ada/other/x", ACME + "/deep/x"):
        await store(f"{elsewhere}/mandates/m1", {"legal_name": "not among them"})

    found = await service.fetch_all_mandates_summary("ada")

    nothing = {"legal_name": "", "contact_space_name": "", "contact_space_id": "", "base_currency": ""}
    assert found == [
        {**nothing, "mandate_path": f"{ACME}/mandates/m1", "mandate_id": "m1", "client_id": "acme",
         "client_name": "ACME", "isactive": False},
        {"mandate_path": f"{ACME}/mandates/m2", "mandate_id": "m2", "client_id": "acme", "client_name": "ACME",
         "legal_name": "ACME Ltd", "contact_space_name": "acme", "contact_space_id": "s2", "base_currency": "GBP",
         "isactive": True},
        {**nothing, "mandate_path": "clients/ada/bo_clients/babbage/mandates/m3", "mandate_id": "m3",
         "client_id": "babbage", "client_name": "Babbage", "legal_name": "Same name", "isactive": True},
        {**nothing, "mandate_path": "clients/ada/bo_clients/gone/mandates/m4", "mandate_id": "m4",
         "client_id": "gone", "client_name": "", "legal_name": "Same name", "isactive": True},
    ]  # fmt: skip


async def test_more_mandates_than_a_list_holds(
    service: FirebaseManagement, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mandates, "MAX_LISTED", 1)
    await store(f"{ACME}/mandates/m1", {})
    assert len(await service.fetch_all_mandates_summary("ada")) == 1
    await store(f"{ACME}/mandates/m2", {})
    with pytest.raises(FailedPrecondition):
        await service.fetch_all_mandates_summary("ada")


async def test_a_single_mandate(service: FirebaseManagement, store: Store) -> None:
    assert await service.fetch_single_mandate(f"{ACME}/mandates/m1") is None

    await store(f"{ACME}/mandates/m1", {"legal_name": "ACME Ltd", "since": datetime(2025, 1, 1, tzinfo=UTC)})
    mandate = {
        "id": "m1",
        "mandate_path": f"{ACME}/mandates/m1",
        "legal_name": "ACME Ltd",
        "since": "2025-01-01T00:00:00Z",
    }
    assert await service.fetch_single_mandate(f"{ACME}/mandates/m1") == {**mandate, "parent_details": None}

    await store(ACME, {"client_name": "ACME", "client_mail": "a@example.org"})
    parent = {"parent_doc_id": "acme", "client_name": "ACME", "client_mail": "a@example.org"}
    assert await service.fetch_single_mandate(f"{ACME}/mandates/m1") == {**mandate, "parent_details": parent}

    await store("mandates/m9", {"legal_name": "at the top"})
    found = await service.fetch_single_mandate("mandates/m9")
    assert found == {"id": "m9", "mandate_path": "mandates/m9", "legal_name": "at the top", "parent_details": None}


async def test_bad_paths(service: FirebaseManagement) -> None:
    for call in (
        service.fetch_single_mandate(""),
        service.fetch_single_mandate(f"{ACME}/mandates"),
        service.fetch_single_mandate(f"/{ACME}/mandates/m1"),
        service.fetch_all_mandates_summary("a/b"),
        service.fetch_all_mandates_summary(""),
    ):
        with pytest.raises(InvalidArgs):
            await call
