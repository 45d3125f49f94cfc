"""One Firebase app per service, from the settings alone."""

from __future__ import annotations

import json
from pathlib import Path

import firebase_admin
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from callboard.errors import ConfigurationError, DeadlineExceeded, Unavailable
from callboard.settings import Secret, load
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local.firestore_process import FirestoreProcess

from .conftest import take

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def service_account() -> str:
    """The JSON of a service account that nobody knows."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return json.dumps(
        {
            "type": "service_account",
            "project_id": "its-own",
            "private_key_id": "1",
            "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "client_email": "it@its-own.iam.gserviceaccount.com",
            "token_uri": "https://localhost:1/token",
        }
    )


def emulator(server: FirestoreProcess, project: str) -> FirebaseSettings:
    return FirebaseSettings(project_id=project, emulator_host=server.address)


# -- settings


def test_the_settings_come_from_the_google_variables() -> None:
    settings = load(
        FirebaseSettings,
        {
            "GOOGLE_PROJECT_ID": "p",
            "FIREBASE_ADMIN_JSON": "{secret}",
            "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
            "FIRESTORE_EMULATOR_HOST": "127.0.0.1:1",
            "FIRESTORE_TARGETS_PER_STREAM": "7",
        },
    )
    assert (settings.project_id, settings.application_credentials) == ("p", "/key.json")
    assert (settings.emulator_host, settings.targets_per_stream) == ("127.0.0.1:1", 7)
    assert settings.admin_json == Secret("{secret}")
    assert "secret}" not in repr(settings)


def test_targets_per_stream_is_at_least_one() -> None:
    with pytest.raises(ConfigurationError):
        load(FirebaseSettings, {"FIRESTORE_TARGETS_PER_STREAM": "0"})


@pytest.mark.parametrize(
    "name", ["GOOGLE_PROJECT_ID", "FIREBASE_ADMIN_JSON", "GOOGLE_APPLICATION_CREDENTIALS", "FIRESTORE_EMULATOR_HOST"]
)
def test_any_of_them_configures_firebase(name: str) -> None:
    assert Firebase(load(FirebaseSettings, {name: "x"})).configured


async def test_without_any_firebase_it_opens_and_says_so() -> None:
    async with Firebase(FirebaseSettings()) as firebase:
        assert not firebase.configured
        with pytest.raises(Unavailable):
            _ = firebase.client
        with pytest.raises(Unavailable):
            _ = firebase.listen
        with pytest.raises(Unavailable):
            await firebase.check()


# -- the connection


async def test_it_reads_writes_and_listens(firestore_server: FirestoreProcess, firestore_project: str) -> None:
    async with Firebase(emulator(firestore_server, firestore_project)) as firebase:
        note = firebase.client.document("notes/a")
        async with firebase.listen.watch(note) as batches:
            await take(batches)
            await note.set({"n": 1})
            assert (await take(batches)).documents["notes/a"].data == {"n": 1}
        assert 0 < await firebase.check() < 5


async def test_two_apps_in_one_process_are_apart(firestore_server: FirestoreProcess, firestore_project: str) -> None:
    with FirestoreProcess() as other:
        async with (
            Firebase(emulator(firestore_server, firestore_project)) as one,
            Firebase(emulator(other, firestore_project)) as two,
        ):
            await one.client.document("notes/a").set({})
            assert (await one.client.document("notes/a").get()).exists
            assert not (await two.client.document("notes/a").get()).exists


async def test_the_settings_decide_not_the_environment(
    firestore_server: FirestoreProcess,
    firestore_project: str,
    service_account: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    async with Firebase(emulator(firestore_server, firestore_project)) as firebase:
        await firebase.client.document("notes/a").set({})
    # Settings that name no emulator go to Google, even where the process's environment names one.
    async with Firebase(FirebaseSettings(admin_json=Secret(service_account))) as firebase:
        assert firebase.client._target == "firestore.googleapis.com"


async def test_it_leaves_nothing_behind(firestore_server: FirestoreProcess, firestore_project: str) -> None:
    before = set(firebase_admin._apps)
    async with Firebase(emulator(firestore_server, firestore_project)) as firebase:
        assert len(firebase_admin._apps) == len(before) + 1
    assert set(firebase_admin._apps) == before
    with pytest.raises(Unavailable):
        _ = firebase.client


async def test_check_says_what_is_wrong(firestore_project: str) -> None:
    with FirestoreProcess() as server:
        async with Firebase(emulator(server, firestore_project)) as firebase:
            await firebase.check()
            server.pause()
            with pytest.raises(DeadlineExceeded):
                await firebase.check(timeout_s=0.2)
            server.resume()
            await firebase.check()
            await server.kill()
            with pytest.raises(Unavailable):
                await firebase.check()


# -- credentials


@pytest.mark.parametrize("variable", ["admin_json", "application_credentials"])
@pytest.mark.parametrize("inline", [True, False], ids=["inline", "file"])
async def test_a_service_account_is_read(variable: str, inline: bool, service_account: str, tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    path.write_text(service_account)
    text = service_account if inline else str(path)
    given = FirebaseSettings(admin_json=Secret(text))
    if variable == "application_credentials":
        given = FirebaseSettings(application_credentials=text)
    async with Firebase(given) as firebase:
        assert firebase.client.project == "its-own"
        assert firebase.client._credentials.service_account_email == "it@its-own.iam.gserviceaccount.com"


async def test_the_project_can_be_another(service_account: str) -> None:
    async with Firebase(FirebaseSettings(project_id="given", admin_json=Secret(service_account))) as firebase:
        assert firebase.client.project == "given"


@pytest.mark.parametrize(
    "text",
    ["{canary", '{"type": "canary"}', '{"type": "service_account", "private_key": "canary"}', "/canary/none.json", "["],
)
async def test_a_bad_service_account_stops_without_repeating_it(text: str) -> None:
    before = set(firebase_admin._apps)
    with pytest.raises(ConfigurationError, match="FIREBASE_ADMIN_JSON") as caught:
        async with Firebase(FirebaseSettings(admin_json=Secret(text))):
            pass
    assert "canary" not in str(caught.value)
    assert set(firebase_admin._apps) == before


async def test_default_credentials_that_do_not_exist_are_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = set(firebase_admin._apps)
    missing = str(tmp_path / "none.json")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", missing)
    with pytest.raises(ConfigurationError):
        async with Firebase(FirebaseSettings(application_credentials=missing)):
            pass
    assert set(firebase_admin._apps) == before
