"""The embedded Realtime Database in a process of its own."""

import http.client
import json
import sys
from pathlib import Path
from typing import Any

from .child import Child
from .server import ServerProcess, in_thread

READY = "Realtime Database is ready on port"

_CONTROL_TIMEOUT_S = 10


class RealtimeProcess(ServerProcess):
    """`async with RealtimeProcess() as realtime: firebase_admin.initialize_app(options={"databaseURL": realtime.url})`.

    The options are those of `RealtimeServer`. Without `data`, a restart loses every tree.
    """

    name = "Realtime Database"

    def __init__(
        self,
        port: int = 0,
        *,
        data: Path | None = None,
        keep_alive_s: float | None = 30.0,
        max_pending_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        super().__init__(port)
        self._data = data
        self._keep_alive_s = keep_alive_s
        self._max_pending_bytes = max_pending_bytes

    @property
    def url(self) -> str:
        """The `databaseURL` of the namespace `demo`."""
        return self.url_of("demo")

    def url_of(self, namespace: str) -> str:
        """The `databaseURL` of a namespace; every namespace is a database of its own."""
        return f"http://{self.address}?ns={namespace}"

    async def control(self, action: str, **options: Any) -> dict[str, Any]:
        """Bring about a fault, or look at the streams; the README has the actions. `ValueError`: it is refused."""
        return await in_thread(lambda: self._control(action, options))

    def _control(self, action: str, options: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_CONTROL_TIMEOUT_S)
        try:
            connection.request("POST", f"/.control/{action}", json.dumps(options))
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"])
        return answer

    def _launch(self, port: int) -> Child:
        command = [sys.executable, "-m", "callboard_local", "realtime", "--port", str(port)]
        command += ["--max-pending-bytes", str(self._max_pending_bytes)]
        command += ["--keep-alive", str(self._keep_alive_s or 0)]
        if self._data is not None:
            command += ["--data", str(self._data)]
        child = Child(command, name=self.name, ready=READY)
        self._start_child(child, port)
        return child
