"""The pay page, as a person on a laptop walks through it."""

import httpx
import pytest

from callboard_local import StripeControl, StripeProcess

from .stripe_api import StripeApi, checkout

pytestmark = pytest.mark.anyio


async def test_pay(stripe_api: StripeApi) -> None:
    session = await stripe_api("checkout.sessions.create", checkout("jpy", 1_250))
    async with httpx.AsyncClient() as browser:
        page = await browser.get(session.url)
        assert page.status_code == 200
        assert "1250 JPY" in page.text
        assert f'action="/c/pay/{session.id}/pay"' in page.text
        paid = await browser.post(f"{session.url}/pay")
        assert paid.status_code == 303
        assert paid.headers["location"] == f"https://app.example.com/done?session={session.id}"
        assert (await browser.post(f"{session.url}/pay")).status_code == 400
        assert (await browser.get(session.url)).status_code == 410
    assert (await stripe_api("checkout.sessions.retrieve", session.id)).payment_status == "paid"


async def test_pay_by_a_debit_that_comes_later(stripe_api: StripeApi) -> None:
    session = await stripe_api("checkout.sessions.create", checkout("kwd", 12_500))
    async with httpx.AsyncClient() as browser:
        assert "12.500 KWD" in (await browser.get(session.url)).text
        assert (await browser.post(f"{session.url}/pay-later")).status_code == 303
    found = await stripe_api("checkout.sessions.retrieve", session.id)
    assert (found.status, found.payment_status) == ("complete", "unpaid")


@pytest.mark.parametrize(("button", "status"), [("settled", "paid"), ("failed", "unpaid")])
async def test_the_banks_word(stripe_api: StripeApi, button: str, status: str) -> None:
    session = await stripe_api("checkout.sessions.create", checkout())
    async with httpx.AsyncClient() as browser:
        assert (await browser.post(f"{session.url}/{button}")).status_code == 400
        await browser.post(f"{session.url}/pay-later")
        assert f'action="/c/pay/{session.id}/{button}"' in (await browser.get(session.url)).text
        assert (await browser.post(f"{session.url}/{button}")).status_code == 200
        assert (await browser.post(f"{session.url}/{button}")).status_code == 400
        assert (await browser.get(session.url)).status_code == 410
    assert (await stripe_api("checkout.sessions.retrieve", session.id)).payment_status == status


async def test_cancel_leaves_the_session_open(stripe_api: StripeApi) -> None:
    session = await stripe_api("checkout.sessions.create", checkout())
    async with httpx.AsyncClient() as browser:
        back = await browser.get(f"{session.url}/cancel")
        assert (back.status_code, back.headers["location"]) == (303, "https://app.example.com/back")
    assert (await stripe_api("checkout.sessions.retrieve", session.id)).status == "open"


async def test_what_the_page_shows_is_text(stripe_api: StripeApi) -> None:
    parameters = checkout()
    parameters["line_items"][0]["price_data"]["product_data"]["name"] = "<script>alert(1)</script>"
    session = await stripe_api("checkout.sessions.create", parameters)
    async with httpx.AsyncClient() as browser:
        page = (await browser.get(session.url)).text
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


async def test_no_such_session_and_the_pages_to_come_back_to(
    stripe_server: StripeProcess, stripe_account: StripeControl
) -> None:
    async with httpx.AsyncClient(base_url=stripe_server.url) as browser:
        assert (await browser.get("/c/pay/cs_test_none")).status_code == 404
        thanks = (await browser.get("/paid")).text
        assert "Thank you" in thanks
        assert "open it again" in thanks, "who pays by bank debit learns how it goes on"
        assert "Nothing was paid" in (await browser.get("/cancelled")).text
