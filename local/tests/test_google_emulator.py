"""Google's emulator as a server process; how faithful ours is to it is the contract suite's question."""

from pathlib import Path

import pytest
from google.cloud import firestore

from callboard_local import GoogleFirestoreProcess, PortInUseError, StartError, google_emulator
from callboard_local.server import free_port

PACKAGES = "needs the Debian packages google-cloud-cli-firestore-emulator and default-jre-headless"


@pytest.mark.emulator
def test_it_serves_googles_client(
    google_firestore_server: GoogleFirestoreProcess, firestore_project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert google_firestore_server.alive
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", google_firestore_server.address)
    client = firestore.Client(project=firestore_project)
    client.document("c/d").set({"mine": 1})
    assert client.document("c/d").get().to_dict() == {"mine": 1}
    client._firestore_api.transport.close()


@pytest.mark.emulator
def test_a_taken_port_is_named(google_firestore_server: GoogleFirestoreProcess) -> None:
    port = google_firestore_server.port
    with pytest.raises(PortInUseError, match=f"emulator cannot listen on 127.0.0.1:{port}"):
        GoogleFirestoreProcess(port).start()


def test_without_its_jar_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google_emulator, "installed_java", lambda: "java")
    monkeypatch.setattr(google_emulator, "_SDK_FOLDERS", [str(tmp_path)])
    server = GoogleFirestoreProcess(free_port())
    with pytest.raises(StartError, match=f"{PACKAGES}: google-cloud-cli-firestore-emulator is missing here"):
        server.start()
    assert not server.alive


def test_without_java_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError, match=f"{PACKAGES}: default-jre-headless is missing here"):
        GoogleFirestoreProcess().start()


def test_the_jar_is_found_where_an_installer_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(google_emulator, "_SDK_FOLDERS", ["/no/such/folder", "~/google-cloud-sdk"])
    jar = tmp_path / "google-cloud-sdk/platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    assert google_emulator.installed_jar() == jar
