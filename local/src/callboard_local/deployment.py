"""Every kind of Redis that a service may be given, on the loopback.

    with deployed("serverless") as deployment:
        settings = load(Settings, {"LISTENERS_SERVICE_TOKEN": "…", **deployment.environ})

- `plain`: one server, open to all.
- `acl`: one server with a password, and a user who may do what Callboard needs and nothing else.
- `cluster`: three masters with a replica each, and such a user.
- `serverless`: what ElastiCache Serverless looks like: cluster mode, all slots on one node, its forbidden commands
  refused by ACL, eviction `volatile-lru`.
- `tls`: one server that speaks TLS, with a password: Debian's redis-server.

Where a simulator and the real thing differ is told in this package's README.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .certificates import Authority
from .server import free_port
from .valkey import ValkeyServer
from .valkey_cluster import ValkeyCluster

if TYPE_CHECKING:
    from redis.asyncio import Redis

Kind = Literal["plain", "acl", "cluster", "serverless", "tls"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DEBIANS = "/usr/bin/redis-server"
"""A server that speaks TLS, of the package redis-server."""

LEAST_ACL = (
    "resetkeys", "~callboard:*", "resetchannels", "&callboard:probe:*", "&callboard:control:*", "&user:*", "&msg:*",
    "&chat:*", "&redis:reply:*",
    "-@all", "+info", "+cluster|info", "+cluster|slots", "+command", "+asking",
    "+publish", "+subscribe", "+unsubscribe", "+eval", "+evalsha",
    "+get", "+set", "+del", "+exists", "+expire", "+pexpire", "+pttl", "+persist", "+time",
    "+hget", "+hset", "+hsetnx", "+hdel", "+hexists", "+hgetall", "+hmget", "+hincrby",
    "+zadd", "+zcard", "+zcount", "+zrange", "+zrangebylex", "+zrangebyscore", "+zrem", "+zremrangebyscore", "+zscore",
    "+sadd", "+scard", "+sismember", "+smembers", "+srem",
)  # fmt: skip
"""What a service's own user must be allowed, with the channel prefixes as they are by default and no others."""

SERVERLESS_ACL = (
    "~*", "&*", "+@all", "-psubscribe", "-punsubscribe", "-pubsub|numpat", "-keys", "-config", "-debug", "-save",
    "-bgsave", "-bgrewriteaof", "-migrate",
    "-replicaof", "-slaveof", "-sync", "-psync", "-shutdown", "-acl", "-cluster|addslots",
    "-cluster|addslotsrange", "-cluster|delslots",
    "-cluster|failover", "-cluster|forget", "-cluster|meet", "-cluster|replicate", "-cluster|reset",
    "-cluster|setslot",
    "-client", "+client|getname", "+client|setname", "+client|reply", "-fcall", "-fcall_ro", "-function",
    "-wait", "-swapdb", "-move", "-object", "-memory", "-monitor", "-slowlog", "-latency", "-script|kill",
)  # fmt: skip
"""Everything but what ElastiCache Serverless has not got."""

_REFUSALS = ("NOPERM", "NOAUTH", "WRONGPASS", "CROSSSLOT", "MOVED", "ASK")
_ADMIN = ("admin", "the-admins-password")
_USER = ("callboard", "the-services-password")


class Deployment:
    """A Redis as it is given to a service, and what a test may do to it.

    `environ` holds the variables that a service needs for it; `host` and `port` are where it begins. `nodes` are its
    servers. `client()` is an administrator's.
    """

    def __init__(
        self,
        kind: Kind,
        nodes: Sequence[ValkeyServer],
        *,
        port: int | None = None,
        environ: Mapping[str, str] | None = None,
        admin: tuple[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.nodes = nodes
        self.host = nodes[0].host
        self.port = port or nodes[0].port
        self.environ = {
            "LISTENERS_REDIS_HOST": self.host,
            "LISTENERS_REDIS_PORT": str(self.port),
            **(environ or {}),
        }
        self._admin = admin

    @property
    def is_cluster(self) -> bool:
        return self.kind in ("cluster", "serverless")

    def client(self) -> "Redis":
        """A new client of redis-py with all rights, of the whole cluster where it is one: use it with `async with`."""
        from redis.asyncio import RedisCluster

        if self.is_cluster:
            return cast("Redis", RedisCluster(self.host, self.nodes[0].port, **self._login()))
        return self.clients()[0]

    def clients(self) -> "list[Redis]":
        """New clients with all rights, one for each node."""
        from redis.asyncio import Redis

        return [Redis(host=node.host, port=node.port, **self._login()) for node in self.nodes]

    def _login(self) -> dict[str, Any]:
        return dict(zip(("username", "password"), self._admin, strict=True)) if self._admin else {}

    def ask(self, *words: str) -> list[str]:
        """One command, with all rights, to each node: the answers. Blocks."""
        return [node.ask(*words, as_user=self._admin) for node in self.nodes]

    def flush(self) -> None:
        """Empty it. Blocks."""
        for node, role in zip(self.nodes, self.ask("INFO", "replication"), strict=True):
            if "role:master" in role:
                node.ask("FLUSHALL", as_user=self._admin)

    def refusals(self) -> Counter[str]:
        """How often, since its start, a node has refused what it was asked to do as a service must not ask it.

        By error (`NOPERM`, `CROSSSLOT`, `MOVED`, …), and `SELECT` where no other database could be selected. Blocks.
        """
        found: Counter[str] = Counter()
        for errors in self.ask("INFO", "errorstats"):
            for name, fields in _stats(errors, "errorstat_"):
                if name in _REFUSALS:
                    found[name] += int(fields["count"])
        for commands in self.ask("INFO", "commandstats"):
            for name, fields in _stats(commands, "cmdstat_"):
                if name == "select":
                    found["SELECT"] += int(fields["rejected_calls"]) + int(fields["failed_calls"])
        return +found


def _stats(text: str, prefix: str) -> Iterator[tuple[str, dict[str, str]]]:
    for line in text.splitlines():
        if line.startswith(prefix):
            name, _, fields = line.removeprefix(prefix).partition(":")
            yield name, dict(field.split("=") for field in fields.split(","))


@contextmanager
def deployed(kind: Kind, *, channels: Iterable[str] = (), args: Sequence[str] = ()) -> Iterator[Deployment]:
    """Start one and stop it. `channels`: prefixes that plugins declare, beside the default ones. Blocks.

    `args` are appended to every server's command line. `StartError`.
    """
    rules = [*LEAST_ACL, *(f"&{prefix}*" for prefix in channels)]
    with ExitStack() as stack:
        yield _STARTS[kind](stack, rules, args)


def _plain(stack: ExitStack, rules: Sequence[str], args: Sequence[str]) -> Deployment:
    return Deployment("plain", [stack.enter_context(ValkeyServer(args=args))])


def _acl(stack: ExitStack, rules: Sequence[str], args: Sequence[str]) -> Deployment:
    users = [*_user("default", "off"), *_administrator(), *_service(rules)]
    server = stack.enter_context(ValkeyServer(args=[*users, *args]))
    return Deployment("acl", [server], environ=_login(), admin=_ADMIN)


def _cluster(stack: ExitStack, rules: Sequence[str], args: Sequence[str]) -> Deployment:
    # The nodes speak to each other as the default user.
    cluster = ValkeyCluster(node_timeout_s=60, args=[*_service(rules), *args])
    return Deployment("cluster", stack.enter_context(cluster).nodes, environ=_login())


def _serverless(stack: ExitStack, rules: Sequence[str], args: Sequence[str]) -> Deployment:
    ours = ["--maxmemory-policy", "volatile-lru", *_administrator(), *args]
    cluster = stack.enter_context(ValkeyCluster(1, 0, args=ours))
    [node] = cluster.nodes
    node.ask("ACL", "SETUSER", "default", *SERVERLESS_ACL)  # not before the node has its slots
    return Deployment("serverless", cluster.nodes, admin=_ADMIN)


def _tls(stack: ExitStack, rules: Sequence[str], args: Sequence[str]) -> Deployment:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="callboard-tls-")))
    authority = Authority(directory)
    port = free_port()
    ours = authority.valkey_args(authority.issue("server"), port)
    users = [*_user("default", "off"), *_administrator(), *_service(["~*", "&*", "+@all"])]
    # The plain port beside the other is the administrator's.
    server = stack.enter_context(ValkeyServer(binary=DEBIANS, args=[*ours, *users, *args]))
    environ = {**_login(), "LISTENERS_REDIS_TLS": "true", "LISTENERS_REDIS_TLS_CA": str(authority.certificate)}
    return Deployment("tls", [server], port=port, environ=environ, admin=_ADMIN)


_STARTS = {"plain": _plain, "acl": _acl, "cluster": _cluster, "serverless": _serverless, "tls": _tls}


def _user(name: str, *rules: str) -> list[str]:
    return ["--user", name, *rules]


def _administrator() -> list[str]:
    return _user(_ADMIN[0], "on", f">{_ADMIN[1]}", "~*", "&*", "+@all")


def _service(rules: Sequence[str]) -> list[str]:
    return _user(_USER[0], "on", f">{_USER[1]}", *rules)


def _login() -> dict[str, str]:
    return {"LISTENERS_REDIS_USERNAME": _USER[0], "LISTENERS_REDIS_PASSWORD": _USER[1]}
