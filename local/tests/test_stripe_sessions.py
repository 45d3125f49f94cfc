"""Checkout sessions, as Stripe's own client sees them."""

import time
from typing import Any

import pytest
import stripe

from callboard_local import StripeControl

from .stripe_api import CHECKOUT, StripeApi, checkout

pytestmark = pytest.mark.anyio


async def test_a_session_is_created_open_and_found_again(stripe_api: StripeApi) -> None:
    made = await stripe_api("checkout.sessions.create", CHECKOUT)
    found = await stripe_api("checkout.sessions.retrieve", made.id)

    assert found.to_dict() == made.to_dict()
    assert made.id.startswith("cs_test_")
    assert made.url.endswith(f"/c/pay/{made.id}")
    assert (made.amount_total, made.currency, made.mode) == (500, "chf", "payment")
    assert (made.status, made.payment_status, made.payment_intent) == ("open", "unpaid", None)
    assert made.metadata.to_dict() == {"order": "o1"}
    assert made.success_url == CHECKOUT["success_url"]
    assert made.livemode is False
    assert 23 * 3600 < made.expires_at - time.time() <= 24 * 3600
    assert made.last_response.headers["request-id"].startswith("req_")


async def test_expanded_properties(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    made = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(made.id)
    expand = {"expand": ["line_items", "payment_intent"]}
    found = await stripe_api("checkout.sessions.retrieve", made.id, expand)

    assert found.payment_intent.status == "succeeded"
    [item] = found.line_items.data
    assert (item.description, item.quantity, item.amount_total) == ("Credit", 2, 500)
    assert [one.id for one in (await stripe_api("checkout.sessions.line_items.list", made.id)).data] == [item.id]


async def test_sessions_are_listed_newest_first_by_page_and_by_status(
    stripe_api: StripeApi, stripe_account: StripeControl
) -> None:
    made = [(await stripe_api("checkout.sessions.create", CHECKOUT)).id for _ in range(5)]
    await stripe_account.pay(made[0])

    first = await stripe_api("checkout.sessions.list", {"limit": 2})
    second = await stripe_api("checkout.sessions.list", {"limit": 3, "starting_after": first.data[-1].id})
    back = await stripe_api("checkout.sessions.list", {"limit": 2, "ending_before": second.data[0].id})

    assert [one.id for one in (*first.data, *second.data)] == made[::-1]
    assert (first.has_more, second.has_more) == (True, False)
    assert [one.id for one in back.data] == made[:2:-1]
    complete = await stripe_api("checkout.sessions.list", {"status": "complete"})
    assert [one.id for one in complete.data] == made[:1]
    of_intent = await stripe_api("checkout.sessions.list", {"payment_intent": complete.data[0].payment_intent})
    assert [one.id for one in of_intent.data] == made[:1]


async def test_only_an_open_session_expires(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    made = await stripe_api("checkout.sessions.create", CHECKOUT)
    expired = await stripe_api("checkout.sessions.expire", made.id)
    assert (expired.status, expired.url) == ("expired", None)
    with pytest.raises(stripe.InvalidRequestError, match="status of `expired`"):
        await stripe_api("checkout.sessions.expire", made.id)


async def test_paid_at_once(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    made = await stripe_api("checkout.sessions.create", {**CHECKOUT, "payment_intent_data": {"metadata": {"a": "b"}}})
    await stripe_account.pay(made.id)
    found = await stripe_api("checkout.sessions.retrieve", made.id)

    assert (found.status, found.payment_status, found.url) == ("complete", "paid", None)
    intent = await stripe_api("payment_intents.retrieve", found.payment_intent)
    assert (intent.status, intent.amount_received, intent.metadata.to_dict()) == ("succeeded", 500, {"a": "b"})
    assert await types(stripe_api) == [
        "payment_intent.created", "payment_intent.succeeded", "checkout.session.completed",
    ]  # fmt: skip


@pytest.mark.parametrize("succeeded", [True, False])
async def test_paid_later(stripe_api: StripeApi, stripe_account: StripeControl, succeeded: bool) -> None:
    made = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(made.id, delayed=True)
    between = await stripe_api("checkout.sessions.retrieve", made.id)
    await stripe_account.settle(made.id, succeeded=succeeded)
    found = await stripe_api("checkout.sessions.retrieve", made.id)

    assert (between.status, between.payment_status) == ("complete", "unpaid")
    assert (found.status, found.payment_status) == ("complete", "paid" if succeeded else "unpaid")
    last = (await types(stripe_api))[-1]
    assert last == f"checkout.session.async_payment_{'succeeded' if succeeded else 'failed'}"


async def test_an_event_holds_the_session_as_it_was(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    made = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(made.id, delayed=True)
    await stripe_account.settle(made.id)

    [event] = (await stripe_api("events.list", {"type": "checkout.session.completed"})).data
    again = await stripe_api("events.retrieve", event.id)
    assert again.to_dict() == event.to_dict()
    assert (event.object, event.data.object.id, event.data.object.payment_status) == ("event", made.id, "unpaid")


@pytest.mark.parametrize(
    ("currency", "amount", "code"),
    [
        ("usd", 49, "amount_too_small"),
        ("jpy", 49, "amount_too_small"),
        ("usd", 100_000_000, "amount_too_large"),
        ("kwd", 5_123, "parameter_invalid_integer"),
        ("isk", 550, "parameter_invalid_integer"),
        ("ugx", 101, "parameter_invalid_integer"),
        ("xyz", 500, None),
    ],
)
async def test_amounts_that_stripe_refuses(stripe_api: StripeApi, currency: str, amount: int, code: str | None) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await stripe_api("checkout.sessions.create", checkout(currency, amount))
    assert refused.value.code == code
    assert refused.value.http_status == 400


@pytest.mark.parametrize(
    ("currency", "amount"), [("usd", 50), ("jpy", 50), ("kwd", 5_120), ("isk", 500), ("huf", 17_550)]
)
async def test_amounts_that_stripe_takes(stripe_api: StripeApi, currency: str, amount: int) -> None:
    made = await stripe_api("checkout.sessions.create", checkout(currency, amount))
    assert (made.currency, made.amount_total) == (currency, amount)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"success_url": None}, "success_url"),
        ({"success_url": "not an address"}, "success_url"),
        ({"mode": None}, "mode"),
        ({"mode": "gift"}, "mode"),
        ({"line_items": None}, "line_items"),
        ({"colour": "red"}, "colour"),
        ({"metadata": {"k" * 41: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 501}}, "metadata[k]"),
        ({"metadata": {f"k{n}": "v" for n in range(51)}}, "metadata"),
        ({"expires_at": 1}, "expires_at"),
        ({"client_reference_id": "c" * 201}, "client_reference_id"),
    ],
)
async def test_parameters_that_stripe_refuses(stripe_api: StripeApi, change: dict[str, Any], param: str) -> None:
    parameters = {name: value for name, value in {**CHECKOUT, **change}.items() if value is not None}
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await stripe_api("checkout.sessions.create", parameters)
    assert refused.value.param == param


async def test_what_is_not_there(stripe_api: StripeApi) -> None:
    for name in ("checkout.sessions.retrieve", "payment_intents.retrieve", "events.retrieve"):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await stripe_api(name, "none_1")
        assert (refused.value.code, refused.value.http_status) == ("resource_missing", 404)
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        await stripe_api("customers.list")


async def types(stripe_api: StripeApi) -> list[str]:
    """Of all events, oldest first."""
    return [event.type for event in reversed((await stripe_api("events.list", {"limit": 100})).data)]
