"""What several test modules use beside fixtures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from redis.asyncio import Redis

from callboard.settings import Settings, load
from callboard.telemetry import Telemetry
from callboard_local import Deployment

MakeSettings = Callable[..., Settings]
PLAIN = pytest.mark.parametrize("redis_deployment", ["plain"], indirect=True)
"""On one plain server alone: for what does not depend on the kind of Redis, or counts what one server does."""


class Address(Protocol):
    """A server, a deployment of several, or what stands before it."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


def environ_of(server: Address) -> dict[str, str]:
    """The variables that a service needs for this Redis."""
    if isinstance(server, Deployment):
        return dict(server.environ)
    return {"LISTENERS_REDIS_HOST": server.host, "LISTENERS_REDIS_PORT": str(server.port)}


def settings_on(server: Address, **variables: str) -> Settings:
    """Settings on this Redis; variables by keyword win."""
    return load(Settings, {"LISTENERS_SERVICE_TOKEN": "t0ken", **environ_of(server), **variables})


def administering(server: Address) -> Redis:
    """A client with all rights, of the whole cluster where it is one: use it with `async with`."""
    return server.client() if isinstance(server, Deployment) else Redis(host=server.host, port=server.port)


def at_one_node(server: Address) -> Redis:
    """A client with all rights that speaks to one node alone, as who subscribes does."""
    return server.clients()[0] if isinstance(server, Deployment) else administering(server)


class Recorded:
    """Telemetry whose log lines can be read back."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.telemetry = Telemetry(replica="test", debug=True, stream=self._stream)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self._stream.getvalue().splitlines()]
        return [record for record in records if event in (None, record["event"])]

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample, 0 when there is none yet."""
        return self.telemetry.metrics.registry.get_sample_value(name, labels) or 0.0
