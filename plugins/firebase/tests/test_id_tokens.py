"""Real RS256 tokens, checked by Google's own library against a Google of our own."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from callboard import ConfigurationError, Secret, Service, hookimpl
from callboard.errors import Unauthenticated, Unavailable
from callboard.identity import TokenVerifier, VerifiedToken
from callboard.testing import serving as serving_callboard
from callboard_firebase import FirebaseSettings, IdTokens
from callboard_local import ValkeyServer

from .google_accounts import CERTIFICATES, PROJECT, Google, Key, claims_of, service_account, serving, unsigned

pytestmark = pytest.mark.anyio
EMULATOR = "FIREBASE_AUTH_EMULATOR_HOST"


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    with serving(tmp_path) as made:
        for name, value in made.environ.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
async def tokens(google: Google) -> AsyncIterator[IdTokens]:
    async with IdTokens(FirebaseSettings(project_id=PROJECT)) as opened:
        yield opened


@asynccontextmanager
async def checking_revoked(folder: Path, **options: Any) -> AsyncIterator[IdTokens]:
    settings = FirebaseSettings(admin_json=Secret(service_account(folder)), check_revoked=True)
    async with IdTokens(settings, **options) as opened:
        yield opened


async def refused(tokens: IdTokens, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await tokens.verify(token)
    return caught.value.message


class Heart:
    """Whether the event loop turns: `beats` of it, ten milliseconds apart."""

    def __init__(self) -> None:
        self.beats = 0

    async def __aenter__(self) -> Heart:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.beats += 1


async def test_a_token_of_googles_tells_its_user(google: Google, tokens: IdTokens) -> None:
    issued = int(time.time()) - 10
    token = google.token("ada", iat=issued, exp=issued + 3_600)
    assert await tokens.verify(token) == VerifiedToken("ada", issued + 3_600, issued)
    verifier: type[TokenVerifier] = IdTokens
    assert verifier.Settings is FirebaseSettings


async def test_tokens_that_are_not_good_are_refused_alike(google: Google, tokens: IdTokens) -> None:
    now, other = int(time.time()), Key("k1")
    public = google.signing.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = unsigned({"alg": "HS256", "kid": "k1"}, claims_of("ada")).rpartition(".")[0]
    confused = unsigned({}, {}, hmac.digest(public, head.encode(), hashlib.sha256)).rpartition(".")[2]
    good = google.token()
    bad = {
        "expired": google.token(exp=now - 60, iat=now - 3_660),
        "from the future": google.token(iat=now + 60),
        "another project's": google.token(aud="another", iss="https://securetoken.google.com/another"),
        "another audience": google.token(aud="another"),
        "another issuer": google.token(iss="https://securetoken.google.com/another"),
        "an issuer that begins alike": google.token(iss=f"https://securetoken.google.com/{PROJECT}.evil.example"),
        "another key under the same id": google.token(key=other),
        "an unknown key": google.token(key=Key("k9")),
        "no key id": jwt.encode(claims_of("ada"), google.signing.private, "RS256"),
        "alg none": unsigned({"alg": "none", "kid": "k1"}, claims_of("ada")),
        "alg none, without kid": unsigned({"alg": "none"}, claims_of("ada")),
        "RS256 without signature": unsigned({"alg": "RS256", "kid": "k1"}, claims_of("ada")),
        "HS256 with the public key": f"{head}.{confused}",
        "RS512": jwt.encode(claims_of("ada"), google.signing.private, "RS512", headers={"kid": "k1"}),
        "no user": google.token(sub=None),
        "no user's name": google.token(sub=""),
        "a user that is no text": unsigned({"alg": "RS256", "kid": "k1"}, claims_of("ada", sub=7), b"s"),
        "no end": google.token(exp=None),
        "no beginning": google.token(iat=None),
        "a custom token": google.token(aud="https://identitytoolkit.googleapis.com/"),
        "claims that are a list": unsigned({"alg": "RS256", "kid": "k1"}, ["ada"]),
        "changed": good[:-8] + "AAAAAAA" + good[-1],
        "twice": f"{good}.{good}",
        "empty": "",
        "junk": "a.b.c",
        "not ASCII": "é.é.é",
        "endless": "a" * 100_000,
        "deep": unsigned({"alg": "RS256"}, json.loads("[" * 900 + "]" * 900)),
    }
    for name, token in bad.items():
        assert await refused(tokens, token) == "This ID token is not valid.", name
    assert (await tokens.verify(good)).uid == "ada"


LEAVES = st.none() | st.floats() | st.integers() | st.text(max_size=9)
NAMES = st.sampled_from(["alg", "kid", "aud", "iss", "sub", "exp", "iat"])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner))


def test_no_text_is_more_than_refused() -> None:
    with asyncio.Runner() as runner:
        tokens = runner.run(IdTokens(FirebaseSettings(project_id=PROJECT)).__aenter__())

        @settings(max_examples=60, deadline=None)
        @given(header=VALUES, payload=VALUES)
        def check(header: Any, payload: Any) -> None:
            for each in (header, {"alg": "RS256", "kid": header}):
                message = runner.run(refused(tokens, unsigned(each, payload, b"s")))
                assert message == "This ID token is not valid."

        check()
        runner.run(tokens.__aexit__(None, None, None))


async def test_clocks_may_differ_by_what_the_setting_says(google: Google) -> None:
    early = google.token(iat=int(time.time()) + 30)
    async with IdTokens(FirebaseSettings(project_id=PROJECT, clock_skew_s=60)) as patient:
        assert (await patient.verify(early)).uid == "ada"
    async with IdTokens(FirebaseSettings(project_id=PROJECT, clock_skew_s=0)) as strict:
        assert await refused(strict, early)


async def test_keys_rotate(google: Google, tokens: IdTokens) -> None:
    old, new = google.signing, Key("k2")
    before = google.token()
    assert (await tokens.verify(before)).uid == "ada"
    assert await refused(tokens, google.token(key=new))
    google.published.append(new)
    assert (await tokens.verify(google.token(key=new))).uid == (await tokens.verify(before)).uid == "ada"
    google.published.remove(old)
    assert (await tokens.verify(google.token(key=new))).uid == "ada"
    assert await refused(tokens, before)


async def test_certificates_are_kept_as_long_as_google_says(google: Google, tokens: IdTokens) -> None:
    google.max_age_s = 3_600
    for _ in range(5):
        await tokens.verify(google.token())
    assert await refused(tokens, google.token(key=Key("k9")))
    assert google.asked == [CERTIFICATES]
    google.gate.clear()  # Google hangs: nobody has to ask it
    assert (await tokens.verify(google.token())).uid == "ada"


async def test_while_google_hangs_log_ins_alone_wait_and_not_for_ever(google: Google) -> None:
    google.gate.clear()
    async with IdTokens(
        FirebaseSettings(project_id=PROJECT), timeout_s=0.6, http_timeout_s=0.5, threads=2, max_waiting=20
    ) as tokens:
        began = time.monotonic()
        async with Heart() as heart:
            outcomes = await asyncio.gather(*(tokens.verify(google.token()) for _ in range(30)), return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        assert heart.beats > 2
        assert time.monotonic() - began < 20
        assert google.count(CERTIFICATES) <= 4  # two threads, and one silence each
        google.gate.set()
        async with asyncio.timeout(20):
            while isinstance(
                (await asyncio.gather(tokens.verify(google.token()), return_exceptions=True))[0], Unavailable
            ):
                continue


async def test_on_the_loop_everybody_would_wait(google: Google, tokens: IdTokens) -> None:
    """Negative control: the library itself waits where it is called."""
    assert tokens._client is not None
    google.gate.clear()
    async with Heart() as heart:
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="timed out"):
            tokens._client._token_verifier.id_token_verifier.verify(
                google.token(), _Impatient(tokens._client._token_verifier.request), 0
            )
        assert heart.beats == 0


class _Impatient:
    """Google's transport, with a shorter patience."""

    def __init__(self, request: Any) -> None:
        self._request = request

    def __call__(self, url: str, method: str = "GET") -> Any:
        return self._request(url, method=method, timeout=0.5)


@pytest.mark.parametrize(("status", "body"), [(500, b"{}"), (200, b"no JSON"), (200, b"\xff"), (404, b"{}")])
async def test_without_certificates_nobody_can_tell(google: Google, tokens: IdTokens, status: int, body: bytes) -> None:
    google.status, google.body = status, body
    with pytest.raises(Unavailable):
        await tokens.verify(google.token())
    google.status, google.body = 200, None
    assert (await tokens.verify(google.token())).uid == "ada"


async def test_a_google_that_cannot_be_reached(
    google: Google, tokens: IdTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(Unavailable):
        await tokens.verify(google.token())


async def test_a_foreign_authority_is_not_believed(
    google: Google, tokens: IdTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(Unavailable):
        await tokens.verify(google.token())
    assert not google.asked


async def test_revoked_disabled_and_deleted_users(google: Google, tmp_path: Path) -> None:
    issued = int(time.time()) - 100
    good = google.token("ada", iat=issued)
    google.accounts = {"ada": {"validSince": str(issued - 1)}, "bob": {"disabled": True}}
    async with checking_revoked(tmp_path) as tokens:
        ada = await tokens.verify(good)
        bob, eve = (VerifiedToken(uid, time.time() + 3_600, issued) for uid in ("bob", "eve"))
        assert await refused(tokens, google.token("bob")) == "This ID token is not valid."
        assert await refused(tokens, google.token("eve")) == "This ID token is not valid."
        assert set(await tokens.revoked([ada, bob, eve])) == {bob, eve}
        google.accounts["ada"] = {"validSince": str(issued + 1)}
        assert await refused(tokens, good) == "This ID token is not valid."
        assert await tokens.revoked([ada]) == [ada]
        later = google.token("ada", iat=issued + 1)
        assert await tokens.revoked([await tokens.verify(later)]) == []
        google.status = 503
    async with checking_revoked(tmp_path, timeout_s=0.5) as hasty:
        with pytest.raises(Unavailable):
            await hasty.revoked([ada])


async def test_unless_it_is_set_nobody_is_asked_about_revocation(google: Google, tokens: IdTokens) -> None:
    """Negative control: a user that Google has disabled gets in, and stays."""
    google.accounts = {"ada": {"disabled": True}}
    verified = await tokens.verify(google.token("ada"))
    assert await tokens.revoked([verified]) == ()
    assert google.asked == [CERTIFICATES]


async def test_a_hundred_users_are_asked_about_at_once(google: Google, tmp_path: Path) -> None:
    google.accounts = {f"u{number}": {"validSince": "1"} for number in range(100)}
    async with checking_revoked(tmp_path) as tokens:
        verified = [VerifiedToken(uid, time.time() + 60, time.time()) for uid in google.accounts]
        assert await tokens.revoked(verified) == []
    assert google.count("accounts:lookup") <= 2  # the library asks once more when Google is slow


async def test_without_a_project_no_token_is_taken(google: Google) -> None:
    for nowhere in (FirebaseSettings(), FirebaseSettings(emulator_host="127.0.0.1:1")):
        async with IdTokens(nowhere) as tokens:
            assert await refused(tokens, google.token()) == "This service takes no ID tokens."
    assert not google.asked


async def test_credentials_that_cannot_be_used(tmp_path: Path) -> None:
    tokens = IdTokens(FirebaseSettings(admin_json=Secret(str(tmp_path / "none.json")), check_revoked=True))
    with pytest.raises(ConfigurationError, match="FIREBASE_ADMIN_JSON"):
        await tokens.__aenter__()


async def test_an_emulators_variable_switches_the_signature_off_for_those_alone_who_set_it(
    google: Google, tokens: IdTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = unsigned({"alg": "none"}, claims_of("ada"))
    assert await refused(tokens, forged)
    monkeypatch.setenv(EMULATOR, "127.0.0.1:9099")
    with pytest.raises(Unavailable):  # it was set behind the service's back
        await tokens.verify(forged)
    with pytest.raises(ConfigurationError, match=EMULATOR):
        await IdTokens(FirebaseSettings(project_id=PROJECT)).__aenter__()
    emulating = FirebaseSettings(project_id=PROJECT, auth_emulator_host="127.0.0.1:9099")
    async with IdTokens(emulating) as emulated:  # negative control: what the guard is for
        assert (await emulated.verify(forged)).uid == "ada"


# -- with a whole service


class plugin:  # noqa: N801 - stands for a module
    @staticmethod
    @hookimpl
    def register_services() -> list[type[Service]]:
        return []

    @staticmethod
    @hookimpl
    def register_token_verifier() -> type[TokenVerifier]:
        return IdTokens


async def shown(socket: ClientConnection, token: str, uid: str = "ada") -> dict[str, Any]:
    """What the service says to this token."""
    await socket.send(json.dumps({"type": "auth.firebase_token", "payload": {"token": token, "uid": uid}}))
    answer: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), 20))
    return answer


async def closed(socket: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        await asyncio.wait_for(socket.recv(), 20)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


@asynccontextmanager
async def service_at(valkey: ValkeyServer, **variables: str) -> AsyncIterator[str]:
    environ = {
        "LISTENERS_REDIS_HOST": "127.0.0.1", "LISTENERS_REDIS_PORT": str(valkey.port),
        "LISTENERS_HEARTBEAT_INTERVAL": "1", "GOOGLE_PROJECT_ID": PROJECT, **variables,
    }  # fmt: skip
    async with serving_callboard(plugin, environ=environ) as service:
        yield service.url.replace("http", "ws") + "/ws?uid=ada"


async def test_a_browser_opens_its_users_socket_until_the_token_ends(
    google: Google, valkey_server: ValkeyServer
) -> None:
    async with service_at(valkey_server) as url:
        async with connect(url, proxy=None) as socket:
            answer = await shown(socket, google.token(exp=int(time.time()) + 2))
            assert answer["type"] == "auth.session_confirmed"
            assert answer["payload"]["uid"] == "ada"
            assert await closed(socket) == 3005
        async with connect(url, proxy=None) as socket:
            answer = await shown(socket, google.token("bob"))
            assert (answer["type"], await closed(socket)) == ("auth.login_error", 3507)
        async with connect(url, proxy=None) as socket:
            answer = await shown(socket, google.token(exp=int(time.time()) - 60))
            assert (answer["type"], await closed(socket)) == ("auth.login_error", 3500)
        google.status = 503
        async with connect(url, proxy=None) as socket:
            answer = await shown(socket, google.token())
            assert (answer["type"], await closed(socket)) == ("auth.login_error", 3011)


async def test_a_user_who_is_signed_out_everywhere_is_cut_off_at_a_heartbeat(
    google: Google, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    google.accounts = {"ada": {"validSince": "1"}}
    variables = {"FIREBASE_ADMIN_JSON": service_account(tmp_path), "FIREBASE_CHECK_REVOKED": "true"}
    async with service_at(valkey_server, **variables) as url, connect(url, proxy=None) as socket:
        assert (await shown(socket, google.token()))["type"] == "auth.session_confirmed"
        asked = google.count("accounts:lookup")
        async with asyncio.timeout(20):  # a heartbeat asks, and she may stay
            while google.count("accounts:lookup") < asked + 2:
                await asyncio.sleep(0.01)
        google.status = 503  # nobody can tell: she stays
        async with asyncio.timeout(20):
            while google.count("accounts:lookup") < asked + 4:
                await asyncio.sleep(0.01)
        assert await (await socket.ping()) >= 0
        google.status = 200
        google.accounts["ada"] = {"validSince": str(int(time.time()) + 1)}
        assert await closed(socket) == 3500
