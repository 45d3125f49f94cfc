"""What one secret key sees: its sessions, payment intents, events, webhook endpoints and idempotency keys.

Every key `sk_test_…` has an account of its own, so tests that make a key up do not meet each other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from .faults import Faults
from .idempotency import IdempotencyKeys
from .objects import API_VERSION, Object, new_id, now


@dataclass
class Origin:
    """The request that caused an event."""

    request_id: str | None = None
    idempotency_key: str | None = None


@dataclass
class Account:
    """All its objects, oldest first, and where its events go."""

    send: Callable[[Account, Object, Object], None]
    """Begin the delivery of an event (second) to an endpoint (third)."""
    sessions: dict[str, Object] = field(default_factory=dict)
    line_items: dict[str, list[Object]] = field(default_factory=dict)
    intents: dict[str, Object] = field(default_factory=dict)
    intent_details: dict[str, Object] = field(default_factory=dict)
    """What a session hands to its payment intent: metadata, description."""
    events: dict[str, Object] = field(default_factory=dict)
    endpoints: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    """Endpoint → signing secret."""
    keys: IdempotencyKeys = field(default_factory=IdempotencyKeys)
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of every API request, the failed ones included."""
    attempts: list[Object] = field(default_factory=list)
    """Every attempt to deliver an event, in order."""
    holding: bool = False
    """Events are made and not sent: tests deliver them in an order of their own."""

    def emit(self, kind: str, subject: Object, origin: Origin | None = None) -> Object:
        """Make an event with a copy of the object as it is now, and send it to whoever asked for its type."""
        origin = origin or Origin()
        event: Object = {
            "id": new_id("evt_"),
            "object": "event",
            "api_version": API_VERSION,
            "created": now(),
            "data": {"object": copy.deepcopy(subject)},
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": origin.request_id, "idempotency_key": origin.idempotency_key},
            "type": kind,
        }
        self.events[event["id"]] = event
        if not self.holding:
            for endpoint in self.listening(kind):
                self.send(self, event, endpoint)
        return event

    def forget(self) -> None:
        """All but the webhook endpoints and the idempotency keys."""
        for kept in (self.sessions, self.line_items, self.intents, self.intent_details, self.events):
            kept.clear()
        self.requests.clear()
        self.attempts.clear()

    def listening(self, kind: str) -> list[Object]:
        return [
            endpoint
            for endpoint in self.endpoints.values()
            if endpoint["status"] == "enabled"
            and any(fnmatchcase(kind, pattern) for pattern in endpoint["enabled_events"])
        ]
