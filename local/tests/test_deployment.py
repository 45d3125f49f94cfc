"""The kinds of Redis: each is what it says, and what it refuses is counted."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from callboard_local import Deployment, deployed
from callboard_local.deployment import LEAST_ACL, SERVERLESS_ACL, Kind

pytestmark = pytest.mark.anyio


def service_client(deployment: Deployment) -> Any:
    """As a service logs in, to one node."""
    environ = deployment.environ
    return redis.asyncio.Redis(
        host=environ["LISTENERS_REDIS_HOST"], port=int(environ["LISTENERS_REDIS_PORT"]),
        username=environ.get("LISTENERS_REDIS_USERNAME"), password=environ.get("LISTENERS_REDIS_PASSWORD"),
        ssl="LISTENERS_REDIS_TLS" in environ, ssl_ca_certs=environ.get("LISTENERS_REDIS_TLS_CA"),
        driver_info=None,  # else it introduces itself by CLIENT SETINFO, which is refused
    )  # fmt: skip


async def test_an_administrator_and_the_service_see_the_same(redis_deployment: Deployment) -> None:
    async with redis_deployment.client() as admin, service_client(redis_deployment) as service:
        assert await service.time()
        await admin.set("callboard:k", "v")
        assert await admin.get("callboard:k") == b"v"
        redis_deployment.flush()
        assert await admin.get("callboard:k") is None
    assert redis_deployment.refusals() == {}


@pytest.mark.parametrize(
    ("kind", "command", "counted"),
    [
        ("acl", "KEYS *", "NOPERM"),
        ("acl", "GET another", "NOPERM"),
        ("acl", "PUBLISH another m", "NOPERM"),
        ("cluster", "GET callboard:{a}", "MOVED"),
        ("cluster", "PSUBSCRIBE *", "NOPERM"),
        ("serverless", "PSUBSCRIBE *", "NOPERM"),
        ("serverless", "KEYS *", "NOPERM"),
        ("serverless", "CLIENT LIST", "NOPERM"),
        ("serverless", "MGET a b", "CROSSSLOT"),
        ("serverless", "SELECT 1", "SELECT"),
    ],
)
async def test_what_is_refused_is_counted(kind: Kind, command: str, counted: str) -> None:
    with deployed(kind) as deployment:
        assert deployment.refusals() == {}
        async with service_client(deployment) as service:
            with pytest.raises(redis.asyncio.RedisError):
                await service.execute_command(*command.split())
        assert deployment.refusals() == {counted: 1}


async def test_a_channel_that_a_plugin_declares_is_allowed() -> None:
    with deployed("acl", channels=["vector:"]) as deployment:
        async with service_client(deployment) as service:
            await service.publish("vector:ann", "m")
        assert deployment.refusals() == {}


def test_the_least_acl_asks_for_nothing_that_serverless_forbids() -> None:
    allowed = {rule.removeprefix("+") for rule in LEAST_ACL if rule.startswith("+")}
    forbidden = {rule.removeprefix("-") for rule in SERVERLESS_ACL if rule.startswith("-")}
    assert "-@all" in LEAST_ACL
    assert {"get", "publish", "cluster|slots"} <= allowed
    assert {"keys", "psubscribe", "client"} <= forbidden
    assert not (allowed | {rule.partition("|")[0] for rule in allowed}) & forbidden


def test_a_session_in_which_a_command_was_refused_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('redis_deployment', ['serverless'], indirect=True)\n"
        "@pytest.mark.parametrize('command', ['PING', 'KEYS *'])\n"
        "def test_it(redis_deployment, command):\n"
        "    try:\n"
        "        redis_deployment.nodes[0].ask(*command.split())\n"
        "    except RuntimeError:\n"
        "        pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", "-rE"]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "2 passed" in output, output
    assert "serverless has refused commands: {'NOPERM': 1}" in output
    assert "Redis has refused commands: {'serverless': Counter({'NOPERM': 1})}" in output


def test_a_kind_is_started_once(start_redis: Callable[[Kind], Deployment], redis_deployment: Deployment) -> None:
    assert start_redis(redis_deployment.kind) is redis_deployment
