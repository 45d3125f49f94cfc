"""What an event means: the types that count, the sessions that are ours, the state of the payment."""

from __future__ import annotations

from typing import Any

import pytest

from callboard_firebase_management import FirebaseManagement
from callboard_firebase_management.confirmations import Confirmations
from callboard_firebase_management.ledger import TopUp
from callboard_firebase_management.money import currency_of

pytestmark = pytest.mark.anyio

TOP_UP = TopUp.under("clients/ada", "t1")


def event(kind: str, **session: Any) -> dict[str, Any]:
    given = {
        "id": "cs_1", "payment_status": "paid", "amount_total": 500, "currency": "chf", "payment_intent": "pi_1",
        "metadata": {"transaction_path": TOP_UP.path}, **session,
    }  # fmt: skip
    return {"id": "evt_1", "type": f"checkout.session.{kind}", "data": {"object": given}}


@pytest.mark.parametrize(
    ("given", "outcome", "status"),
    [
        (event("completed"), "added", "added"),
        (event("completed", payment_status="unpaid"), "waiting", "pending"),
        (event("completed", payment_status="no_payment_required", amount_total=0), "waiting", "pending"),
        (event("async_payment_succeeded"), "added", "added"),
        (event("async_payment_succeeded", payment_status="unpaid"), "waiting", "pending"),
        (event("async_payment_failed", payment_status="unpaid"), "failed", "error"),
        (event("expired", payment_status="unpaid"), "failed", "error"),
        (event("updated"), "ignored", "pending"),
        (event("completed", metadata={}), "ignored", "pending"),
        (event("completed", metadata=None), "ignored", "pending"),
        (event("completed", amount_total="500"), "unapplied", "pending"),
        (event("completed", amount_total=True), "unapplied", "pending"),
        (event("completed", currency=None), "unapplied", "pending"),
    ],
)
async def test_one_event(
    service: FirebaseManagement, stored: Any, given: dict[str, Any], outcome: str, status: str
) -> None:
    await service.ledger.begin(TOP_UP, 500, currency_of("CHF"))
    done = await service.confirmations.apply(given)
    assert (done.event_id, done.type, done.outcome) == ("evt_1", given["type"], outcome)
    assert (done.top_up == TOP_UP) == (outcome != "ignored")
    assert (await stored(TOP_UP.path))["status"] == status


@pytest.mark.parametrize("given", [{}, {"data": None}, {"type": "checkout.session.completed", "data": {"object": []}}])
async def test_what_is_hardly_an_event(service: FirebaseManagement, given: dict[str, Any]) -> None:
    assert (await service.confirmations.apply(given)).outcome == "ignored"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"account": "acct_1", "livemode": True}, "connected_account"),
        ({"livemode": False}, "test_mode"),
        ({}, "test_mode"),
    ],
)
async def test_money_that_is_not_ours_or_not_real(
    service: FirebaseManagement, stored: Any, log_lines: Any, more: dict[str, Any], reason: str
) -> None:
    """A connected account names what it likes in its sessions; a test card is anybody's."""
    await service.ledger.begin(TOP_UP, 500, currency_of("CHF"))
    confirmations = Confirmations(service.ledger, service.log, service.host.telemetry, live=True)
    for kind in ("completed", "expired"):
        assert (await confirmations.apply({**event(kind), **more})).outcome == "ignored"
    assert (await stored(TOP_UP.path))["status"] == "pending"
    assert {line["reason"] for line in log_lines() if line["event"] == "payment_unapplied"} == {reason}
    assert (await confirmations.apply({**event("completed"), "livemode": True})).outcome == "added"


async def test_failed_paid_failed_is_paid(service: FirebaseManagement, stored: Any) -> None:
    await service.ledger.begin(TOP_UP, 500, currency_of("CHF"))
    for kind in ("expired", "completed", "async_payment_failed"):
        await service.confirmations.apply(event(kind))
    assert (await stored(TOP_UP.path))["status"] == "added"
