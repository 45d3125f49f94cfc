"""The ledger on both Firestore servers: where top-ups lie, and the steps a top-up may take."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.cloud.firestore import AsyncClient

from callboard import InvalidArgs
from callboard_firebase_management.ledger import Credit, Ledger, Payment, TopUp, awaits_credit, user_of
from callboard_firebase_management.money import currency_of

pytestmark = pytest.mark.anyio

CHF = currency_of("CHF")
TOP_UP = TopUp.under("clients/ada/bo_clients/c1/mandates/m1", "t1")
BALANCE = "clients/ada/billing/current_balance"


@pytest.fixture
def ledger(client: AsyncClient) -> Ledger:
    return Ledger(client)


def payment(amount_minor: int = 500, session: str | None = "cs_1", event: str = "evt_1") -> Payment:
    return Payment(TOP_UP, amount_minor, CHF, event_id=event, session_id=session)


def test_a_path_and_its_top_up() -> None:
    path = "clients/ada/bo_clients/c1/mandates/m1/billing/topping/transactions/t1"
    assert TOP_UP.path == path
    assert TopUp.at(path) == TOP_UP == TopUp("ada", "clients/ada/bo_clients/c1/mandates/m1", "t1")
    assert TopUp.at("clients/ada/billing/topping/transactions/t1") == TopUp.under("clients/ada", "t1")
    assert user_of("clients/ada/x/y") == "ada"


@pytest.mark.parametrize(
    "path",
    [
        None, 7, "", "clients", "clients/ada", "billing/topping/transactions/t1",
        "users/ada/billing/topping/transactions/t1",
        "clients/ada/billing/topping/transactions", "clients/ada/billing/topping/expenses/t1",
        "clients/a b/billing/topping/transactions/t1", "clients/ada//topping/transactions/t1",
        "clients/ada/billing/topping/transactions/..", "clients/ada/x/billing/topping/transactions/t1",
    ],
)  # fmt: skip
def test_paths_where_no_top_up_lies(path: Any) -> None:
    with pytest.raises(InvalidArgs):
        TopUp.at(path)


def test_the_guard() -> None:
    assert [awaits_credit({"status": status}) for status in ("pending", "error", "added", None, "other")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert awaits_credit({"status": "error", "reason": "currency_mismatch"})
    assert not awaits_credit({"status": "error", "reason": "transaction_missing"})
    assert awaits_credit({"status": "pending", "reason": "transaction_missing"})
    assert not awaits_credit({})


async def test_pending_then_added_and_no_further(ledger: Ledger, stored: Any) -> None:
    await ledger.begin(TOP_UP, 400, CHF)
    assert await ledger.credit(payment(500)) == Credit("added")
    assert await ledger.credit(payment(500, event="evt_2")) == Credit("already_added")
    assert not await ledger.fail(TOP_UP, "too_late")
    found = await stored(TOP_UP.path)
    assert (found["status"], found["requested_minor"], found["amount_minor"]) == ("added", 400, 500)
    assert found["event_id"] == "evt_1"
    assert (await stored(BALANCE))["current_balance_minor"] == 500


async def test_an_error_is_not_the_end_if_money_comes(ledger: Ledger, stored: Any) -> None:
    await ledger.begin(TOP_UP, 500, CHF)
    assert await ledger.fail(TOP_UP, "checkout_expired")
    assert not await ledger.fail(TOP_UP, "again")
    assert (await stored(TOP_UP.path))["reason"] == "checkout_expired"
    assert await ledger.credit(payment()) == Credit("added")
    assert (await stored(TOP_UP.path))["reason"] is None


async def test_a_top_up_that_is_not_there(ledger: Ledger, stored: Any) -> None:
    assert not await ledger.fail(TOP_UP, "any")
    assert await stored(TOP_UP.path) is None
    for _ in range(2):
        assert await ledger.credit(payment()) == Credit("unapplied", "transaction_missing")
    found = await stored(TOP_UP.path)
    assert (found["status"], found["amount_minor"], found["session_id"]) == ("error", 500, "cs_1")
    assert await stored(BALANCE) is None
    await ledger._client.document(TOP_UP.path).update({"status": "pending"})  # a person says that it is ours
    assert [(await ledger.credit(payment())).outcome for _ in range(2)] == ["added", "already_added"]
    assert (await stored(TOP_UP.path))["reason"] is None
    assert (await stored(BALANCE))["current_balance_minor"] == 500


async def test_a_beginning_that_comes_late_undoes_no_credit(ledger: Ledger, stored: Any) -> None:
    """Google's client repeats a write whose answer it lost, and the first one may still be on its way."""
    await ledger.begin(TOP_UP, 500, CHF)
    await ledger.credit(payment())
    await ledger.begin(TOP_UP, 500, CHF)
    assert (await stored(TOP_UP.path))["status"] == "added"
    assert await ledger.credit(payment()) == Credit("already_added")
    assert (await stored(BALANCE))["current_balance_minor"] == 500


async def test_a_status_of_somebodys_own_is_neither_credited_nor_called_credited(
    ledger: Ledger, store: Any, stored: Any
) -> None:
    await store(TOP_UP.path, {"status": "on hold", "session_id": "cs_1", "odd.name": 1})
    assert await ledger.credit(payment()) == Credit("unapplied", "status_unknown")
    assert await stored(BALANCE) is None
    await ledger._client.document(TOP_UP.path).update({"status": "pending"})
    assert await ledger.credit(payment()) == Credit("added")
    assert (await stored(TOP_UP.path))["odd.name"] == 1


async def test_one_that_may_be_made(ledger: Ledger) -> None:
    immediate = Payment(TOP_UP, 500, CHF)
    assert await ledger.credit(immediate, create=True) == Credit("added")
    assert await ledger.credit(immediate, create=True) == Credit("already_added")


async def test_a_second_session_of_one_top_up_is_kept_on_record_once(ledger: Ledger, stored: Any) -> None:
    await ledger.begin(TOP_UP, 500, CHF)
    await ledger.credit(payment())
    for event in ("evt_2", "evt_3"):
        assert await ledger.credit(payment(700, "cs_2", event)) == Credit("unapplied", "second_payment")
    assert (await stored(TOP_UP.path))["unapplied"] == [{"session_id": "cs_2", "amount_minor": 700, "currency": "CHF"}]
    assert (await stored(BALANCE))["current_balance_minor"] == 500


async def test_a_balance_that_cannot_be_read_takes_nothing(ledger: Ledger, store: Any, stored: Any) -> None:
    await ledger.begin(TOP_UP, 500, CHF)
    await store(BALANCE, {"current_balance": "much"})
    assert await ledger.credit(payment()) == Credit("unapplied", "balance_unreadable")
    assert await stored(BALANCE) == {"current_balance": "much"}


async def test_two_at_once_of_one_payment(ledger: Ledger, stored: Any) -> None:
    await ledger.begin(TOP_UP, 500, CHF)
    outcomes = await asyncio.gather(ledger.credit(payment()), ledger.credit(payment(event="evt_2")))
    assert sorted(one.outcome for one in outcomes) == ["added", "already_added"]
    assert (await stored(BALANCE))["current_balance_minor"] == 500
