"""`POST /webhooks/stripe` in a whole service: real deliveries of the Stripe stand-in over real sockets."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from callboard.testing import TOKEN, CallFailed
from callboard_firebase_management import ledger, payments, transactions, webhook
from callboard_local import FirestoreProcess

from .shop import MANDATE, Shop, eventually, signed
from .shop import open_shop as open_shop
from .shop import shop as shop

pytestmark = pytest.mark.anyio


async def test_a_customer_pays_on_the_page_and_the_balance_grows(shop: Shop) -> None:
    begun = await shop.top_up()
    async with httpx.AsyncClient() as browser:
        assert "12.50 CHF" in (await browser.get(begun["checkout_url"])).text
        assert (await browser.post(f"{begun['checkout_url']}/pay")).status_code == 303

    async def credited() -> bool:
        return await shop.balance() == 1_250

    await eventually(credited)
    assert await shop.status(begun) == ("added", None)


async def test_delivered_five_times_one_after_the_other_and_at_once(shop: Shop) -> None:
    await shop.account.hold()
    begun = await shop.top_up()
    await shop.account.pay(begun["session_id"])
    [event] = await shop.events("checkout.session.completed")
    assert await shop.account.deliver([event] * 5) == [200] * 5
    assert await shop.balance() == 1_250

    second = await shop.top_up(amount=5)
    await shop.account.pay(second["session_id"])
    event = (await shop.events("checkout.session.completed"))[1]
    statuses = await shop.account.deliver([event] * 5, at_once=True)
    while 503 in statuses:  # Google's emulator may not get through with so many at once; Stripe would come again
        statuses = await shop.account.deliver([event])
    assert await shop.balance() == 1_750
    assert len(shop.lines("top_up_added")) == 2


async def test_a_delayed_payment_in_any_order(shop: Shop) -> None:
    await shop.account.hold()
    begun = await shop.top_up()
    await shop.account.pay(begun["session_id"], delayed=True)
    completed = await shop.events("checkout.session.completed")
    assert await shop.account.deliver(completed) == [200]
    assert (await shop.status(begun), await shop.balance()) == (("pending", None), 0)
    await shop.account.settle(begun["session_id"])
    succeeded = await shop.events("checkout.session.async_payment_succeeded")
    assert await shop.account.deliver([*succeeded, *completed, *succeeded]) == [200] * 3
    assert (await shop.status(begun), await shop.balance()) == (("added", None), 1_250)


@pytest.mark.parametrize(("delayed", "reason"), [(True, "payment_failed"), (False, "checkout_expired")])
async def test_a_payment_that_will_not_come(shop: Shop, delayed: bool, reason: str) -> None:
    await shop.account.hold()
    begun = await shop.top_up()
    if delayed:
        await shop.account.pay(begun["session_id"], delayed=True)
        await shop.account.settle(begun["session_id"], succeeded=False)
    else:
        await shop.account.expire(begun["session_id"])
    events = [event["id"] for event in (await shop.account.state())["events"]]
    assert await shop.account.deliver(events[::-1]) == [200] * len(events)
    assert (await shop.status(begun), await shop.balance()) == (("error", reason), 0)


async def test_events_that_are_none_of_ours(shop: Shop) -> None:
    foreign = {
        "object": "checkout.session",
        "id": "cs_1",
        "payment_status": "paid",
        "amount_total": 9,
        "currency": "chf",
    }
    for event in (
        {"type": "invoice.paid", "data": {"object": {"object": "invoice"}}},
        {"type": "checkout.session.completed", "data": {"object": foreign}},
        {"type": "checkout.session.completed", "data": {"object": {**foreign, "metadata": {"order": "7"}}}},
        {"type": "checkout.session.completed", "data": {}},
        {"type": "checkout.session.completed"},
        {"object": "v2.core.event", "type": "v2.core.account.closed", "related_object": {"id": "acct_1"}},
    ):
        payload = json.dumps({"id": "evt_1", "object": "event", **event})
        answer = await shop.post(payload.encode(), signed(shop.secret, payload))
        assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert shop.lines("payment_unapplied") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"metadata": {"transaction_path": "clients/ada/elsewhere/x"}}, "transaction_path"),
        ({"metadata": {"transaction_path": f"{MANDATE}/billing/topping/transactions/gone"}}, "transaction_missing"),
        ({"amount_total": 12.5}, "amount"),
        ({"amount_total": 0}, "amount"),
        ({"currency": "xxx"}, "amount"),
        ({"currency": "usd"}, "currency_mismatch"),
        ({"id": "cs_test_second", "metadata": {"transaction_path": "FIRST"}}, "second_payment"),
    ],
)
async def test_money_that_no_balance_takes_is_told_and_moves_nothing(
    shop: Shop, change: dict[str, Any], reason: str
) -> None:
    await shop.account.hold()
    first = await shop.top_up()
    paid = await shop.account.pay(first["session_id"])
    assert await shop.account.deliver(await shop.events("checkout.session.completed")) == [200]
    second = await shop.top_up()
    session = {
        **paid,
        "id": second["session_id"],
        "metadata": {"transaction_path": second["transaction_path"]},
        **change,
    }
    if session["metadata"]["transaction_path"] == "FIRST":
        session["metadata"] = {"transaction_path": first["transaction_path"]}
    event = {"id": "evt_9", "object": "event", "type": "checkout.session.completed", "data": {"object": session}}
    payload = json.dumps(event)
    for _ in range(2):
        assert (await shop.post(payload.encode(), signed(shop.secret, payload))).status_code == 200
    assert await shop.balance() == 1_250
    assert [line["reason"] for line in shop.lines("payment_unapplied")] == [reason] * 2
    kept = await shop.call("get_document", first["transaction_path"])
    assert len(kept.get("unapplied", [])) == (reason == "second_payment")


async def test_what_is_not_signed_moves_nothing(shop: Shop) -> None:
    await shop.account.hold()
    begun = await shop.top_up()
    paid = await shop.account.pay(begun["session_id"])
    event = {"id": "evt_9", "object": "event", "type": "checkout.session.completed", "data": {"object": paid}}
    payload = json.dumps(event)
    for signature in (None, "", signed("whsec_other", payload), signed(shop.secret, payload, age_s=301), "t=1,v1=é"):
        answer = await shop.post(payload.encode(), signature)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "INVALID_ARGS")
    changed = payload.replace('"amount_total": 1250', '"amount_total": 9999999')
    assert changed != payload
    assert (await shop.post(changed.encode(), signed(shop.secret, payload))).status_code == 400
    answer = await shop.post(payload.encode(), None, Authorization=f"Bearer {TOKEN}")
    assert answer.status_code == 400  # the service token is no signature
    assert await shop.balance() == 0
    assert [line["code"] for line in shop.lines("webhook_refused")] == ["INVALID_ARGS"] * 7
    assert (await shop.post(payload.encode(), signed(shop.secret, payload))).status_code == 200
    assert await shop.balance() == 1_250


async def test_bodies_and_methods_that_no_event_has(shop: Shop) -> None:
    large = b"x" * (webhook.MAX_BODY_BYTES + 1)
    answer = await shop.post(large, signed(shop.secret, large.decode()))
    assert (answer.status_code, answer.json()["ok"]) == (413, False)
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{shop.service.url}/webhooks/stripe")).status_code == 405


async def test_a_body_that_does_not_come(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BODY_TIMEOUT_S", 0.1)
    host, port = shop.service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
    assert b" 400 " in await reader.readline()
    writer.close()


async def test_bodies_that_are_slow_together_hold_no_more_than_so_much(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "MAX_HELD_BYTES", 1_000)
    for _ in range(5):
        assert (await shop.post(b"x" * 900, None)).status_code == 400  # what was refused is held no longer
    host, port = shop.service.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\nExpect: 100-continue\r\n\r\n"
    writer.write(head)
    assert b" 100 " in await reader.readline()  # it waits for the body
    writer.write(b"x" * 800)
    await writer.drain()

    async def answered(status: int) -> bool:
        return (await shop.post(b"x" * 300, None)).status_code == status

    await eventually(lambda: answered(503))
    writer.close()
    await eventually(lambda: answered(400))


async def test_two_secrets_during_rotation(open_shop: Callable[..., Any], firestore_server: FirestoreProcess) -> None:
    shop = await open_shop(firestore_server.address, STRIPE_WEBHOOK_SECRET="whsec_new,whsec_old")
    payload = json.dumps({"id": "evt_1", "object": "event", "type": "invoice.paid", "data": {"object": {}}})
    for secret, status in (("whsec_new", 200), ("whsec_old", 200), ("whsec_older", 400)):
        assert (await shop.post(payload.encode(), signed(secret, payload))).status_code == status


async def test_without_a_secret_stripe_is_asked_to_come_again(
    open_shop: Callable[..., Any], firestore_server: FirestoreProcess
) -> None:
    shop = await open_shop(firestore_server.address, STRIPE_WEBHOOK_SECRET="")
    answer = await shop.post(b"{}", signed("", "{}"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")


async def test_while_the_plugin_is_put_aside_stripe_is_asked_to_come_again(
    open_shop: Callable[..., Any], firestore_server: FirestoreProcess
) -> None:
    shop: Shop = await open_shop(firestore_server.address, STRIPE_CANCEL_URL="nowhere")
    assert shop.service.callboard.plugins.all[0].state == "quarantined"
    payload = json.dumps({"id": "evt_1", "object": "event", "type": "invoice.paid", "data": {"object": {}}})
    answer = await shop.post(payload.encode(), signed(shop.secret, payload))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
    assert "retry-after" in answer.headers


async def test_a_firestore_that_hangs_is_answered_in_time_and_the_next_delivery_credits(
    open_shop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhook.TIMEOUT_S + transactions._ROLLBACK_S < 10  # Stripe's patience
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    async with FirestoreProcess() as firestore:
        shop: Shop = await open_shop(firestore.address)
        await shop.account.hold()
        begun = await shop.top_up()
        await shop.account.pay(begun["session_id"])
        events = await shop.events("checkout.session.completed")
        firestore.pause()
        try:
            assert await shop.account.deliver(events * 3, at_once=True) == [503] * 3
        finally:
            firestore.resume()
        assert await shop.account.deliver(events * 3, at_once=True) == [200] * 3
        assert (await shop.status(begun), await shop.balance()) == (("added", None), 1_250)


async def test_firestore_away_is_503_and_the_delivery_that_is_repeated_credits(
    open_shop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.5)
    async with FirestoreProcess(data=tmp_path / "documents.sqlite") as firestore:
        shop: Shop = await open_shop(firestore.address)
        begun = await shop.top_up()
        await firestore.kill()
        await shop.account.pay(begun["session_id"])

        async def refused() -> bool:
            return any(attempt["status"] == 503 for attempt in (await shop.account.state())["attempts"])

        await eventually(refused)
        await firestore.restart()

        async def credited() -> bool:
            try:
                return await shop.balance() == 1_250
            except CallFailed:
                return False  # the connection is being made again

        await eventually(credited)
        assert shop.lines("webhook_failed")[0]["code"] in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
        assert await shop.status(begun) == ("added", None)


async def test_a_hung_stripe_costs_its_call_and_nothing_else(
    open_shop: Callable[..., Any], firestore_server: FirestoreProcess
) -> None:
    shop: Shop = await open_shop(firestore_server.address)
    await shop.account.fail("hang", times=100)
    async with httpx.AsyncClient(timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as http:

        async def hanging() -> Any:
            body = {"mandate_path": MANDATE, "top_up": {"currency": "CHF", "amount": 5}}
            url = f"{shop.service.url}/rpc/FIREBASE_MANAGEMENT.add_top_up"
            return (await http.post(url, json=body, headers={"X-Timeout-Ms": "1500"})).json()

        calls = [asyncio.create_task(hanging()) for _ in range(5)]

        async def all_hang() -> bool:
            return bool((await shop.account.state())["hanging"] == 5)

        await eventually(all_hang)
        assert await shop.balance() == 0  # answered while the others hang
        assert not any(call.done() for call in calls)
        replies = await asyncio.gather(*calls)
    assert [reply["error"]["code"] for reply in replies] == ["DEADLINE_EXCEEDED"] * 5


async def test_a_retry_of_a_top_up_is_the_same_top_up(shop: Shop) -> None:
    method, args = "FIREBASE_MANAGEMENT.add_top_up", (MANDATE, {"currency": "CHF", "amount": 12.5})
    key = uuid.uuid4().hex
    first, again = [await shop.service.call(method, *args, as_user="ada", with_key=key) for _ in range(2)]
    assert first == again
    assert len((await shop.account.state())["sessions"]) == 1
    await shop.account.fail("status", times=100, status=400)
    for _ in range(2):  # nor does a failed one begin anew under its key
        with pytest.raises(CallFailed) as failed:
            await shop.service.call(method, *args, as_user="ada", with_key=f"{key}2")
        assert failed.value.code == "FAILED_PRECONDITION"
    assert len([path for method, path in (await shop.account.state())["requests"] if method == "POST"]) <= 5


async def test_an_event_that_stripe_did_not_give_in_time_is_asked_for_again_under_its_key(
    open_shop: Callable[..., Any], firestore_server: FirestoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop: Shop = await open_shop(firestore_server.address)
    await shop.account.hold()
    begun = await shop.top_up()
    await shop.account.pay(begun["session_id"])
    [event] = await shop.events("checkout.session.completed")

    async def tell() -> Any:
        method = "FIREBASE_MANAGEMENT.process_stripe_webhook"
        return await shop.service.call(method, {"id": event}, as_user="ada", with_key="k1")

    await shop.account.fail("hang", times=100)
    with monkeypatch.context() as hurried:
        hurried.setattr(payments, "LONGEST_S", 0.2)
        with pytest.raises(CallFailed) as failed:
            await tell()
    assert failed.value.code == "UNAVAILABLE"
    await shop.account.heal()
    assert (await tell())["outcome"] == "added"
    assert (await tell())["outcome"] == "added"  # the stored answer


async def test_two_replicas_make_one_top_up_and_one_credit(
    open_shop: Callable[..., Any], firestore_server: FirestoreProcess
) -> None:
    shops: list[Shop] = [await open_shop(firestore_server.address) for _ in range(2)]
    await shops[0].account.hold()
    method, args = "FIREBASE_MANAGEMENT.add_top_up", (MANDATE, {"currency": "CHF", "amount": 12.5})
    key = uuid.uuid4().hex
    begun, same = await asyncio.gather(
        *(shop.service.call(method, *args, as_user="ada", with_key=key) for shop in shops)
    )
    assert begun == same
    [session] = (await shops[0].account.state())["sessions"]

    await shops[0].account.pay(session["id"])
    [event] = await shops[0].events("checkout.session.completed")
    deliveries = shops[0].account.deliver([event] * 3, at_once=True)  # three to each of the two
    calls = [shop.call("process_stripe_webhook", {"id": event}) for shop in shops]
    statuses, *done = await asyncio.gather(deliveries, *calls)
    assert statuses == [200] * 6
    assert {one["outcome"] for one in done} <= {"added", "already_added"}
    assert [await shop.balance() for shop in shops] == [1_250] * 2
    assert sum(len(shop.lines("top_up_added")) for shop in shops) == 1


async def test_with_the_guard_off_a_second_delivery_credits_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the tests above."""
    monkeypatch.setattr(ledger, "awaits_credit", lambda stored: True)
    await shop.account.hold()
    begun = await shop.top_up()
    await shop.account.pay(begun["session_id"])
    [event] = await shop.events("checkout.session.completed")
    assert await shop.account.deliver([event] * 2) == [200] * 2
    assert await shop.balance() == 2_500


async def test_logs_hold_no_payload_and_no_secret(shop: Shop) -> None:
    begun = await shop.top_up(amount=98_765.43)
    await shop.account.pay(begun["session_id"])

    async def credited() -> bool:
        return await shop.balance() == 9_876_543

    await eventually(credited)
    await shop.post(b'{"text": "payload"}', signed("whsec_other", "x"))
    text = shop.log.getvalue()
    for secret in (shop.secret, shop.account.secret_key, "98765", "9876543", "payload", "customer@example.com"):
        assert secret not in text
