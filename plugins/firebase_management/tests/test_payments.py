"""Stripe's client as we use it, on the stand-in: sessions, events, signatures, and Stripe's troubles as our errors."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import stripe

from callboard import CallError, ConfigurationError, FailedPrecondition, InvalidArgs, NotFound, Unavailable
from callboard.errors import DeadlineExceeded, PermissionDenied, ResourceExhausted
from callboard.settings import load
from callboard_firebase_management.money import currency_of
from callboard_firebase_management.payments import Checkout, Payments, StripeSettings, translate
from callboard_local import StripeControl

pytestmark = pytest.mark.anyio

_UNTYPED: Any = stripe
PATH = "clients/ada/billing/topping/transactions/t1"


@pytest.fixture
async def make_payments(stripe_environ: dict[str, str]) -> AsyncIterator[Callable[..., Any]]:
    async with AsyncExitStack() as opened:

        async def make(**environ: str) -> Payments:
            payments = Payments(load(StripeSettings, {**stripe_environ, **environ}))
            return await opened.enter_async_context(payments)

        yield make


@pytest.fixture
async def payments(make_payments: Callable[..., Any]) -> Payments:
    made: Payments = await make_payments()
    return made


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)


async def open_one(payments: Payments, key: str = "k1", within_s: float | None = None, amount: int = 1_250) -> Checkout:
    return await payments.open_checkout(
        amount_minor=amount, currency=currency_of("CHF"), transaction_path=PATH, user_id="ada", key=key,
        within_s=within_s,
    )  # fmt: skip


async def test_a_session_names_its_top_up_wherever_one_may_look(
    payments: Payments, stripe_account: StripeControl
) -> None:
    checkout = await open_one(payments)
    session = await payments.session(checkout.session_id, within_s=None)

    assert checkout.url == session["url"]
    assert (session["amount_total"], session["currency"]) == (1_250, "chf")
    assert session["metadata"] == {"transaction_path": PATH}
    assert session["client_reference_id"] == "ada"
    assert (session["success_url"], session["cancel_url"]) == (
        "https://app.example.com/done", "https://app.example.com/back",
    )  # fmt: skip
    await stripe_account.pay(checkout.session_id)
    [succeeded] = [e for e in (await stripe_account.state())["events"] if e["type"] == "payment_intent.succeeded"]
    event = await payments.event(succeeded["id"], within_s=None)
    assert event["data"]["object"]["metadata"] == {"transaction_path": PATH}


async def test_the_same_key_is_the_same_session(payments: Payments, stripe_account: StripeControl) -> None:
    assert await open_one(payments) == await open_one(payments)
    assert (await open_one(payments, key="k2")).session_id
    assert len((await stripe_account.state())["sessions"]) == 2


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("kind", ["status", "drop"])
async def test_a_passing_trouble_is_repeated_under_the_same_key(
    payments: Payments, stripe_account: StripeControl, kind: Any, executed: bool
) -> None:
    await stripe_account.fail(kind, times=2, status=503, executed=executed)
    await open_one(payments)
    assert len((await stripe_account.state())["sessions"]) == 1


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, Unavailable),
        (503, Unavailable),
        (429, ResourceExhausted),
        (403, PermissionDenied),
        (401, FailedPrecondition),
    ],
)
async def test_a_lasting_trouble_is_an_error_of_ours(
    payments: Payments, stripe_account: StripeControl, status: int, expected: type[CallError]
) -> None:
    await stripe_account.fail("status", times=100, status=status)
    with pytest.raises(expected) as failed:
        await open_one(payments)
    assert "unknown error" not in failed.value.message
    assert isinstance(failed.value.__cause__, stripe.StripeError)


async def test_nobody_there(make_payments: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe.HTTPClient, "INITIAL_DELAY", 0.01)
    payments = await make_payments(STRIPE_API_BASE="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="cannot be reached"):
        await open_one(payments)


async def test_a_hung_stripe_costs_the_time_it_was_given(payments: Payments, stripe_account: StripeControl) -> None:
    await stripe_account.fail("hang")
    with pytest.raises(DeadlineExceeded):
        await open_one(payments, within_s=0.2)
    assert await open_one(payments, key="k2")  # only that one hung


async def test_amounts_that_stripe_refuses_and_what_it_does_not_know(payments: Payments) -> None:
    with pytest.raises(InvalidArgs, match="too small"):
        await open_one(payments, amount=1)
    with pytest.raises(InvalidArgs, match="too large"):
        await open_one(payments, key="k2", amount=10**10)
    with pytest.raises(NotFound):
        await payments.session("cs_test_none", within_s=None)
    with pytest.raises(NotFound):
        await payments.event("evt_none", within_s=None)


async def test_parameters_that_change_under_one_key(payments: Payments) -> None:
    await open_one(payments)
    with pytest.raises(FailedPrecondition, match="refuses the request"):
        await open_one(payments, amount=2_000)


async def test_without_a_key_or_an_address_to_come_back_to(make_payments: Callable[..., Any]) -> None:
    none = await make_payments(STRIPE_SECRET_KEY="")
    assert not none.configured
    with pytest.raises(FailedPrecondition, match="STRIPE_SECRET_KEY"):
        await open_one(none)
    nowhere = await make_payments(STRIPE_SUCCESS_URL="")
    with pytest.raises(FailedPrecondition, match="STRIPE_SUCCESS_URL"):
        await open_one(nowhere)
    assert await open_one(await make_payments(STRIPE_CANCEL_URL=""))


@pytest.mark.parametrize("environ", [
    {"STRIPE_API_BASE": "localhost:8084"}, {"STRIPE_SUCCESS_URL": "done"}, {"STRIPE_SECRET_KEY": "sk_live_0123456789"},
    {"STRIPE_SECRET_KEY": "rk_live_0123456789"},
])  # fmt: skip
async def test_settings_that_cannot_be_meant(make_payments: Callable[..., Any], environ: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await make_payments(**environ)
    assert "0123456789" not in str(refused.value)


def test_secrets_stay_hidden() -> None:
    settings = load(StripeSettings, {"STRIPE_SECRET_KEY": "sk_test_abc", "STRIPE_WEBHOOK_SECRET": "whsec_abc"})
    assert "abc" not in repr(settings)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (stripe.APIError("secret text", http_status=500), "UNAVAILABLE"),
        (stripe.APIError("secret text"), "UNAVAILABLE"),
        (stripe.APIError("secret text", http_status=409), "ABORTED"),
        (_UNTYPED.CardError("secret text", "p", "card_declined", http_status=402), "FAILED_PRECONDITION"),
        (_UNTYPED.InvalidRequestError("secret text", "p", http_status=400), "FAILED_PRECONDITION"),
        (stripe.IdempotencyError("secret text", http_status=400), "FAILED_PRECONDITION"),
    ],
)
def test_every_other_error_of_stripes(error: stripe.StripeError, code: str) -> None:
    translated = translate(error)
    assert translated.code == code
    assert "secret" not in translated.message


# -- signatures

EVENT = '{"id": "evt_1", "object": "event", "type": "checkout.session.completed", "data": {"object": {"object": "x"}}}'


def signed(secret: str, payload: str = EVENT, age_s: int = 0) -> str:
    header: str = stripe.WebhookSignature.generate_signature_header(payload, secret, int(time.time()) - age_s)
    return header


async def test_what_either_secret_signed_is_believed(make_payments: Callable[..., Any]) -> None:
    payments = await make_payments(STRIPE_WEBHOOK_SECRET="whsec_new, whsec_old")
    for secret in ("whsec_new", "whsec_old"):
        event = payments.verified(EVENT.encode(), signed(secret, age_s=290))
        assert (event["id"], event["data"]["object"]) == ("evt_1", {"object": "x"})


@pytest.mark.parametrize(
    ("payload", "signature"),
    [
        (EVENT, ""),
        (EVENT, "nonsense"),
        (EVENT, "t=1,v1="),
        (EVENT, "t=x,v1=" + "0" * 64),
        (EVENT, "v1=" + "0" * 64),
        (EVENT, signed("whsec_other")),
        (EVENT, signed("whsec_new").replace("v1=", "v0=")),
        (EVENT, signed("whsec_new", age_s=310)),
        (EVENT, signed("whsec_new")[:-1] + "é"),
        (EVENT.replace("evt_1", "evt_2"), signed("whsec_new")),
        (EVENT + " ", signed("whsec_new")),
    ],
    ids=[
        "none",
        "nonsense",
        "empty",
        "bad time",
        "no time",
        "another's",
        "another scheme",
        "old",
        "é",
        "id",
        "a byte more",
    ],
)
async def test_what_nobody_signed_is_refused(make_payments: Callable[..., Any], payload: str, signature: str) -> None:
    payments = await make_payments(STRIPE_WEBHOOK_SECRET="whsec_new,whsec_old")
    with pytest.raises(InvalidArgs, match="signature"):
        payments.verified(payload.encode(), signature)


@pytest.mark.parametrize("payload", ["", "[1]", "null", "{", '{"data": ' + "[" * 100_000])
async def test_what_was_signed_and_is_no_event(make_payments: Callable[..., Any], payload: str) -> None:
    payments = await make_payments(STRIPE_WEBHOOK_SECRET="whsec_new")
    with pytest.raises(InvalidArgs, match="no event"):
        payments.verified(payload.encode(), signed("whsec_new", payload))


async def test_an_event_of_any_version_is_read_as_it_is(make_payments: Callable[..., Any]) -> None:
    payments = await make_payments(STRIPE_WEBHOOK_SECRET="whsec_new")
    for event in ({"object": "v2.core.event", "type": "v2.core.account.closed"}, {"object": "of tomorrow"}):
        payload = json.dumps(event)
        assert payments.verified(payload.encode(), signed("whsec_new", payload)) == event


@pytest.mark.parametrize(
    ("key", "live"), [("sk_live_0123", True), ("rk_live_0123", True), ("sk_test_live_0123", False)]
)
async def test_which_keys_move_real_money(make_payments: Callable[..., Any], key: str, live: bool) -> None:
    assert (await make_payments(STRIPE_SECRET_KEY=key, STRIPE_API_BASE="")).live is live
    assert not (await make_payments(STRIPE_SECRET_KEY="")).live


async def test_bytes_that_are_no_text(make_payments: Callable[..., Any]) -> None:
    payments = await make_payments(STRIPE_WEBHOOK_SECRET="whsec_new")
    with pytest.raises(InvalidArgs):
        payments.verified(b"\xff\xfe", signed("whsec_new"))


async def test_without_a_secret_nothing_is_believed(payments: Payments) -> None:
    with pytest.raises(Unavailable, match="STRIPE_WEBHOOK_SECRET"):
        payments.verified(EVENT.encode(), signed(""))
