"""Where a database is, and where its tokens may go."""

from __future__ import annotations

import httpx
import pytest

from callboard.errors import ConfigurationError, Unavailable
from callboard_firebase.realtime import Address

US = "https://demo-default-rtdb.firebaseio.com"
EU = "https://demo.europe-west1.firebasedatabase.app"


@pytest.mark.parametrize("slash", ["", "/"])
def test_googles_url_is_the_origin(slash: str) -> None:
    address = Address.parse(EU + slash)
    assert (address.origin, address.namespace, address.emulated) == (EU, None, False)
    assert str(address.url(["a", "b c"])) == f"{EU}/a/b%20c.json"
    assert str(address.url([], {"x": '"y z"'})) == f"{EU}/.json?x=%22y%20z%22"


def test_a_custom_host_may_name_its_namespace() -> None:
    address = Address.parse("https://db.example.com?ns=other")
    assert str(address.url(["a"])) == "https://db.example.com/a.json?ns=other"


@pytest.mark.parametrize(
    ("url", "namespace"),
    [
        (US, "demo-default-rtdb"),
        ("http://127.0.0.1:1?ns=given", "given"),
        (f"{EU}/?ns=given", "given"),
        ("", "p-default-rtdb"),
    ],
)
def test_an_emulator_is_told_the_namespace(url: str, namespace: str) -> None:
    address = Address.parse(url, emulator_host="127.0.0.1:9000", project="p")
    assert address == Address("http://127.0.0.1:9000", namespace, emulated=True)
    assert str(address.url(["a"], {"print": "silent"})) == f"http://127.0.0.1:9000/a.json?print=silent&ns={namespace}"


def test_an_emulator_needs_no_project() -> None:
    assert Address.parse("", emulator_host="[::1]:9000").namespace == "demo-default-rtdb"


@pytest.mark.parametrize(
    "url",
    ["", "demo", "ftp://demo", "http://127.0.0.1:9000?ns=x", "https://", f"{US}/path", "https://user:canary@host",
     "https://host:canary", f"{US}?ns=a/b"],
)  # fmt: skip
def test_a_wrong_url_stops_the_start_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FIREBASE_REALTIME_DB_URL") as caught:
        Address.parse(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1:9000/x", "http://127.0.0.1", "127.0.0.1:x"])
def test_a_wrong_emulator_stops_the_start(host: str) -> None:
    with pytest.raises(ConfigurationError, match="FIREBASE_DATABASE_EMULATOR_HOST"):
        Address.parse(US, emulator_host=host)


@pytest.mark.parametrize(
    "location",
    [
        "/b.json?ns=x",
        f"{US}/b.json",
        "https://s-usc1c-nss-118.firebaseio.com/a.json?ns=demo",
        f"{EU}/a.json",
    ],
)
def test_tokens_go_to_googles_hosts(location: str) -> None:
    url = httpx.URL(f"{US}/a.json")
    assert Address(US).redirected(url, location) == url.join(location)


@pytest.mark.parametrize(
    "location",
    [
        "http://s-usc1c-nss-118.firebaseio.com/a.json",  # in the clear
        "https://firebaseio.com.example.com/a.json",
        "https://evilfirebaseio.com/a.json",
        "https://example.com/a.json",
        f"{US}:444@example.com/",
        "https://[",
    ],
)
def test_tokens_go_nowhere_else(location: str) -> None:
    with pytest.raises(Unavailable):
        Address(US).redirected(httpx.URL(f"{US}/a.json"), location)


def test_a_custom_host_is_left_for_no_other() -> None:
    url = httpx.URL("https://db.example.com/a.json")
    with pytest.raises(Unavailable):
        Address("https://db.example.com").redirected(url, f"{US}/a.json")
