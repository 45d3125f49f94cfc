"""What operators and load balancers ask: /healthz, /readyz, /debug, /metrics, /version; and tools: /openapi.json.

/healthz and /readyz answer from memory, whatever Redis or a back end does.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from callboard.credentials import Credential, Credentials
from callboard.errors import MethodNotFound, PermissionDenied, Unauthenticated
from callboard.hookspecs import HealthCheck
from callboard.host import Host
from callboard.lifecycle import Lifecycle
from callboard.messages import encode
from callboard.openapi import describe
from callboard.plugins import Plugins
from callboard.rpc.router import Router
from callboard.service import Service
from callboard.version import VERSION

CHECK_TIMEOUT_S = 2.0
PROBE_FRESH_S = 10.0


class Health:
    """The endpoints of one app."""

    def __init__(
        self,
        host: Host,
        lifecycle: Lifecycle,
        router: Router,
        plugins: Plugins,
        credentials: Credentials,
        checks: Mapping[str, HealthCheck],
    ) -> None:
        self._host = host
        self._lifecycle = lifecycle
        self._router = router
        self._plugins = plugins
        self._credentials = credentials
        self._checks = checks
        self._openapi: dict[tuple[str, ...] | None, bytes] = {}

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/healthz", self.healthz),
            Route("/healthz/{namespace}", self.namespace_health),
            Route("/readyz", self.readyz),
            Route("/debug", self.debug),
            Route("/metrics", self.metrics),
            Route("/version", self.show_version),
            Route("/openapi.json", self.openapi),
        ]

    async def healthz(self, _: Request) -> Response:
        listeners = self._host.listeners
        return _json(
            {
                "status": "ok",
                "version": VERSION,
                "listeners_count": listeners.active_count(),
                "workflow_listeners_count": sum(
                    listeners.active_count(name) for name in listeners.names() if name.startswith("workflow")
                ),
                "redis": self._host.connections.state,
                "uptime_s": round(self._lifecycle.uptime_s()),
            }
        )

    async def readyz(self, request: Request) -> Response:
        bus = self._host.bus
        proved = bus.probed_at is not None and time.monotonic() - bus.probed_at < PROBE_FRESH_S
        ready = self._lifecycle.state == "ready" and (proved or request.query_params.get("strict") != "1")
        body = {"status": self._lifecycle.state, "bus": bus.state, "bus_proved": proved}
        return _json(body, 200 if ready else 503)

    async def namespace_health(self, request: Request) -> Response:
        namespace = request.path_params["namespace"]
        for plugin in self._plugins.all:
            if namespace in plugin.namespaces():
                if plugin.state == "quarantined":
                    return _json({"status": "quarantined"}, 503)
                service = next(s for s in plugin.services if s.namespace == namespace)
                report = await self._checked(service.health)
                return _json(report, 503 if report.get("status") == "down" else 200)
        raise MethodNotFound("There is no such namespace.")

    async def debug(self, request: Request) -> Response:
        self._check_credential(request, unlimited=True)
        names = list(self._checks)
        workflow = self._service("WORKFLOW")
        reports = await asyncio.gather(
            *(self._checked(self._checks[name]) for name in names),
            *([self._checked(workflow.debug)] if workflow else []),
        )
        external = dict(zip(names, reports, strict=False))
        return _json(
            {
                "redis": self._redis(),
                "firestore": external.pop("firestore", {"status": "not configured"}),
                "workflow_listeners": reports[-1] if workflow else {"status": "not installed"},
                "external": external,
                "plugins": [self._describe(plugin) for plugin in self._plugins.all],
                "listeners": self._host.listeners.status(),
                "members": self._host.listeners.members(),
                "replica": self._host.settings.replica_name(),
                "state": self._lifecycle.state,
                "version": VERSION,
            }
        )

    async def metrics(self, request: Request) -> Response:
        token = self._host.settings.metrics_token
        if token is not None:
            given = [value for name, value in request.scope["headers"] if name == b"authorization"]
            wanted = b"Bearer " + token.reveal().encode("utf-8", "surrogateescape")
            if len(given) != 1 or not hmac.compare_digest(given[0], wanted):
                raise Unauthenticated
        metrics = self._host.telemetry.metrics
        metrics.tasks.set(len(asyncio.all_tasks()))  # a walk over all of them: not every second
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def show_version(self, _: Request) -> Response:
        plugins = {plugin.name: plugin.version for plugin in self._plugins.all}
        return _json({"version": VERSION, "api_versions": ["v1"], "plugins": plugins})

    async def openapi(self, request: Request) -> Response:
        """The methods that the credential may call, as OpenAPI 3.1; they are those of the start, so it is made once."""
        credential = self._check_credential(request)
        patterns = credential.patterns if credential else None
        if patterns not in self._openapi:
            self._openapi[patterns] = await asyncio.to_thread(lambda: encode(describe(self._router.table, credential)))
        return Response(self._openapi[patterns], media_type="application/json")

    def _check_credential(self, request: Request, *, unlimited: bool = False) -> Credential | None:
        """`unlimited`: it must be one that may call everything. In dev mode, for this machine alone, none is needed."""
        if self._host.settings.dev:
            return None
        credential = self._credentials.identify_request(request)
        if unlimited and not credential.is_unlimited:
            raise PermissionDenied
        return credential

    def _service(self, namespace: str) -> Service | None:
        return next((s for p in self._plugins.healthy() for s in p.services if s.namespace == namespace), None)

    def _redis(self) -> dict[str, Any]:
        bus = self._host.bus
        connections = self._host.connections
        report: dict[str, Any] = {"status": connections.state, "mode": connections.mode, "bus": bus.state}
        if connections.last_error is not None:
            report["error"] = connections.last_error
        if bus.probe_rtt_s is not None:
            report["probe_rtt_ms"] = round(bus.probe_rtt_s * 1000, 2)
        return report

    def _describe(self, plugin: Any) -> dict[str, Any]:
        return {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "state": plugin.state,
            "error": plugin.error,
            "namespaces": [
                {
                    "namespace": namespace,
                    "methods": self._router.table.methods_of(namespace),
                    "listeners": [
                        spec.name for s in plugin.services if s.namespace == namespace for spec in s.listeners()
                    ],
                    "channels": [c for s in plugin.services if s.namespace == namespace for c in s.channels],
                }
                for namespace in plugin.namespaces()
            ],
        }

    async def _checked(self, check: HealthCheck) -> dict[str, Any]:
        """A check's report; `down`, with the error's type alone, when it raises, takes too long or is no JSON."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                report = await check()
            if not isinstance(report, dict):
                raise TypeError("a report is a dict")
            encode(report)
            return report
        except Exception as error:  # noqa: BLE001 - a check may fail in any way; the page must not
            return {"status": "down", "error": type(error).__name__}


def gather_checks(plugins: Plugins, host: Host) -> dict[str, HealthCheck]:
    """The checks of all plugins by name; the first plugin to name one keeps it."""
    checks: dict[str, HealthCheck] = {}
    for _, given in plugins.collect("register_health_checks", dict, settings=host.settings, host=host):
        for name, check in given.items():
            checks.setdefault(name, check)
    return checks


def _json(body: Any, status: int = 200) -> Response:
    return Response(encode(body), status, media_type="application/json")
