"""The billing methods, on both Firestore servers and the Stripe stand-in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
import stripe
from google.cloud.firestore import Increment

from callboard import CallError, FailedPrecondition, InvalidArgs, NotFound
from callboard.context import Context, current_context
from callboard_firebase_management import FirebaseManagement, billing
from callboard_firebase_management.billing import TopUpRequest, with_minor
from callboard_firebase_management.money import currency_of
from callboard_local import StripeControl

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]

MANDATE = "clients/ada/bo_clients/c1/mandates/m1"
BALANCE = "clients/ada/billing/current_balance"
CHF_12_50: TopUpRequest = {"currency": "CHF", "amount": 12.5}


@pytest.fixture
def service(paid_service: FirebaseManagement) -> FirebaseManagement:
    """In this module the service has a Stripe account."""
    return paid_service


@pytest.fixture
async def dev_service(
    make_service: Callable[..., FirebaseManagement], firestore_address: str, firestore_project: str
) -> FirebaseManagement:
    """Dev mode, and no Stripe key."""
    service = make_service(
        GOOGLE_PROJECT_ID=firestore_project, FIRESTORE_EMULATOR_HOST=firestore_address, LISTENERS_DEV="true"
    )
    await service.open()
    return service


async def test_a_top_up_from_its_beginning_to_its_credit(
    service: FirebaseManagement, stripe_account: StripeControl, stored: Stored
) -> None:
    begun = await service.add_top_up(MANDATE, CHF_12_50)
    path = begun["transaction_path"]
    assert path == f"{MANDATE}/billing/topping/transactions/{begun['transaction_id']}"
    assert (begun["currency"], begun["amount"], begun["amount_minor"]) == ("CHF", 12.5, 1_250)
    assert begun["checkout_url"].endswith(f"/c/pay/{begun['session_id']}")
    pending = await stored(path) or {}
    assert (pending["status"], pending["amount_minor"], pending["currency"]) == ("pending", 1_250, "CHF")
    assert (await service.get_user_balance(user_id="ada"))["current_balance"] == 0

    await stripe_account.pay(begun["session_id"])
    event = await last_event(stripe_account)
    assert await service.process_stripe_webhook({"id": event, "data": {"object": {"amount_total": 10**9}}}) == {
        "event_id": event, "type": "checkout.session.completed", "outcome": "added", "transaction_path": path,
    }  # fmt: skip
    assert (await service.process_stripe_webhook({"id": event}))["outcome"] == "already_added"

    added = await stored(path) or {}
    assert (added["status"], added["reason"], added["event_id"]) == ("added", None, event)
    assert (added["session_id"], added["amount_minor"], added["amount"]) == (begun["session_id"], 1_250, 12.5)
    balance = await stored(BALANCE) or {}
    assert (balance["currency"], balance["current_balance"], balance["current_balance_minor"]) == ("CHF", 12.5, 1_250)
    assert (balance["current_topping"], balance["current_topping_minor"]) == (12.5, 1_250)
    assert type(balance["current_balance_minor"]) is int
    info = await service.get_balance_info(mandate_path=MANDATE)
    assert (info["current_balance_minor"], info["current_expenses_minor"]) == (1_250, 0)
    assert info["timestamp_topping"].endswith("Z")


@pytest.mark.parametrize(
    ("currency", "amount", "shown"), [("JPY", 1_250, 1_250), ("KWD", "12.5", 12.5), ("ISK", 12, 12.0)]
)
async def test_currencies_of_other_decimals(
    service: FirebaseManagement, stripe_account: StripeControl, currency: str, amount: Any, shown: Any
) -> None:
    begun = await service.add_top_up(MANDATE, {"currency": currency, "amount": amount})
    session = await stripe_account.pay(begun["session_id"])
    assert session["amount_total"] == begun["amount_minor"] == {"JPY": 1_250, "KWD": 12_500, "ISK": 1_200}[currency]
    await service.process_stripe_webhook({"id": await last_event(stripe_account)})
    balance = await service.get_user_balance(MANDATE)
    assert balance == {
        "currency": currency, "current_balance": shown, "current_balance_minor": begun["amount_minor"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "top_up"),
    [
        ("clients", CHF_12_50),
        ("mandates/m1", CHF_12_50),
        ("clients/a b", CHF_12_50),
        (f"{MANDATE}/", CHF_12_50),
        (f"{MANDATE}/../x", CHF_12_50),
        (f"clients/ada/{'x' * 240}/{'y' * 240}", CHF_12_50),
        (MANDATE, {"currency": "XXX", "amount": 1}),
        (MANDATE, {"currency": "JPY", "amount": 1.5}),
        (MANDATE, {"currency": "CHF", "amount": 0}),
        (MANDATE, {"currency": "CHF", "amount": -1}),
        (MANDATE, {"currency": "CHF", "amount": float("nan")}),
    ],
)
async def test_what_is_refused_before_anything_is_written(
    service: FirebaseManagement, stripe_account: StripeControl, path: str, top_up: TopUpRequest
) -> None:
    with pytest.raises(InvalidArgs):
        await service.add_top_up(path, top_up)
    assert await transactions(service) == {}
    assert (await stripe_account.state())["requests"] == []


async def test_an_amount_below_what_stripe_charges(service: FirebaseManagement) -> None:
    with pytest.raises(InvalidArgs, match="too small"):
        await service.add_top_up(MANDATE, {"currency": "CHF", "amount": 0.1})
    [failed] = (await transactions(service)).values()
    assert (failed["status"], failed["reason"]) == ("error", "stripe_invalid_args")


@pytest.mark.parametrize(
    ("kind", "executed", "reason"),
    [
        ("status", False, "stripe_unavailable"),
        ("hang", True, "stripe_deadline_exceeded"),
        ("hang", False, "stripe_deadline_exceeded"),
    ],
)
async def test_a_failed_stripe_leaves_an_error_and_never_a_credit(
    service: FirebaseManagement,
    stripe_account: StripeControl,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    executed: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    monkeypatch.setattr("callboard_firebase_management.payments.LONGEST_S", 0.5)
    await stripe_account.fail(kind, times=100, executed=executed)
    with pytest.raises(CallError) as failed:
        await service.add_top_up(MANDATE, CHF_12_50)
    assert failed.value.code == reason.removeprefix("stripe_").upper()
    [(path, transaction)] = (await transactions(service)).items()
    assert (transaction["status"], transaction["reason"]) == ("error", reason)
    assert (await service.get_user_balance(user_id="ada"))["current_balance_minor"] == 0

    await stripe_account.heal()
    for session in (await stripe_account.state())["sessions"]:  # Stripe had made it all the same, and somebody pays
        await stripe_account.pay(session["id"])
        done = await service.process_stripe_webhook({"id": await last_event(stripe_account)})
        assert (done["outcome"], done["transaction_path"]) == ("added", path)


async def test_the_deadline_leaves_time_to_mark_the_failure(
    service: FirebaseManagement, stripe_account: StripeControl
) -> None:
    await stripe_account.fail("hang")
    loop, publish = asyncio.get_running_loop(), service.host.background.publish
    call = Context(publish, loop, deadline=time.monotonic() + 2)
    token = current_context.set(call)
    try:
        with pytest.raises(CallError) as failed:
            await service.add_top_up(MANDATE, CHF_12_50)
        assert failed.value.code == "DEADLINE_EXCEEDED"
        assert (call.time_left_s() or 0) > 0
    finally:
        current_context.reset(token)
    [transaction] = (await transactions(service)).values()
    assert transaction["reason"] == "stripe_deadline_exceeded"


async def test_without_stripe_there_are_no_top_ups(dev_service: FirebaseManagement) -> None:
    for call in (
        dev_service.add_top_up(MANDATE, CHF_12_50),
        dev_service.process_stripe_webhook({"id": "evt_1"}),
        dev_service.retrieve_stripe_session("cs_test_1"),
    ):
        with pytest.raises(FailedPrecondition, match="STRIPE_SECRET_KEY"):
            await call
    assert await transactions(dev_service) == {}


# -- the balance's currency


async def test_a_balance_refuses_another_currency(
    service: FirebaseManagement, store: Store, stripe_account: StripeControl
) -> None:
    await store(BALANCE, {"currency": "EUR", "current_balance_minor": 100, "current_balance": 1.0})
    with pytest.raises(FailedPrecondition, match="EUR"):
        await service.add_top_up(MANDATE, CHF_12_50)
    assert (await stripe_account.state())["requests"] == []


async def test_the_first_credit_decides_and_other_money_is_kept_on_record(
    service: FirebaseManagement, stripe_account: StripeControl, stored: Stored, log_lines: Any
) -> None:
    """Two checkouts are open, in two currencies, before either is paid."""
    in_chf = await service.add_top_up(MANDATE, CHF_12_50)
    in_eur = await service.add_top_up(MANDATE, {"currency": "EUR", "amount": 3})
    for begun, outcome in ((in_chf, "added"), (in_eur, "unapplied")):
        await stripe_account.pay(begun["session_id"])
        event = await last_event(stripe_account)
        assert (await service.process_stripe_webhook({"id": event}))["outcome"] == outcome

    assert (await service.get_user_balance(user_id="ada"))["current_balance_minor"] == 1_250
    kept = await stored(in_eur["transaction_path"]) or {}
    assert (kept["status"], kept["reason"]) == ("error", "currency_mismatch")
    assert (kept["amount_minor"], kept["currency"], kept["event_id"]) == (300, "EUR", event)
    [line] = [line for line in log_lines() if line["event"] == "payment_unapplied"]
    assert (line["level"], line["reason"], line["event_id"]) == ("error", "currency_mismatch", event)

    # A person puts the balance right; the same event then finds its way.
    await service.document(BALANCE).set({"currency": "EUR", "current_balance": 10, "current_balance_minor": 1_000})
    assert (await service.process_stripe_webhook({"id": event}))["outcome"] == "added"
    assert (await service.get_user_balance(user_id="ada"))["current_balance_minor"] == 1_300


async def test_a_balance_of_an_earlier_version_is_converted_by_its_digits(
    service: FirebaseManagement, stripe_account: StripeControl, store: Store, stored: Stored
) -> None:
    await store(
        BALANCE, {"current_balance": 0.1 + 0.2, "current_topping": 50, "current_expenses": 49.7, "note": "kept"}
    )
    with pytest.raises(FailedPrecondition):
        await service.add_top_up(MANDATE, {"currency": "JPY", "amount": 1_000})
    begun = await service.add_top_up(MANDATE, CHF_12_50)
    await stripe_account.pay(begun["session_id"])
    await service.process_stripe_webhook({"id": await last_event(stripe_account)})
    balance = await stored(BALANCE) or {}
    assert balance["note"] == "kept"
    assert {name: balance[f"{name}_minor"] for name in ("current_balance", "current_topping", "current_expenses")} == {
        "current_balance": 1_280, "current_topping": 6_250, "current_expenses": 4_970,
    }  # fmt: skip


async def test_what_other_programs_book_is_not_undone_by_a_top_up(
    service: FirebaseManagement, stripe_account: StripeControl
) -> None:
    """Programs of earlier versions know the numbers alone, and lower them."""
    for charged, left in ((2.5, 1_000), (0.125, 2_238)):
        begun = await service.add_top_up(MANDATE, CHF_12_50)
        await stripe_account.pay(begun["session_id"])
        await service.process_stripe_webhook({"id": await last_event(stripe_account)})
        await service.document(BALANCE).update(
            {"current_balance": Increment(-charged), "current_expenses": Increment(charged)}
        )
        info = await service.get_balance_info(MANDATE)
        assert (info["current_balance_minor"], info["current_balance"]) == (left, left / 100)
        assert info["current_balance_minor"] == info["current_topping_minor"] - info["current_expenses_minor"]


# -- process_stripe_webhook


@pytest.mark.parametrize(
    "given", [{}, {"id": None}, {"id": 1}, {"id": "cs_1"}, {"id": "evt_1/../x"}, {"id": "evt_1\n"}]
)
async def test_an_event_needs_an_id(service: FirebaseManagement, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgs):
        await service.process_stripe_webhook(given)


async def test_an_invented_event_moves_nothing(service: FirebaseManagement) -> None:
    begun = await service.add_top_up(MANDATE, CHF_12_50)
    session = {
        "id": begun["session_id"], "object": "checkout.session", "payment_status": "paid", "amount_total": 1_250,
        "currency": "chf", "metadata": {"transaction_path": begun["transaction_path"]},
    }  # fmt: skip
    with pytest.raises(NotFound):
        await service.process_stripe_webhook(
            {"id": "evt_1", "type": "checkout.session.completed", "data": {"object": session}}
        )
    assert (await service.get_user_balance(user_id="ada"))["current_balance_minor"] == 0


# -- process_immediate_top_up


async def test_immediate_top_ups_are_for_dev_mode_without_stripe(
    service: FirebaseManagement, make_service: Callable[..., FirebaseManagement], firestore_address: str
) -> None:
    with pytest.raises(FailedPrecondition):
        await service.process_immediate_top_up("ada", 5)
    no_dev = make_service(GOOGLE_PROJECT_ID="p", FIRESTORE_EMULATOR_HOST=firestore_address)
    await no_dev.open()
    with pytest.raises(FailedPrecondition):
        await no_dev.process_immediate_top_up("ada", 5)


async def test_an_immediate_top_up_is_credited_once_by_its_path(dev_service: FirebaseManagement) -> None:
    first = await dev_service.process_immediate_top_up("ada", 12.5)
    assert (first["outcome"], first["currency"], first["current_balance_minor"]) == ("added", "USD", 1_250)
    for _ in range(2):
        again = await dev_service.process_immediate_top_up("ada", 12.5, first["transaction_path"])
        assert (again["outcome"], again["current_balance_minor"]) == ("already_added", 1_250)
    named = f"{MANDATE}/billing/topping/transactions/t1"
    assert (await dev_service.process_immediate_top_up("ada", "7.50", named))["current_balance"] == 20.0
    assert (await dev_service.process_immediate_top_up("ada", "7.50", named))["current_balance"] == 20.0


async def test_an_immediate_top_up_takes_the_currency_that_is_there(dev_service: FirebaseManagement) -> None:
    await dev_service.document(BALANCE).set({"currency": "JPY", "current_balance": 5, "current_balance_minor": 5})
    assert (await dev_service.process_immediate_top_up("ada", 100))["current_balance_minor"] == 105
    with pytest.raises(InvalidArgs):
        await dev_service.process_immediate_top_up("ada", 1.5)
    pending = f"{MANDATE}/billing/topping/transactions/t1"
    await dev_service.document(pending).set({"status": "pending", "currency": "CHF"})
    with pytest.raises(FailedPrecondition):
        await dev_service.process_immediate_top_up("ada", 1, pending)


@pytest.mark.parametrize(
    "path", ["x", "clients/eve/billing/topping/transactions/t1", "clients/ada/other/topping/transactions/t1"]
)
async def test_a_path_that_is_no_top_up_of_the_user(dev_service: FirebaseManagement, path: str) -> None:
    with pytest.raises(InvalidArgs):
        await dev_service.process_immediate_top_up("ada", 1, path)


# -- reads


async def test_a_session_as_stripe_has_it(
    service: FirebaseManagement, stripe_account: StripeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = await service.add_top_up(MANDATE, {"currency": "KWD", "amount": 1.25})
    found = await service.retrieve_stripe_session(begun["session_id"])
    assert (found["status"], found["payment_status"], found["checkout_url"]) == (
        "open",
        "unpaid",
        begun["checkout_url"],
    )
    assert (found["currency"], found["amount"], found["amount_minor"]) == ("KWD", 1.25, 1_250)
    assert (found["transaction_id"], found["transaction_path"]) == (begun["transaction_id"], begun["transaction_path"])
    await stripe_account.pay(begun["session_id"])
    paid = await service.retrieve_stripe_session(begun["session_id"])
    assert (paid["status"], paid["payment_status"], paid["checkout_url"]) == ("complete", "paid", None)


async def test_sessions_of_others_are_not_there(service: FirebaseManagement) -> None:
    begun = await service.add_top_up(MANDATE, CHF_12_50)
    foreign = await service.payments._stripe().v1.checkout.sessions.create_async(
        {
            "mode": "payment",
            "success_url": "https://example.com",
            "line_items": [
                {"quantity": 1, "price_data": {"currency": "chf", "unit_amount": 500, "product_data": {"name": "Hat"}}}
            ],
        }
    )
    host, publish = service.host.background, service.host.background.publish
    for user, session_id, there in (
        ("ada", begun["session_id"], True), ("eve", begun["session_id"], False), ("ada", foreign.id, False),
        ("ada", "cs_test_none", False),
    ):  # fmt: skip
        token = current_context.set(Context(publish, host._loop, user_id=user))
        try:
            if there:
                assert await service.retrieve_stripe_session(session_id)
            else:
                with pytest.raises(NotFound):
                    await service.retrieve_stripe_session(session_id)
        finally:
            current_context.reset(token)
    for session_id in ("", "evt_1", "cs_/../x"):
        with pytest.raises(InvalidArgs):
            await service.retrieve_stripe_session(session_id)


async def test_whose_balance(service: FirebaseManagement) -> None:
    with pytest.raises(InvalidArgs):
        await service.get_balance_info()
    with pytest.raises(InvalidArgs):
        await service.get_balance_info(MANDATE, "eve")
    with pytest.raises(InvalidArgs):
        await service.get_user_balance(user_id="a/b")
    assert await service.get_user_balance(MANDATE, "ada") == {
        "currency": None, "current_balance": 0, "current_balance_minor": 0,
    }  # fmt: skip


async def test_expenses_by_page_and_whole(
    service: FirebaseManagement, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = f"{MANDATE}/billing/topping/expenses"
    await store(f"{home}/j1", {"amount": 0.125, "currency": "CHF", "tokens": 7})
    await store(f"{home}/j2", {"total_cost": 1.005, "amount_minor": 99, "amount": 1})
    await store(f"{home}/j3", {"amount": "none", "job_id": "other"})
    found = await service.get_all_expenses(MANDATE)
    assert found == [
        {"job_id": "j1", "amount": 0.12, "amount_minor": 12, "currency": "CHF", "tokens": 7},
        {"job_id": "j2", "total_cost": 1.0, "total_cost_minor": 100, "amount": 0.99, "amount_minor": 99},
        {"job_id": "j3", "amount": "none"},
    ]
    assert [one["job_id"] for one in await service.get_all_expenses(MANDATE, limit=2)] == ["j1", "j2"]
    assert [one["job_id"] for one in await service.get_all_expenses(MANDATE, after="j2", limit=2)] == ["j3"]
    assert await service.get_all_expenses("clients/ada") == []
    monkeypatch.setattr(billing, "MAX_EXPENSES", 2)
    with pytest.raises(FailedPrecondition, match="limit"):
        await service.get_all_expenses(MANDATE)
    with pytest.raises(InvalidArgs):
        await service.get_all_expenses("mandates/m1")


async def test_usage_is_stored_rounded_beside_its_minor_units(service: FirebaseManagement, stored: Stored) -> None:
    usage = {"job_id": "j1", "total_cost": 0.12345, "input_cost": 2, "currency": "KWD", "tokens": 1_234, "model": "m"}
    answer = await service.upload_token_usage("ada", usage)
    assert answer == {
        "job_id": "j1", "currency": "KWD", "total_cost": 0.123, "total_cost_minor": 123, "input_cost": 2.0,
        "input_cost_minor": 2_000,
    }  # fmt: skip
    await service.upload_token_usage(
        "ada", {"job_id": "j1", "output_cost_minor": 5, "output_cost": 9, "currency": "KWD"}
    )
    found = await stored("clients/ada/token_usage/j1") or {}
    assert found.pop("timestamp")
    assert found == {**answer, "tokens": 1_234, "model": "m", "output_cost": 0.005, "output_cost_minor": 5}


async def test_usage_without_a_currency_takes_the_balances(service: FirebaseManagement, store: Store) -> None:
    assert (await service.upload_token_usage("ada", {"job_id": "j1", "cost": 1.006}))["currency"] == "USD"
    await store(BALANCE, {"currency": "JPY", "current_balance_minor": 0})
    answer = await service.upload_token_usage("ada", {"job_id": "j2", "cost": 1.6})
    assert answer == {"job_id": "j2", "currency": "JPY", "cost": 2, "cost_minor": 2}


async def test_the_usage_of_a_job_stays_in_its_currency(service: FirebaseManagement, stored: Stored) -> None:
    """What is merged into it must not make other amounts of those that are there."""
    await service.upload_token_usage("ada", {"job_id": "j1", "input_cost": 1.234, "currency": "KWD"})
    answer = await service.upload_token_usage("ada", {"job_id": "j1", "output_cost": 1.234})
    assert (answer["currency"], answer["output_cost_minor"]) == ("KWD", 1_234)
    with pytest.raises(FailedPrecondition, match="KWD"):
        await service.upload_token_usage("ada", {"job_id": "j1", "output_cost": 9, "currency": "CHF"})
    found = await stored("clients/ada/token_usage/j1") or {}
    assert (found["currency"], found["input_cost_minor"], found["output_cost"]) == ("KWD", 1_234, 1.234)


async def test_an_integer_alone_has_its_number_written_beside_it(service: FirebaseManagement, stored: Stored) -> None:
    await service.upload_token_usage("ada", {"job_id": "j1", "cost": 9})
    await service.upload_token_usage("ada", {"job_id": "j1", "cost_minor": 5})
    found = await stored("clients/ada/token_usage/j1") or {}
    assert (found["cost"], found["cost_minor"]) == (0.05, 5)


@pytest.mark.parametrize(
    "data", [{}, {"job_id": 1}, {"job_id": "a/b"}, {"job_id": "j", "cost": "much"}, {"job_id": "j", "currency": "XXX"},
             {"job_id": "j", "cost": {"$op": "increment", "by": 1}}, {"job_id": "j", "cost": True},
             {"job_id": "j", "cost_minor": {"$op": "increment", "by": 1}}, {"job_id": "j", "cost_minor": "5"}]
)  # fmt: skip
async def test_usage_that_is_refused(service: FirebaseManagement, data: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgs):
        await service.upload_token_usage("ada", data)


def test_only_amounts_are_amounts() -> None:
    names = [
        "amount",
        "cost",
        "price",
        "total_cost",
        "unit_price",
        "costs",
        "discount",
        "amount_of_tokens",
        "price_list",
    ]
    found = with_minor(dict.fromkeys(names, 1), currency_of("CHF"))
    assert {name for name in found if name.endswith("_minor")} == {
        f"{name}_minor" for name in ("amount", "cost", "price", "total_cost", "unit_price")
    }


async def test_logs_hold_no_secret_no_amount_and_no_text_of_stripes(
    service: FirebaseManagement, stripe_account: StripeControl, log: Any
) -> None:
    begun = await service.add_top_up(MANDATE, {"currency": "CHF", "amount": 98_765.43})
    await stripe_account.pay(begun["session_id"])
    await service.process_stripe_webhook({"id": await last_event(stripe_account)})
    await stripe_account.fail("status", status=400, times=5)
    with pytest.raises(CallError) as failed:
        await service.add_top_up(MANDATE, CHF_12_50)
    text = log.getvalue() + json.dumps([failed.value.message, failed.value.details])
    assert "top_up_added" in text
    for secret in (stripe_account.secret_key, "98765", "9876543", "unknown error", "checkout_url", "/c/pay/"):
        assert secret not in text


async def last_event(account: StripeControl) -> str:
    return str((await account.state())["events"][-1]["id"])


async def transactions(service: FirebaseManagement) -> dict[str, dict[str, Any]]:
    """All top-ups of the mandate, by path."""
    collection = service.collection(f"{MANDATE}/billing/topping/transactions")
    return {one.reference.path: one.to_dict() or {} async for one in collection.stream()}
