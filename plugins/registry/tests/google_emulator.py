"""Google's own Firestore emulator, which judges the plugin beside the embedded server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from callboard_local.child import Child
from callboard_local.server import free_port

_SDKS = ("/usr/lib/google-cloud-sdk", "/usr/share/google-cloud-sdk", "/opt/google-cloud-sdk", "~/google-cloud-sdk")
_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
_MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"


@contextmanager
def google_emulator() -> Iterator[str]:
    """Run it; yields `host:port`. FileNotFoundError: it, or Java, is not installed."""
    java = shutil.which("java")
    jar = next((jar for sdk in _SDKS if (jar := Path(sdk, _JAR).expanduser()).is_file()), None)
    if java is None or jar is None:
        raise FileNotFoundError("Google's Firestore emulator needs its package and a JRE: make test-all installs them")
    port = free_port()
    command = [java, "-Xmx512m", "-Duser.language=en", "-cp", str(jar), _MAIN_CLASS, "start"]
    child = Child([*command, "--host=127.0.0.1", f"--port={port}"], name="emulator", ready="is now running")
    child.start(timeout_s=60)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        child.stop()
