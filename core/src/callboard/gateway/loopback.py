"""The guard of dev mode: only this machine may connect.

Dev mode has a known token and open pages, so a peer off the loopback is refused, and so is a request for a foreign
host name, which is how a hostile web page reaches a local server (DNS rebinding).
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from callboard.errors import PermissionDenied
from callboard.gateway.answers import refuse
from callboard.messages import new_id
from callboard.settings import is_loopback

_REASON = "Dev mode answers to this machine only."


class LoopbackOnly:
    """ASGI middleware for http and websocket. `X-Forwarded-For` is not believed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (_is_local(scope) and _asks_for_local(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refuse(send, PermissionDenied(_REASON), new_id())
        else:
            await receive()  # websocket.connect; a close before accept is a 403
            await send({"type": "websocket.close", "code": 1008, "reason": _REASON})


def _is_local(scope: Scope) -> bool:
    host, port = scope.get("client") or ("", 0)
    return port != 0 and is_loopback(host)  # 0: uvicorn took the address from X-Forwarded-For


def _asks_for_local(scope: Scope) -> bool:
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    name = host.partition(":")[0]
    # A name without a dot (localhost, testserver) is never a public one.
    return "." not in name or name.endswith(".localhost") or is_loopback(name)
