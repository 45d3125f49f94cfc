"""Idempotency keys, credentials and faults."""

import asyncio

import httpx
import pytest
import stripe

from callboard_local import StripeControl, StripeProcess

from .stripe_api import CHECKOUT, StripeApi, checkout

pytestmark = pytest.mark.anyio


async def test_the_first_answer_is_given_again(stripe_api: StripeApi) -> None:
    first = await stripe_api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"})
    again = await stripe_api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"})
    other = await stripe_api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k2"})

    assert again.to_dict() == first.to_dict()
    assert other.id != first.id
    assert again.last_response.headers["idempotent-replayed"] == "true"
    assert again.last_response.headers["original-request"] == first.last_response.headers["request-id"]
    assert len((await stripe_api("checkout.sessions.list")).data) == 2


async def test_other_parameters_under_the_same_key(stripe_api: StripeApi) -> None:
    await stripe_api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"})
    with pytest.raises(stripe.IdempotencyError) as refused:
        await stripe_api("checkout.sessions.create", checkout(amount=501), {"idempotency_key": "k1"})
    assert refused.value.http_status == 400


async def test_a_request_that_was_refused_leaves_its_key_free(stripe_api: StripeApi) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        await stripe_api("checkout.sessions.create", checkout(amount=1), {"idempotency_key": "k1"})
    assert await stripe_api("checkout.sessions.create", checkout(), {"idempotency_key": "k1"})


async def test_a_declined_payment_is_kept(stripe_api: StripeApi) -> None:
    intent = {"amount": 500, "currency": "eur", "payment_method": "pm_card_chargeDeclined", "confirm": True}
    for _ in range(2):
        with pytest.raises(stripe.CardError) as declined:
            await stripe_api("payment_intents.create", intent, {"idempotency_key": "k1"})
    assert declined.value.headers is not None
    assert declined.value.headers["idempotent-replayed"] == "true"
    assert len((await stripe_api("payment_intents.list")).data) == 1


async def test_a_key_in_use(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    await stripe_account.fail("hang")
    create = "checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"}
    first = asyncio.create_task(stripe_api(*create))
    while (await stripe_account.state())["hanging"] == 0:
        await asyncio.sleep(0.01)

    with pytest.raises(stripe.StripeError) as refused:
        await stripe_api(*create)
    assert refused.value.error is not None
    assert (refused.value.http_status, refused.value.error.code) == (409, "idempotency_key_in_use")

    await stripe_account.heal()
    assert (await stripe_api(*create)).id == (await first).id


async def test_work_that_was_done_although_its_answer_was_lost(
    stripe_api: StripeApi, stripe_account: StripeControl
) -> None:
    create = "checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"}
    await stripe_account.fail("drop", executed=True)
    with pytest.raises(stripe.APIConnectionError):
        await stripe_api(*create)
    [lost] = (await stripe_account.state())["sessions"]
    assert (await stripe_api(*create)).id == lost["id"]


async def test_requests_fail_as_told_and_then_no_more(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    await stripe_account.fail("status", times=2, status=503, path="/v1/checkout")
    await stripe_api("events.list")
    for _ in range(2):
        with pytest.raises(stripe.APIError) as failed:
            await stripe_api("checkout.sessions.list")
        assert failed.value.http_status == 503
    assert (await stripe_api("checkout.sessions.list")).data == []
    await stripe_account.fail("status", status=429)
    with pytest.raises(stripe.RateLimitError):
        await stripe_api("events.list")


async def test_a_client_that_leaves_a_hanging_request_frees_it(
    stripe_server: StripeProcess, stripe_account: StripeControl
) -> None:
    await stripe_account.fail("hang")
    api = StripeApi(stripe_server.url, stripe_account.secret_key, synchronous=False)
    leaving = asyncio.create_task(api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"}))
    while (await stripe_account.state())["hanging"] == 0:
        await asyncio.sleep(0.01)
    leaving.cancel()
    while (await stripe_account.state())["hanging"]:
        await asyncio.sleep(0.01)
    assert (await stripe_account.state())["sessions"] == []
    assert await api("checkout.sessions.create", CHECKOUT, {"idempotency_key": "k1"})
    await api.close()


@pytest.mark.parametrize("key", ["sk_live_123456789", "pk_test_123456789", "sk_test_", "nonsense"])
@pytest.mark.parametrize("synchronous", [True, False])
async def test_a_key_that_is_not_for_tests(stripe_server: StripeProcess, key: str, synchronous: bool) -> None:
    api = StripeApi(stripe_server.url, key, synchronous=synchronous)
    with pytest.raises(stripe.AuthenticationError) as refused:
        await api("events.list")
    assert refused.value.http_status == 401
    await api.close()


async def test_no_key_a_basic_key_and_bytes_that_are_no_form(
    stripe_server: StripeProcess, stripe_account: StripeControl
) -> None:
    key = stripe_account.secret_key
    async with httpx.AsyncClient(base_url=stripe_server.url) as http:
        assert (await http.get("/v1/events")).status_code == 401
        assert (await http.get("/v1/events", auth=(key, ""))).status_code == 200
        bearer = {"Authorization": f"Bearer {key}", "Content-Type": "application/x-www-form-urlencoded"}
        for body in (b"\xff", b"amount", b"a[b=1", b"a=1&a[b]=2", b"&".join(b"a%d=1" % n for n in range(1_001))):
            answer = await http.post("/v1/payment_intents", content=body, headers=bearer)
            assert answer.status_code == 400
            assert answer.json()["error"]["type"] == "invalid_request_error"
        as_json = await http.post("/v1/payment_intents", json={"amount": 1}, headers={"Authorization": f"Bearer {key}"})
        assert as_json.status_code == 400


async def test_keys_have_accounts_of_their_own(stripe_server: StripeProcess, stripe_account: StripeControl) -> None:
    mine = StripeApi(stripe_server.url, stripe_account.secret_key, synchronous=False)
    other = StripeApi(stripe_server.url, stripe_account.secret_key + "other", synchronous=False)
    made = await mine("checkout.sessions.create", CHECKOUT)
    with pytest.raises(stripe.InvalidRequestError):
        await other("checkout.sessions.retrieve", made.id)
    await mine.close()
    await other.close()
