"""Webhook endpoints, and the events as the API shows them."""

from fnmatch import fnmatchcase
from ipaddress import ip_address

import httpx

from .account import Account
from .errors import ApiError, missing
from .objects import Object, listed, new_id, now
from .parameters import Parameters


def create(account: Account, parameters: Parameters) -> Object:
    url = _url(parameters.text("url", required=True) or "")
    patterns = parameters.texts("enabled_events", required=True)
    endpoint = make(url, patterns, parameters.metadata())
    endpoint["description"] = parameters.text("description")
    endpoint["api_version"] = parameters.text("api_version")
    parameters.done()
    return {**endpoint, "secret": register(account, endpoint, new_id("whsec_", 32))}


def make(url: str, patterns: list[str], metadata: dict[str, str]) -> Object:
    """A webhook endpoint; `patterns` are types of events, or `*`."""
    return {
        "id": new_id("we_1"),
        "object": "webhook_endpoint",
        "api_version": None,
        "application": None,
        "created": now(),
        "description": None,
        "enabled_events": patterns,
        "livemode": False,
        "metadata": metadata,
        "status": "enabled",
        "url": url,
    }


def register(account: Account, endpoint: Object, secret: str) -> str:
    """From now on it gets the account's events; returns the secret they are signed with."""
    account.endpoints[endpoint["id"]] = endpoint
    account.secrets[endpoint["id"]] = secret
    return secret


def retrieve(account: Account, identifier: str, parameters: Parameters) -> Object:
    parameters.done()
    endpoint = account.endpoints.get(identifier)
    if endpoint is None:
        raise missing("webhook endpoint", identifier)
    return endpoint


def list_all(account: Account, parameters: Parameters) -> Object:
    found = list(reversed(account.endpoints.values()))
    return listed(found, "/v1/webhook_endpoints", "webhook endpoint", parameters)


def update(account: Account, identifier: str, parameters: Parameters) -> Object:
    endpoint = retrieve(account, identifier, Parameters({}))
    url, patterns = parameters.text("url"), parameters.texts("enabled_events")
    disabled = parameters.boolean("disabled")
    parameters.done()
    if url is not None:
        endpoint["url"] = _url(url)
    if patterns:
        endpoint["enabled_events"] = patterns
    if disabled is not None:
        endpoint["status"] = "disabled" if disabled else "enabled"
    return endpoint


def delete(account: Account, identifier: str, parameters: Parameters) -> Object:
    retrieve(account, identifier, parameters)
    del account.endpoints[identifier]
    del account.secrets[identifier]
    return {"id": identifier, "object": "webhook_endpoint", "deleted": True}


def retrieve_event(account: Account, identifier: str, parameters: Parameters) -> Object:
    parameters.done()
    event = account.events.get(identifier)
    if event is None:
        raise missing("event", identifier)
    return event


def list_events(account: Account, parameters: Parameters) -> Object:
    pattern, patterns = parameters.text("type"), parameters.texts("types")
    asked = [pattern] if pattern else patterns
    found = [
        event
        for event in reversed(account.events.values())
        if not asked or any(fnmatchcase(event["type"], one) for one in asked)
    ]
    return listed(found, "/v1/events", "event", parameters)


def _url(url: str) -> str:
    """Stripe asks for a public address; this one must not send anything off the machine."""
    try:
        parts = httpx.URL(url)  # as it is read when it is used
        local = parts.host == "localhost" or ip_address(parts.host).is_loopback
        served = parts.scheme in ("http", "https") and (parts.port or 0) < 65_536
    except (httpx.InvalidURL, ValueError):
        local = served = False
    if not (local and served):
        raise ApiError(
            400, "Invalid URL: the stand-in delivers to this machine alone.", code="url_invalid", param="url"
        )
    return url
