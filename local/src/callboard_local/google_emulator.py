"""Google's own Firestore emulator, under the same supervision: it judges tests, and the embedded server, in tests."""

import shutil
from pathlib import Path

from .child import Child, StartError
from .server import ServerProcess

JAR_PACKAGE = "google-cloud-cli-firestore-emulator"
JAVA_PACKAGE = "default-jre-headless"

_SDK_FOLDERS = (
    "/usr/lib/google-cloud-sdk",
    "/usr/share/google-cloud-sdk",
    "/opt/google-cloud-sdk",
    "~/google-cloud-sdk",
)
_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
_MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"


class GoogleFirestoreProcess(ServerProcess):
    """`with GoogleFirestoreProcess() as firestore: os.environ["FIRESTORE_EMULATOR_HOST"] = firestore.address`.

    It is not part of this package: starting it raises `StartError`, which names what to install, where the emulator or
    Java is missing. A restart loses every document.
    """

    name = "Google's Firestore emulator"
    start_timeout_s = 45.0  # a JVM on a busy machine

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)

    def _launch(self, port: int) -> Child:
        command = [installed_java(), "-Xmx512m", "-Duser.language=en", "-cp", str(installed_jar()), _MAIN_CLASS]
        command += ["start", f"--host={self.host}", f"--port={port}"]
        child = Child(command, name=self.name, ready="is now running")
        self._start_child(child, port)
        return child


def installed_jar() -> Path:
    """The emulator, where Google's packages and its installer put it; `StartError` when it is not there."""
    for folder in _SDK_FOLDERS:
        jar = Path(folder, _JAR).expanduser()
        if jar.is_file():
            return jar
    raise _missing(JAR_PACKAGE)


def installed_java() -> str:
    """The `java` of the PATH; `StartError` when there is none."""
    java = shutil.which("java")
    if java is None:
        raise _missing(JAVA_PACKAGE)
    return java


def _missing(package: str) -> StartError:
    return StartError(
        f"{GoogleFirestoreProcess.name} needs the Debian packages {JAR_PACKAGE} and {JAVA_PACKAGE}: "
        f"{package} is missing here"
    )
