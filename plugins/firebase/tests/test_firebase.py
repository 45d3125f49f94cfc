"""One Firebase app per service, from the settings alone."""

from __future__ import annotations

from pathlib import Path

import firebase_admin
import pytest

from callboard.errors import ConfigurationError, DeadlineExceeded, Unavailable
from callboard.settings import Secret, load
from callboard_firebase import Firebase, FirebaseSettings
from callboard_firebase.realtime.tokens import SCOPES, GoogleTokens
from callboard_local.firestore_process import FirestoreProcess

from .conftest import take
from .realtime_server import Exchange, RealtimeServer

pytestmark = pytest.mark.anyio


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
            "FIREBASE_REALTIME_DB_URL": "https://p.firebaseio.com",
            "FIREBASE_DATABASE_EMULATOR_HOST": "127.0.0.1:2",
        },
    )
    assert (settings.project_id, settings.application_credentials) == ("p", "/key.json")
    assert (settings.emulator_host, settings.targets_per_stream) == ("127.0.0.1:1", 7)
    assert (settings.realtime_url, settings.realtime_emulator_host) == ("https://p.firebaseio.com", "127.0.0.1:2")
    assert settings.admin_json == Secret("{secret}")
    assert "secret}" not in repr(settings)


def test_targets_per_stream_is_at_least_one() -> None:
    with pytest.raises(ConfigurationError):
        load(FirebaseSettings, {"FIRESTORE_TARGETS_PER_STREAM": "0"})


@pytest.mark.parametrize(
    "name", ["GOOGLE_PROJECT_ID", "FIREBASE_ADMIN_JSON", "GOOGLE_APPLICATION_CREDENTIALS", "FIRESTORE_EMULATOR_HOST"]
)
def test_any_of_them_configures_firestore(name: str) -> None:
    firebase = Firebase(load(FirebaseSettings, {name: "x"}))
    assert firebase.configured
    assert not firebase.realtime_configured


@pytest.mark.parametrize("name", ["FIREBASE_REALTIME_DB_URL", "FIREBASE_DATABASE_EMULATOR_HOST"])
def test_any_of_them_configures_the_realtime_database(name: str) -> None:
    firebase = Firebase(load(FirebaseSettings, {name: "x"}))
    assert firebase.realtime_configured
    assert not firebase.configured


async def test_without_any_firebase_it_opens_and_says_so() -> None:
    async with Firebase(FirebaseSettings()) as firebase:
        assert not firebase.configured
        with pytest.raises(Unavailable):
            _ = firebase.client
        with pytest.raises(Unavailable):
            _ = firebase.listen
        with pytest.raises(Unavailable):
            await firebase.check()
        assert not firebase.realtime_configured
        with pytest.raises(Unavailable):
            _ = firebase.realtime


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


# -- the Realtime Database


async def answer(exchange: Exchange) -> None:
    await exchange.answer(200, [exchange.query.get("ns"), exchange.token])


async def test_an_emulator_alone_opens_the_realtime_database_alone() -> None:
    async with RealtimeServer(answer) as server:
        async with Firebase(FirebaseSettings(realtime_emulator_host=server.address)) as firebase:
            assert await firebase.realtime.get("a") == ["demo-default-rtdb", "owner"]
            with pytest.raises(Unavailable):
                _ = firebase.client
        with pytest.raises(Unavailable):
            _ = firebase.realtime


async def test_an_emulators_namespace_comes_from_the_url(
    firestore_server: FirestoreProcess, firestore_project: str
) -> None:
    async with RealtimeServer(answer) as server:
        settings = FirebaseSettings(
            project_id=firestore_project,
            emulator_host=firestore_server.address,
            realtime_url="https://given.firebaseio.com",
            realtime_emulator_host=server.address,
        )
        async with Firebase(settings) as firebase:
            assert await firebase.realtime.get("a") == ["given", "owner"]
            assert not (await firebase.client.document("notes/a").get()).exists


async def test_the_realtime_database_has_credentials_and_scopes_of_its_own(service_account: str) -> None:
    settings = FirebaseSettings(admin_json=Secret(service_account), realtime_url="https://p.firebaseio.com")
    async with Firebase(settings) as firebase:
        tokens = firebase.realtime._tokens
        assert isinstance(tokens, GoogleTokens)
        credentials = tokens._credentials
        assert credentials.service_account_email == "it@its-own.iam.gserviceaccount.com"
        assert set(credentials.scopes) == set(SCOPES)
        assert credentials is not firebase.client._credentials


async def test_an_emulator_of_firestore_does_not_make_the_realtime_database_anonymous(
    firestore_server: FirestoreProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    settings = FirebaseSettings(emulator_host=firestore_server.address, realtime_url="https://p.firebaseio.com")
    with pytest.raises(ConfigurationError):
        async with Firebase(settings):
            pass


async def test_a_wrong_url_stops_the_start_and_leaves_nothing(firestore_server: FirestoreProcess) -> None:
    before = set(firebase_admin._apps)
    settings = FirebaseSettings(emulator_host=firestore_server.address, realtime_url="http://p.firebaseio.com")
    with pytest.raises(ConfigurationError, match="FIREBASE_REALTIME_DB_URL"):
        async with Firebase(settings):
            pass
    assert set(firebase_admin._apps) == before
