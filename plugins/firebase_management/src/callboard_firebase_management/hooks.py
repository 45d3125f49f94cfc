"""What the plugin registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute

from callboard import Service, hookimpl
from callboard.hookspecs import HealthCheck
from callboard.host import Host
from callboard.identity import TokenVerifier
from callboard_firebase import Firebase, IdTokens
from callboard_firebase_management.service import FirebaseManagement
from callboard_firebase_management.store import firestore_health
from callboard_firebase_management.webhook import webhook_route


@hookimpl
def register_services() -> Sequence[type[Service]]:
    return [FirebaseManagement]


@hookimpl
def register_routes(host: Host) -> Sequence[BaseRoute]:
    return [webhook_route(host)]


@hookimpl
def register_health_checks(host: Host) -> dict[str, HealthCheck]:
    """`firestore` in `/debug`, also when this plugin was put aside."""

    async def firestore() -> dict[str, Any]:
        return await firestore_health(await host.shared(Firebase))

    return {"firestore": firestore}


@hookimpl
def register_token_verifier() -> type[TokenVerifier]:
    return IdTokens
