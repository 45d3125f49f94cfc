"""Webhook endpoints and deliveries: signed so that Stripe's own library takes them, retried until they are taken."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import stripe

from callboard_local import StripeControl, StripeProcess
from callboard_local.server import free_port
from callboard_local.stripe.deliveries import signature

from .stripe_api import CHECKOUT, StripeApi

pytestmark = pytest.mark.anyio


class Receiver:
    """An HTTP server that keeps what it is sent and answers with the next status it was given, else 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.received: list[tuple[bytes, dict[str, str]]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.received.append((body, headers))
        status = self.statuses.pop(0) if self.statuses else 200
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    def events(self, secret: str) -> list[Any]:
        """What came, each one verified by Stripe's own library."""
        return [
            stripe.Webhook.construct_event(body, headers["stripe-signature"], secret) for body, headers in self.received
        ]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.url = "http://127.0.0.1:{}/hook".format(*server.sockets[0].getsockname()[1:2])
    yield receiver
    server.close()
    await server.wait_closed()


async def eventually(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():
            await asyncio.sleep(0.01)


async def test_events_are_delivered_signed(
    stripe_api: StripeApi, stripe_account: StripeControl, receiver: Receiver
) -> None:
    endpoint = await stripe_api(
        "webhook_endpoints.create", {"url": receiver.url, "enabled_events": ["checkout.session.*"]}
    )
    session = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(session.id)

    async def delivered() -> bool:
        return bool(receiver.received)

    await eventually(delivered)
    [event] = receiver.events(endpoint.secret)
    assert (event.type, event.data.object.id) == ("checkout.session.completed", session.id)
    assert event.data.object.payment_status == "paid"
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.events("whsec_another")
    assert (await stripe_account.state())["attempts"] == [
        {"event": event.id, "type": event.type, "url": receiver.url, "attempt": 1, "status": 200}
    ]


async def test_a_delivery_is_repeated_until_it_is_taken(
    stripe_api: StripeApi, stripe_account: StripeControl, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302, 404]
    endpoint = await stripe_api(
        "webhook_endpoints.create", {"url": receiver.url, "enabled_events": ["checkout.session.expired"]}
    )
    session = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.expire(session.id)

    async def taken() -> bool:
        [event] = (await stripe_api("events.list")).data
        return bool(event.pending_webhooks == 0)

    await eventually(taken)
    assert [attempt["status"] for attempt in (await stripe_account.state())["attempts"]] == [500, 302, 404, 200]
    assert len({event.id for event in receiver.events(endpoint.secret)}) == 1


async def test_an_address_where_nobody_is(stripe_api: StripeApi, stripe_account: StripeControl) -> None:
    await stripe_api("webhook_endpoints.create", {"url": f"http://127.0.0.1:{free_port()}/x", "enabled_events": ["*"]})
    await stripe_api("payment_intents.create", {"amount": 500, "currency": "eur"})

    async def tried_twice() -> bool:
        return len((await stripe_account.state())["attempts"]) >= 2

    await eventually(tried_twice)
    attempts = (await stripe_account.state())["attempts"]
    assert {attempt["status"] for attempt in attempts} == {0}
    assert (await stripe_api("events.list")).data[0].pending_webhooks == 1


async def test_held_back_repeated_and_out_of_order(
    stripe_api: StripeApi, stripe_account: StripeControl, receiver: Receiver
) -> None:
    patterns = ["checkout.session.completed", "checkout.session.async_payment_succeeded"]
    endpoint = await stripe_api("webhook_endpoints.create", {"url": receiver.url, "enabled_events": patterns})
    await stripe_account.hold()
    session = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(session.id, delayed=True)
    await stripe_account.settle(session.id)
    assert receiver.received == []

    events = {event["type"]: event["id"] for event in (await stripe_account.state())["events"]}
    completed, succeeded = (events[pattern] for pattern in patterns)
    assert await stripe_account.deliver([succeeded, completed, succeeded]) == [200, 200, 200]
    assert [event.id for event in receiver.events(endpoint.secret)] == [succeeded, completed, succeeded]
    assert sorted(await stripe_account.deliver([completed] * 5, at_once=True)) == [200] * 5


async def test_endpoints_are_kept_changed_and_deleted(stripe_api: StripeApi, receiver: Receiver) -> None:
    made = await stripe_api("webhook_endpoints.create", {"url": receiver.url, "enabled_events": ["*"]})
    assert made.secret.startswith("whsec_")
    found = await stripe_api("webhook_endpoints.retrieve", made.id)
    assert (found.url, found.enabled_events, found.status) == (receiver.url, ["*"], "enabled")
    assert "secret" not in found.to_dict()

    disabled = await stripe_api("webhook_endpoints.update", made.id, {"disabled": True})
    assert disabled.status == "disabled"
    await stripe_api("payment_intents.create", {"amount": 500, "currency": "eur"})
    assert [one.id for one in (await stripe_api("webhook_endpoints.list")).data] == [made.id]
    assert (await stripe_api("webhook_endpoints.delete", made.id)).deleted
    with pytest.raises(stripe.InvalidRequestError):
        await stripe_api("webhook_endpoints.retrieve", made.id)
    assert receiver.received == []


async def test_what_happened_can_be_forgotten(
    stripe_api: StripeApi, stripe_account: StripeControl, receiver: Receiver
) -> None:
    made = await stripe_api("webhook_endpoints.create", {"url": receiver.url, "enabled_events": ["*"]})
    await stripe_account.hold()  # what is still being sent would be recorded later
    session = await stripe_api("checkout.sessions.create", CHECKOUT)
    await stripe_account.pay(session.id)
    [event, *_] = (await stripe_account.state())["events"]
    assert await stripe_account.deliver([event["id"]]) == [200]
    await stripe_account.forget()
    state = await stripe_account.state()
    assert [state[name] for name in ("attempts", "requests", "events", "sessions")] == [[]] * 4
    assert (await stripe_api("webhook_endpoints.retrieve", made.id)).id == made.id


async def test_nothing_is_sent_off_this_machine(stripe_api: StripeApi) -> None:
    nowhere = ("http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://127.0.0.1/\0")
    for url in ("https://example.com/hook", "http://10.0.0.1/", "ftp://127.0.0.1/", "nonsense", *nowhere):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            await stripe_api("webhook_endpoints.create", {"url": url, "enabled_events": ["*"]})
        assert refused.value.code == "url_invalid"


async def test_the_server_is_told_of_an_endpoint_at_its_start(receiver: Receiver) -> None:
    async with StripeProcess(webhook_url=receiver.url, webhook_secret="whsec_given") as server:
        api = StripeApi(server.url, "sk_test_whatever", synchronous=False)
        await api("payment_intents.create", {"amount": 500, "currency": "eur"})

        async def delivered() -> bool:
            return bool(receiver.received)

        await eventually(delivered)
        [event] = receiver.events("whsec_given")
        assert event.type == "payment_intent.created"
        await api.close()


def test_the_signature_is_the_librarys() -> None:
    theirs = stripe.WebhookSignature.generate_signature_header('{"é": 1}', "whsec_x", timestamp=1_700_000_000)
    assert signature('{"é": 1}', "whsec_x", 1_700_000_000) == theirs
