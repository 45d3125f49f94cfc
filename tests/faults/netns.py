"""A server behind a cable of its own, which can be cut: a network namespace of Linux, for those who may make one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from callboard_local import ValkeyServer
from callboard_local.server import in_thread
from callboard_local.valkey import bundled_binary

_NOBODY = "00:00:5e:00:53:01"  # reserved for documentation: no card has it


class Island:
    """`async with Island(folder) as island`: Valkey at `host`, `port`; `cut()` makes its network a black hole.

    Packets are sent on both sides, and none arrives: no reset, no refusal, until `heal()`.
    """

    def __init__(self, folder: Path) -> None:
        number = os.getpid() % 0x4000 * 4
        subnet = f"10.213.{number >> 8}."
        self.host = f"{subnet}{(number & 0xFF) + 2}"
        self._ours = f"{subnet}{(number & 0xFF) + 1}"
        self._name = f"callboard-{os.getpid()}"
        self._near, self._far = f"cb{os.getpid()}a", f"cb{os.getpid()}b"
        launcher = folder / "valkey-in-namespace"
        launcher.write_text(f'#!/bin/sh\nexec ip netns exec {self._name} {bundled_binary()} "$@"\n')
        launcher.chmod(0o755)
        self._server = ValkeyServer(binary=launcher, args=["--bind", self.host, "--protected-mode", "no"])

    @classmethod
    def can_be_made(cls) -> bool:
        name = f"callboard-try-{os.getpid()}"
        try:
            _run("ip", "netns", "add", name)
            try:
                _run("ip", "-n", name, "link", "add", f"cb{os.getpid()}c", "type", "veth", "peer", "name", "cbd")
            finally:
                _run("ip", "netns", "del", name)
        except (OSError, subprocess.CalledProcessError):
            return False
        return True

    @property
    def port(self) -> int:
        return self._server.port

    async def __aenter__(self) -> Self:
        await in_thread(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await in_thread(self._stop)

    def cut(self) -> None:
        self._ip("neigh", "replace", self.host, "lladdr", _NOBODY, "nud", "permanent", "dev", self._near)
        self._ip("neigh", "replace", self._ours, "lladdr", _NOBODY, "nud", "permanent", "dev", self._far, inside=True)

    def heal(self) -> None:
        self._ip("neigh", "del", self.host, "dev", self._near)
        self._ip("neigh", "del", self._ours, "dev", self._far, inside=True)

    def _start(self) -> None:
        _run("ip", "netns", "add", self._name)
        try:
            self._ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
            self._ip("address", "add", f"{self._ours}/30", "dev", self._near)
            self._ip("link", "set", self._near, "up")
            self._ip("address", "add", f"{self.host}/30", "dev", self._far, inside=True)
            self._ip("link", "set", self._far, "up", inside=True)
            self._server.start()
        except BaseException:
            self._stop()
            raise

    def _stop(self) -> None:
        self._server.stop()
        _run("ip", "netns", "del", self._name)  # and the cable with it

    def _ip(self, *args: str, inside: bool = False) -> None:
        _run("ip", *(["-n", self._name] if inside else []), *args)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=10)
