from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis import exceptions as redis
from redis.asyncio import RedisCluster
from support import Address, Recorded, administering, settings_on

from callboard.connections import Connections, redis_errors
from callboard.errors import ConfigurationError, Unavailable
from callboard.settings import Secret, Settings
from callboard_local import Authority, Deployment, ValkeyCluster, ValkeyServer
from callboard_local.deployment import DEBIANS
from callboard_local.server import free_port

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(server: Address, log: Recorded | None = None, **fields: Any) -> AsyncIterator[Connections]:
    settings = replace(settings_on(server), **fields)
    telemetry = (log or Recorded()).telemetry
    async with Connections(settings, telemetry, attempt_timeout_s=0.3, call_limit_s=1) as connections:
        yield connections


async def ask(connections: Connections) -> Any:
    with redis_errors(connections):
        return await connections.commands.get("callboard:nothing")


async def set_keys(connections: Connections) -> None:
    """Twenty keys: on both halves of a cluster."""
    for number in range(20):
        with redis_errors(connections):
            await connections.commands.set(f"callboard:test:{number}", number)


# -- the state --------------------------------------------------------------------------------------------------------


async def test_the_state_is_the_last_known_one(own_valkey: ValkeyServer) -> None:
    settings = Settings(redis_host=own_valkey.host, redis_port=own_valkey.port)
    connections = Connections(settings, Recorded().telemetry)
    assert (connections.state, connections.mode) == ("unknown", "unknown")
    async with connections:
        assert (connections.state, connections.mode, connections.last_error) == ("ok", "plain", None)
        await own_valkey.kill()
        assert connections.state == "ok"  # nobody has asked since
        with pytest.raises(Unavailable):
            await ask(connections)
        assert own_valkey.address in str(connections.last_error)
        await own_valkey.restart()
        await ask(connections)
        assert (connections.state, connections.last_error) == ("ok", None)


async def test_it_opens_without_a_server_and_heals(own_valkey: ValkeyServer) -> None:
    await own_valkey.kill()
    async with opened(own_valkey) as connections:
        assert (connections.state, connections.mode) == ("down", "unknown")
        await own_valkey.restart()
        assert await ask(connections) is None
        await connections.find_mode()
        assert (connections.state, connections.mode) == ("ok", "plain")


# -- on every kind of Redis -------------------------------------------------------------------------------------------


async def test_every_kind_is_recognised_and_spoken_to(redis_deployment: Deployment) -> None:
    async with opened(redis_deployment) as connections:
        assert connections.state == "ok", connections.last_error
        assert connections.mode == ("cluster" if redis_deployment.is_cluster else "plain")
        pipe = connections.commands.pipeline(transaction=False)
        for number in range(20):
            pipe.set(f"callboard:test:{number}", number)
        await pipe.execute()
        assert await connections.commands.get("callboard:test:7") == b"7"
        script = "return redis.call('GET', KEYS[1])"
        assert await connections.commands.eval(script, 1, "callboard:test:9") == b"9"


async def test_answers_are_bytes(redis_deployment: Deployment) -> None:
    async with opened(redis_deployment) as connections:
        await connections.commands.set("callboard:test:bytes", b"\xff\x00")
        assert await connections.commands.get("callboard:test:bytes") == b"\xff\x00"


async def test_a_publish_reaches_a_subscriber_on_any_node(redis_deployment: Deployment) -> None:
    async with opened(redis_deployment) as connections:
        await ask(connections)
        ports = set()
        for number in range(30):
            subscriber = connections.subscriber()
            ports.add(subscriber.port)
            await subscriber.connect()
            subscriber.send(("SUBSCRIBE", f"user:{number}"))
            await subscriber.receive()
            await connections.publisher.publish(f"user:{number}", "hello")
            assert await subscriber.receive() == [[b"message", b"user:%d" % number, b"hello"]]
            await subscriber.close()
        assert (len(ports) > 1) is (len(redis_deployment.nodes) > 1)


async def test_a_mistake_in_a_command_is_not_an_outage(redis_deployment: Deployment) -> None:
    async with opened(redis_deployment) as connections:
        await connections.commands.set("callboard:test:text", "x")
        with pytest.raises(redis.ResponseError), redis_errors(connections):
            await connections.commands.hget("callboard:test:text", "field")
        with pytest.raises(redis.ResponseError), redis_errors(connections):
            await connections.commands.eval("return nonsense.x", 1, "callboard:test:text")
        with pytest.raises(ZeroDivisionError), redis_errors(connections):
            raise ZeroDivisionError
        assert connections.state == "ok"


# -- which errors mean that Redis cannot serve ------------------------------------------------------------------------


async def test_a_full_server_cannot_serve(own_valkey: ValkeyServer) -> None:
    async with opened(own_valkey) as connections, administering(own_valkey) as admin:
        await admin.config_set("maxmemory", 1)
        with pytest.raises(Unavailable), redis_errors(connections):
            await connections.commands.set("k", "v")
        assert connections.state == "down"


async def run_what_is_refused(connections: Connections) -> None:
    """What a user may lack: a command, a key, a command within a script, and a command within a pipeline."""
    commands: Any = connections.commands
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: commands.hget("callboard:{ann}", "field"),
        lambda: commands.get("others:ann"),
        lambda: commands.eval("return redis.call('ZADD', KEYS[1], 1, 'ann')", 1, "callboard:{ann}"),
        lambda: commands.pipeline(transaction=False).hset("callboard:{ann}", "field", "secret").execute(),
    ]
    for call in calls:
        with pytest.raises(Unavailable), redis_errors(connections):
            await call()
        assert connections.state == "down"


async def test_a_user_who_may_too_little_is_told_of_without_what_was_to_be_written(own_valkey: ValkeyServer) -> None:
    log, where = Recorded(), f"127.0.0.1:{own_valkey.port}"
    async with administering(own_valkey) as admin:
        await admin.acl_setuser(
            "few", enabled=True, passwords=["+p4ss"], keys=["callboard:*"], commands=["-@all", "+eval", "+get"]
        )
        async with opened(own_valkey, log, redis_username="few", redis_password=Secret("p4ss")) as connections:
            await run_what_is_refused(connections)
            assert connections.last_error == (
                f"{where}: User few has no permissions to run the 'hset' command (LISTENERS_REDIS_USERNAME)"
            )
            await ask(connections)
            await run_what_is_refused(connections)
    assert [line["reason"].removeprefix(f"{where}: ") for line in log.lines("redis_refused")] == [
        "User few has no permissions to run the 'hget' command (LISTENERS_REDIS_USERNAME)",
        "No permissions to access a key (LISTENERS_REDIS_USERNAME)",
        "ACL failure in script: User few has no permissions to run the 'zadd' command (LISTENERS_REDIS_USERNAME)",
        "User few has no permissions to run the 'hset' command (LISTENERS_REDIS_USERNAME)",
    ]


async def test_a_database_that_is_not_there_is_told_of(own_valkey: ValkeyServer) -> None:
    log = Recorded()
    async with opened(own_valkey, log, redis_db=99) as connections:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ask(connections)
        assert connections.state == "down"
    [told] = log.lines("redis_refused")
    assert told["reason"].endswith("DB index is out of range (LISTENERS_REDIS_DB)")


async def test_too_many_clients_is_an_outage_that_ends(own_valkey: ValkeyServer) -> None:
    async with administering(own_valkey) as admin:
        await admin.config_set("maxclients", 1)
        async with opened(own_valkey) as connections:
            with pytest.raises(Unavailable):
                await ask(connections)
            await admin.config_set("maxclients", 100)
            await ask(connections)
            assert connections.state == "ok"


async def test_a_server_that_became_a_replica_is_looked_up_anew(own_valkey: ValkeyServer) -> None:
    async with opened(own_valkey) as connections, administering(own_valkey) as admin:
        before = connections.commands
        await admin.replicaof("127.0.0.1", "1")
        for _ in range(10):
            with pytest.raises(Unavailable), redis_errors(connections):
                await connections.commands.set("k", "v")
        rebuilt = connections.commands
        assert rebuilt is not before
        await admin.replicaof("NO", "ONE")
        with redis_errors(connections):
            await connections.commands.set("k", "v")
        assert connections.commands is rebuilt  # once, not at every error


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def node() -> Iterator[ValkeyServer]:
    """The first of two, each with half of the slots."""
    with ValkeyCluster(2, 0) as made:
        yield made.nodes[0]


@pytest.fixture
def cluster(node: ValkeyServer) -> Iterator[ValkeyServer]:
    yield node
    node.ask("ACL", "SETUSER", "default", "+@all")


async def test_a_server_that_hides_its_mode_is_found_out_when_it_redirects(cluster: ValkeyServer) -> None:
    cluster.ask("ACL", "SETUSER", "default", "-info", "-cluster|info")
    async with opened(cluster) as connections:
        assert connections.mode == "plain"
        with pytest.raises(Unavailable):
            await set_keys(connections)
        assert isinstance(connections.commands, RedisCluster)
        assert connections.mode == "cluster"
        await set_keys(connections)


async def test_info_refused_leaves_cluster_info(cluster: ValkeyServer) -> None:
    cluster.ask("ACL", "SETUSER", "default", "-info")
    async with opened(cluster) as connections:
        assert connections.mode == "cluster"


async def test_a_cluster_that_must_not_be_one_is_named(cluster: ValkeyServer) -> None:
    async with opened(cluster, redis_cluster="false") as connections:
        with pytest.raises(Unavailable):
            await set_keys(connections)
        assert not isinstance(connections.commands, RedisCluster)
        assert "LISTENERS_REDIS_CLUSTER" in str(connections.last_error)


async def test_a_plain_server_that_should_be_a_cluster_is_down(valkey_server: ValkeyServer) -> None:
    async with opened(valkey_server, redis_cluster="true") as connections:
        with pytest.raises(Unavailable):
            await ask(connections)
        assert "Cluster mode is not enabled" in str(connections.last_error)


# -- credentials and TLS ----------------------------------------------------------------------------------------------


async def test_a_wrong_password_is_named_and_not_shown(own_valkey: ValkeyServer) -> None:
    own_valkey.ask("ACL", "SETUSER", "alice", "on", ">right-password", "~*", "&*", "+@all")
    async with opened(own_valkey, redis_username="alice", redis_password=Secret("wrong-password")) as connections:
        assert connections.state == "down"
        assert "LISTENERS_REDIS_PASSWORD" in str(connections.last_error)
        subscriber = connections.subscriber()
        shown = [connections, connections.commands, connections.commands.connection_pool, subscriber]
        assert "wrong-password" not in "".join(map(repr, [*shown, connections.last_error]))
        with pytest.raises(redis.AuthenticationError):
            await subscriber.connect()
        await subscriber.close()
    async with opened(own_valkey, redis_username="alice", redis_password=Secret("right-password")) as connections:
        assert connections.state == "ok"
        assert await connections.commands.acl_whoami() == "alice"


async def test_a_password_alone_is_the_default_users(own_valkey: ValkeyServer) -> None:
    own_valkey.ask("CONFIG", "SET", "requirepass", "right-password")
    async with opened(own_valkey, redis_password=Secret("right-password")) as connections:
        assert await connections.commands.get("callboard:nothing") is None
    async with opened(own_valkey) as connections:
        assert "LISTENERS_REDIS_PASSWORD" in str(connections.last_error)


async def test_a_local_redis_overrides_the_other_settings() -> None:
    settings = Settings(
        use_local_redis=True, redis_host="elsewhere", redis_port=1, redis_db=3, redis_tls=True, redis_tls_ca="missing",
        redis_username="alice", redis_password=Secret("x"),
    )  # fmt: skip
    connections = Connections(settings, Recorded().telemetry)
    options = connections.commands.connection_pool.connection_kwargs
    assert {name: options[name] for name in ("host", "port", "db", "tls", "username", "password")} == {
        "host": "127.0.0.1", "port": 6379, "db": 0, "tls": None, "username": None, "password": None,
    }  # fmt: skip


async def test_the_database_is_selected(valkey_server: ValkeyServer) -> None:
    async with opened(valkey_server, redis_db=3) as three, opened(valkey_server) as zero:
        await three.commands.set("callboard:test:db", "3")
        assert await three.commands.get("callboard:test:db") == b"3"
        assert await zero.commands.get("callboard:test:db") is None


async def test_tls_to_a_plain_port_stays_down(valkey_server: ValkeyServer) -> None:
    async with opened(valkey_server, redis_tls=True, redis_tls_verify=False) as connections:
        assert connections.state == "down"
        assert "does this port speak TLS?" in str(connections.last_error)


@pytest.mark.parametrize(
    "fields",
    [
        {"redis_tls": True, "redis_tls_ca": "/nowhere/ca.pem"},
        {"redis_tls": True, "redis_tls_ca": __file__},
        {"redis_cluster": "true", "redis_db": 1},
    ],
)
async def test_what_cannot_work_stops_the_start(valkey_server: ValkeyServer, fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="LISTENERS_REDIS_"):
        async with opened(valkey_server, **fields):
            pass


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[ValkeyServer]:
    """A server that speaks TLS alone."""
    port = free_port()
    args = ["--port", "0", *authority.valkey_args(authority.issue("server"), port)]
    with ValkeyServer(port, binary=DEBIANS, args=args) as server:
        yield server


@pytest.mark.tls
@pytest.mark.parametrize("trusted", ["another", "the system's"])
async def test_tls_with_a_wrong_authority(tls_server: ValkeyServer, tmp_path: Path, trusted: str) -> None:
    path = str(Authority(tmp_path, "another").certificate) if trusted == "another" else ""
    async with opened(tls_server, redis_tls=True, redis_tls_ca=path) as connections:
        assert connections.state == "down"
        assert "not trusted" in str(connections.last_error)
    async with opened(tls_server, redis_tls=True, redis_tls_ca=path, redis_tls_verify=False) as connections:
        assert connections.state == "ok"


@pytest.mark.tls
async def test_plain_text_to_a_tls_port_stays_down(tls_server: ValkeyServer) -> None:
    async with opened(tls_server) as connections:
        assert connections.state == "down"
        assert "does this port want TLS?" in str(connections.last_error)
