"""Payment intents, as Stripe's own client sees them."""

from typing import Any

import pytest
import stripe

from .stripe_api import StripeApi

pytestmark = pytest.mark.anyio

INTENT: dict[str, Any] = {"amount": 1_050, "currency": "eur", "automatic_payment_methods": {"enabled": True}}


async def test_created_then_confirmed(stripe_api: StripeApi) -> None:
    made = await stripe_api("payment_intents.create", {**INTENT, "metadata": {"order": "o1"}})
    assert (made.status, made.amount, made.amount_received) == ("requires_payment_method", 1_050, 0)

    paid = await stripe_api("payment_intents.confirm", made.id, {"payment_method": "pm_card_visa"})
    assert (paid.id, paid.status, paid.amount_received) == (made.id, "succeeded", 1_050)
    assert (await stripe_api("payment_intents.retrieve", made.id)).to_dict() == paid.to_dict()
    assert [one.id for one in (await stripe_api("payment_intents.list")).data] == [made.id]


async def test_created_and_confirmed_at_once(stripe_api: StripeApi) -> None:
    paid = await stripe_api("payment_intents.create", {**INTENT, "payment_method": "pm_card_visa", "confirm": True})
    assert paid.status == "succeeded"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await stripe_api("payment_intents.create", {**INTENT, "confirm": True})
    assert refused.value.code == "payment_intent_unexpected_state"


async def test_a_declined_card(stripe_api: StripeApi) -> None:
    made = await stripe_api("payment_intents.create", INTENT)
    with pytest.raises(stripe.CardError) as declined:
        await stripe_api("payment_intents.confirm", made.id, {"payment_method": "pm_card_chargeDeclined"})
    assert (declined.value.http_status, declined.value.code) == (402, "card_declined")
    found = await stripe_api("payment_intents.retrieve", made.id)
    assert (found.status, found.last_payment_error.decline_code) == ("requires_payment_method", "generic_decline")


async def test_a_card_that_wants_its_customer(stripe_api: StripeApi) -> None:
    method = {"payment_method": "pm_card_authenticationRequired"}
    made = await stripe_api("payment_intents.create", {**INTENT, **method, "confirm": True})
    assert made.status == "requires_action"
    cancelled = await stripe_api("payment_intents.cancel", made.id, {"cancellation_reason": "abandoned"})
    assert (cancelled.status, cancelled.cancellation_reason) == ("canceled", "abandoned")


async def test_what_is_over_stays_as_it_is(stripe_api: StripeApi) -> None:
    paid = await stripe_api("payment_intents.create", {**INTENT, "payment_method": "pm_card_visa", "confirm": True})
    for name in ("payment_intents.cancel", "payment_intents.confirm"):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await stripe_api(name, paid.id)
        assert refused.value.code == "payment_intent_unexpected_state"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"amount": 0}, "parameter_invalid_integer"),
        ({"amount": "ten"}, "parameter_invalid_integer"),
        ({"amount": 49}, "amount_too_small"),
        ({"currency": ""}, "parameter_invalid_empty"),
        ({"capture_method": "never"}, None),
        ({"automatic_payment_methods": "yes"}, None),
        ({"payment_method": "pm_unknown"}, "resource_missing"),
        ({"colour": "red"}, "parameter_unknown"),
    ],
)
async def test_parameters_that_stripe_refuses(stripe_api: StripeApi, change: dict[str, Any], code: str | None) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await stripe_api("payment_intents.create", {**INTENT, **change})
    assert refused.value.code == code
