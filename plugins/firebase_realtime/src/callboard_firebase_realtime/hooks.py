"""What the plugin registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from callboard import Service, hookimpl
from callboard.hookspecs import HealthCheck
from callboard.host import Host
from callboard.identity import TokenVerifier
from callboard_firebase import Firebase, IdTokens
from callboard_firebase_realtime.service import FirebaseRealtime
from callboard_firebase_realtime.store import realtime_health


@hookimpl
def register_services() -> Sequence[type[Service]]:
    return [FirebaseRealtime]


@hookimpl
def register_health_checks(host: Host) -> dict[str, HealthCheck]:
    """`realtime_database` in `/debug`, also when this plugin was put aside."""

    async def realtime_database() -> dict[str, Any]:
        return await realtime_health(await host.shared(Firebase))

    return {"realtime_database": realtime_database}


@hookimpl
def register_token_verifier() -> type[TokenVerifier]:
    return IdTokens
