"""HELLO on a real service, with a real Valkey (callboard-local's fixture `valkey_server`)."""

import hello_plugin
import pytest

from callboard.testing import CallFailed, running
from callboard_local import ValkeyServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def environ(valkey_server: ValkeyServer) -> dict[str, str]:
    return {"LISTENERS_REDIS_HOST": valkey_server.host, "LISTENERS_REDIS_PORT": str(valkey_server.port)}


async def test_it_greets(environ: dict[str, str]) -> None:
    async with running(hello_plugin, environ=environ) as service:
        assert await service.call("HELLO.greet", "Ada") == "hello Ada"
        assert await service.call("HELLO.greet", name="Ada", times=2) == "hello Ada, hello Ada"


async def test_arguments_are_checked_before_the_class_sees_them(environ: dict[str, str]) -> None:
    async with running(hello_plugin, environ=environ) as service:
        with pytest.raises(CallFailed) as refused:
            await service.call("HELLO.greet", "Ada", times="twice")
    assert refused.value.code == "INVALID_ARGS"
