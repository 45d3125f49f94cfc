"""The embedded Firestore in a process of its own."""

import sys
from pathlib import Path

from .child import Child
from .server import ServerProcess

READY = "Firestore is ready on port"


class FirestoreProcess(ServerProcess):
    """`async with FirestoreProcess() as firestore: os.environ["FIRESTORE_EMULATOR_HOST"] = firestore.address`.

    The options are those of `FirestoreServer`. Without `data`, a restart loses every document.
    """

    name = "Firestore"

    def __init__(self, port: int = 0, *, max_streams: int = 100, data: Path | None = None) -> None:
        super().__init__(port)
        self._max_streams = max_streams
        self._data = data

    def _launch(self, port: int) -> Child:
        command = [sys.executable, "-m", "callboard_local", "firestore", "--port", str(port)]
        command += ["--max-streams", str(self._max_streams)]
        if self._data is not None:
            command += ["--data", str(self._data)]
        child = Child(command, name=self.name, ready=READY)
        self._start_child(child, port)
        return child
