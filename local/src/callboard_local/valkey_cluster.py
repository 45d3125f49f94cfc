"""A cluster of real Valkey servers: masters with replicas, which fail over by themselves."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .child import StartError
from .server import in_thread
from .valkey import ValkeyServer

SLOTS = 16_384
_START_TIMEOUT_S = 60.0


class ValkeyCluster:
    """`async with ValkeyCluster() as cluster:`, or with `with`: three masters, each with one replica.

    `nodes` are the servers, the first ones started as masters: `kill`, `pause` and `restart` them as you like.
    `node_timeout_s` is how long a node is silent before the others call it failed and its replica takes over. With one
    master and no replica it is what a Serverless cache looks like: cluster mode, and all slots on one node.
    """

    def __init__(
        self,
        masters: int = 3,
        replicas: int = 1,
        *,
        node_timeout_s: float = 5.0,
        binary: str | Path | None = None,
        args: Sequence[str] = (),
    ) -> None:
        """`replicas`: of each master. `args`: appended to the command line of every node."""
        ours = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"]
        ours += ["--cluster-node-timeout", str(int(node_timeout_s * 1000)), *args]
        self.nodes = [ValkeyServer(binary=binary, args=ours) for _ in range(masters * (1 + replicas))]
        self._masters = masters

    @property
    def host(self) -> str:
        return self.nodes[0].host

    @property
    def port(self) -> int:
        """The first node's: where a client begins."""
        return self.nodes[0].port

    @property
    def address(self) -> str:
        """`host:port`."""
        return self.nodes[0].address

    def start(self) -> None:
        """Start the nodes, join them, and wait until every one knows all. Blocks; raises `StartError`."""
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all nodes. Blocks."""
        for node in self.nodes:
            node.stop()

    def masters(self) -> list[ValkeyServer]:
        """The nodes that own slots now, as the first one that answers sees it. Blocks."""
        owners = {_port(line[1]) for line in self._nodes_known() if "master" in line[2] and len(line) > 8}
        return [node for node in self.nodes if node.port in owners]

    def _nodes_known(self) -> list[list[str]]:
        """CLUSTER NODES, each line by its words: id, address, flags, master, …, link state, slots."""
        for node in self.nodes:
            if node.alive and not _is_failed(node):
                return [line.split(" ") for line in node.ask("CLUSTER", "NODES").splitlines()]
        raise StartError("no node of the cluster answers")

    def _join(self) -> None:
        masters, others = self.nodes[: self._masters], self.nodes[self._masters :]
        for number, master in enumerate(masters):
            first, end = (SLOTS * at // len(masters) for at in (number, number + 1))
            master.ask("CLUSTER", "ADDSLOTSRANGE", str(first), str(end - 1))
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
        for node in self.nodes[1:]:
            self.nodes[0].ask("CLUSTER", "MEET", node.host, str(node.port))
        for node in self.nodes:
            self._until(lambda node=node: len(node.ask("CLUSTER", "NODES").splitlines()) == len(self.nodes))  # type: ignore[misc]
        for number, replica in enumerate(others):
            replica.ask("CLUSTER", "REPLICATE", masters[number % len(masters)].ask("CLUSTER", "MYID"))
        for node in self.nodes:
            self._until(lambda node=node: self._is_complete(node))  # type: ignore[misc]
        for replica in others:
            self._until(lambda replica=replica: "master_link_status:up" in replica.ask("INFO", "replication"))  # type: ignore[misc]

    def _is_complete(self, node: ValkeyServer) -> bool:
        lines = node.ask("CLUSTER", "NODES").splitlines()
        state = node.ask("CLUSTER", "INFO")
        replicas = sum(" slave " in line.replace("myself,", "") for line in lines)
        return (
            "cluster_state:ok" in state
            and f"cluster_slots_ok:{SLOTS}" in state
            and replicas == len(self.nodes) - self._masters
        )

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _START_TIMEOUT_S
        while not condition():
            if time.monotonic() > end:
                raise StartError(f"the cluster did not come together within {_START_TIMEOUT_S:g} s")
            time.sleep(0.02)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await in_thread(self.start)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await in_thread(self.stop)


def _port(address: str) -> int:
    """Of `host:port@bus-port`; the host is empty where a node has never heard its own."""
    return int(address.partition("@")[0].rpartition(":")[2])


def _is_failed(node: ValkeyServer) -> bool:
    try:
        node.ask("PING")
    except OSError:
        return True
    return False
