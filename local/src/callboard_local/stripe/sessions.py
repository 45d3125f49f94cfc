"""Checkout sessions in payment mode: open → complete (paid, or unpaid until the bank has spoken) | expired."""

from urllib.parse import urlsplit

from . import intents
from .account import Account, Origin
from .currencies import check_amount, check_currency
from .errors import ApiError, missing
from .objects import Object, listed, new_id, now
from .parameters import Parameters

_DAY_S = 24 * 3600
_STATUSES = ("open", "complete", "expired")


def create(account: Account, parameters: Parameters, base_url: str) -> Object:
    mode = parameters.text("mode", required=True, choices=("payment", "setup", "subscription"))
    if mode != "payment":
        raise ApiError(400, "This stand-in serves the mode `payment` alone.", param="mode")
    parameters.text("ui_mode", choices=("hosted_page",))
    success_url = _url(parameters, "success_url", required=True)
    cancel_url = _url(parameters, "cancel_url")
    items = [
        _line_item(item, f"line_items[{n}]") for n, item in enumerate(parameters.objects("line_items", required=True))
    ]
    currencies = {item["currency"] for item in items}
    if len(currencies) != 1:
        raise ApiError(400, "All line items of a session have the same currency, and there is one.", param="line_items")
    currency, total = currencies.pop(), sum(item["amount_total"] for item in items)
    check_amount(total, currency, "line_items", of="Checkout Session's total amount due")
    identifier = new_id("cs_test_", 58)
    session: Object = {
        "id": identifier,
        "object": "checkout.session",
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "cancel_url": cancel_url,
        "client_reference_id": parameters.text("client_reference_id", longest=200),
        "client_secret": None,
        "created": now(),
        "currency": currency,
        "customer": None,
        "customer_details": None,
        "customer_email": parameters.text("customer_email", longest=512),
        "expires_at": _expiry(parameters),
        "livemode": False,
        "locale": parameters.text("locale"),
        "metadata": parameters.metadata(),
        "mode": "payment",
        "payment_intent": None,
        "payment_link": None,
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "status": "open",
        "submit_type": parameters.text("submit_type", choices=("auto", "book", "donate", "pay", "subscribe")),
        "success_url": success_url,
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": f"{base_url}/c/pay/{identifier}",
    }
    details: Object = {"metadata": {}, "description": None}
    if (data := parameters.object("payment_intent_data")) is not None:
        details = {"metadata": data.metadata(), "description": data.text("description", longest=1_000)}
    expand = parameters.texts("expand")
    parameters.done()
    account.sessions[identifier] = session
    account.line_items[identifier] = items
    account.intent_details[identifier] = details
    return _expanded(account, session, expand)


def retrieve(account: Account, identifier: str, parameters: Parameters) -> Object:
    expand = parameters.texts("expand")
    parameters.done()
    return _expanded(account, find(account, identifier), expand)


def list_all(account: Account, parameters: Parameters) -> Object:
    status = parameters.text("status", choices=_STATUSES)
    intent = parameters.text("payment_intent")
    found = [
        session
        for session in reversed(account.sessions.values())
        if status in (None, session["status"]) and intent in (None, session["payment_intent"])
    ]
    return listed(found, "/v1/checkout/sessions", "checkout.session", parameters)


def list_items(account: Account, identifier: str, parameters: Parameters) -> Object:
    find(account, identifier)
    url = f"/v1/checkout/sessions/{identifier}/line_items"
    return listed(account.line_items[identifier], url, "line item", parameters)


def expire(account: Account, identifier: str, parameters: Parameters, origin: Origin) -> Object:
    parameters.done()
    session = find(account, identifier)
    _require_open(session, "expired")
    session |= {"status": "expired", "url": None}
    account.emit("checkout.session.expired", session, origin)
    return session


def expire_overdue(account: Account) -> None:
    """The sessions whose time is over."""
    for session in account.sessions.values():
        if session["status"] == "open" and session["expires_at"] <= now():
            session |= {"status": "expired", "url": None}
            account.emit("checkout.session.expired", session)


def pay(account: Account, identifier: str, *, delayed: bool = False) -> Object:
    """What the customer does on the pay page. `delayed`: by a method whose money comes later (see `settle`)."""
    session = find(account, identifier)
    _require_open(session, "paid")
    details = account.intent_details[identifier]
    intent = intents.make(session["amount_total"], session["currency"], dict(details["metadata"]))
    intent |= {"description": details["description"], "payment_method": "pm_card_visa", "status": "processing"}
    account.intents[intent["id"]] = intent
    account.emit("payment_intent.created", intent)
    email = session["customer_email"] or "customer@example.com"
    session |= {
        "status": "complete",
        "url": None,
        "payment_intent": intent["id"],
        "payment_status": "unpaid" if delayed else "paid",
        "customer_details": {"email": email, "name": None, "phone": None, "address": None},
    }
    if delayed:
        account.emit("payment_intent.processing", intent)
    else:
        intents.succeed(account, intent)
    account.emit("checkout.session.completed", session)
    return session


def settle(account: Account, identifier: str, *, succeeded: bool) -> Object:
    """The bank has spoken about a delayed payment."""
    session = find(account, identifier)
    if not is_waiting(account, session):
        raise ApiError(400, "This Checkout Session waits for no payment.")
    intent = account.intents[session["payment_intent"]]
    if succeeded:
        session["payment_status"] = "paid"
        intents.succeed(account, intent)
        account.emit("checkout.session.async_payment_succeeded", session)
    else:
        intents.fail(account, intent, "insufficient_funds")
        account.emit("checkout.session.async_payment_failed", session)
    return session


def is_waiting(account: Account, session: Object) -> bool:
    """Whether a delayed payment was begun whose end nobody knows yet."""
    intent = account.intents.get(session["payment_intent"] or "")
    return session["status"] == "complete" and intent is not None and intent["status"] == "processing"


def find(account: Account, identifier: str) -> Object:
    session = account.sessions.get(identifier)
    if session is None:
        raise missing("checkout.session", identifier)
    return session


def _require_open(session: Object, participle: str) -> None:
    if session["status"] != "open":
        raise ApiError(
            400,
            f'Only Checkout Sessions with a status in ["open"] can be {participle}. '
            f"This Checkout Session has a status of `{session['status']}`.",
        )


def _line_item(item: Parameters, where: str) -> Object:
    quantity = item.integer("quantity", required=True, least=1) or 1
    price = item.object("price_data", required=True)
    assert price is not None  # noqa: S101 - for the type checker: it is required
    currency = check_currency(price.text("currency", required=True) or "", f"{where}[price_data][currency]")
    unit_amount = price.integer("unit_amount", required=True) or 0
    product = price.object("product_data", required=True)
    assert product is not None  # noqa: S101 - as above
    name = product.text("name", required=True)
    product.text("description")
    return {
        "id": new_id("li_"),
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": unit_amount * quantity,
        "amount_tax": 0,
        "amount_total": unit_amount * quantity,
        "currency": currency,
        "description": name,
        "price": {"id": new_id("price_1"), "object": "price", "currency": currency, "unit_amount": unit_amount},
        "quantity": quantity,
    }


def _expiry(parameters: Parameters) -> int:
    expires_at = parameters.integer("expires_at")
    if expires_at is None:
        return now() + _DAY_S
    if not now() + 1800 - 60 <= expires_at <= now() + _DAY_S + 60:
        message = "The `expires_at` timestamp must be between 30 minutes and 24 hours from Checkout Session creation."
        raise ApiError(400, message, param="expires_at")
    return expires_at


def _url(parameters: Parameters, name: str, *, required: bool = False) -> str | None:
    url = parameters.text(name, required=required)
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        raise ApiError(400, "Not a valid URL", code="url_invalid", param=name)
    return url


def _expanded(account: Account, session: Object, expand: list[str]) -> Object:
    answer = dict(session)
    for name in expand:
        if name == "line_items":
            answer[name] = list_items(account, session["id"], Parameters({}))
        elif name == "payment_intent":
            answer[name] = account.intents.get(session["payment_intent"])
        else:
            raise ApiError(400, f"This property cannot be expanded ({name[:60]}).", param="expand")
    return answer
