"""The embedded Firestore in a process of its own."""

import sys
from pathlib import Path

from .child import Child, StartError
from .server import PortInUseError, ServerProcess

READY = "Firestore is ready on port"
ADDRESS_IN_USE = "Address already in use"


class FirestoreProcess(ServerProcess):
    """`async with FirestoreProcess() as firestore: os.environ["FIRESTORE_EMULATOR_HOST"] = firestore.address`.

    The options are those of `FirestoreServer`. Without `data`, a restart loses every document.
    """

    name = "Firestore"

    def __init__(self, port: int = 0, *, max_streams: int = 100, data: Path | None = None) -> None:
        super().__init__(port)
        self._max_streams = max_streams
        self._data = data

    def _launch(self) -> Child:
        command = [sys.executable, "-m", "callboard_local", "firestore", "--port", str(self.port)]
        command += ["--max-streams", str(self._max_streams)]
        if self._data is not None:
            command += ["--data", str(self._data)]
        child = Child(command, name=self.name, ready=READY)
        try:
            line = child.start(self.start_timeout_s)
        except StartError:
            if ADDRESS_IN_USE in child.output:
                raise PortInUseError(self.name, self.port) from None
            raise
        self.port = int(line.rpartition(" ")[2])
        return child
