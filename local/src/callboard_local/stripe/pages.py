"""The hosted page of a session: a person on a laptop pays, or goes back, and lands where the session says."""

from collections.abc import Awaitable, Callable
from decimal import Decimal
from html import escape

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from . import sessions
from .accounts import Accounts
from .currencies import THREE_DECIMAL, ZERO_DECIMAL
from .errors import ApiError
from .objects import Object

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 26rem; margin: 12vh auto; padding: 0 1rem; color: #1a1f36 }}
h1 {{ font-size: 2rem; margin: 0 }} p {{ color: #697386 }}
button {{ font: inherit; padding: .6rem 1rem; border: 1px solid #d5dbe1; border-radius: 6px; background: #fff }}
button.pay {{ background: #0a2540; color: #fff }} form {{ display: inline }}
</style></head><body>{body}</body></html>"""

_PAY = """<p>Stripe stand-in: no money moves</p><h1>{amount}</h1><p>{items}</p>
<form method="post" action="{path}/pay"><button class="pay">Pay</button></form>
<form method="post" action="{path}/pay-later"><button>Pay by bank debit</button></form>
{back}"""
_WAIT = """<p>Stripe stand-in: no money moves</p><h1>{amount}</h1><p>The bank has not spoken yet.</p>
<form method="post" action="{path}/settled"><button class="pay">The money comes</button></form>
<form method="post" action="{path}/failed"><button>It does not</button></form>"""
_BACK = """<form method="get" action="{path}/cancel"><button>Cancel</button></form>"""


def page_routes(accounts: Accounts) -> list[BaseRoute]:
    """`/c/pay/{id}` and what its buttons do, and a page to come back to where there is no application."""

    async def show(request: Request) -> Response:
        identifier = request.path_params["id"]
        account = accounts.of_session(identifier)
        session = sessions.find(account, identifier)
        path = f"/c/pay/{identifier}"
        if sessions.is_waiting(account, session):
            body = _WAIT.format(amount=escape(_amount(session)), path=path)
            return HTMLResponse(_PAGE.format(title="Bank", body=body))
        if session["status"] != "open":
            return _message("This session is over", f"It is {session['status']}.", 410)
        names = ", ".join(str(item["description"]) for item in account.line_items[identifier])
        back = _BACK.format(path=path) if session["cancel_url"] else ""
        body = _PAY.format(amount=escape(_amount(session)), items=escape(names), path=path, back=back)
        return HTMLResponse(_PAGE.format(title="Pay", body=body))

    def payment(*, delayed: bool) -> Callable[[Request], Awaitable[Response]]:
        async def pay(request: Request) -> Response:
            identifier = request.path_params["id"]
            session = sessions.pay(accounts.of_session(identifier), identifier, delayed=delayed)
            return _leave(session, session["success_url"])

        return pay

    def word(*, succeeded: bool) -> Callable[[Request], Awaitable[Response]]:
        async def settle(request: Request) -> Response:
            identifier = request.path_params["id"]
            sessions.settle(accounts.of_session(identifier), identifier, succeeded=succeeded)
            return _message("The bank has spoken", "The money is there." if succeeded else "The money will not come.")

        return settle

    async def cancel(request: Request) -> Response:
        identifier = request.path_params["id"]
        session = sessions.find(accounts.of_session(identifier), identifier)
        return _leave(session, session["cancel_url"] or "/paid")

    async def paid(_: Request) -> Response:
        return _message(
            "Thank you",
            "The payment is done; a bank debit waits for the bank's word, which you give on the checkout page: open it "
            "again. Set STRIPE_SUCCESS_URL to come back to your application.",
        )

    async def cancelled(_: Request) -> Response:
        return _message("Cancelled", "Nothing was paid. Set STRIPE_CANCEL_URL to come back to your application.")

    return [
        Route("/c/pay/{id}", show),
        Route("/c/pay/{id}/pay", payment(delayed=False), methods=["POST"]),
        Route("/c/pay/{id}/pay-later", payment(delayed=True), methods=["POST"]),
        Route("/c/pay/{id}/settled", word(succeeded=True), methods=["POST"]),
        Route("/c/pay/{id}/failed", word(succeeded=False), methods=["POST"]),
        Route("/c/pay/{id}/cancel", cancel),
        Route("/paid", paid),
        Route("/cancelled", cancelled),
    ]


async def page_error(_: Request, error: Exception) -> Response:
    """A refusal, for a person."""
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette looks handlers up by type
    return _message("That does not work", str(error), error.status)


def _leave(session: Object, url: str) -> Response:
    return RedirectResponse(url.replace("{CHECKOUT_SESSION_ID}", session["id"]), 303)


def _message(title: str, text: str, status: int = 200) -> Response:
    return HTMLResponse(
        _PAGE.format(title=escape(title), body=f"<h1>{escape(title)}</h1><p>{escape(text)}</p>"), status
    )


def _amount(session: Object) -> str:
    currency = session["currency"]
    exponent = 0 if currency in ZERO_DECIMAL else 3 if currency in THREE_DECIMAL else 2
    return f"{Decimal(session['amount_total']).scaleb(-exponent):f} {currency.upper()}"
