from __future__ import annotations

import pytest

from callboard.credentials import Credential, Credentials
from callboard.errors import ConfigurationError, PermissionDenied, Unauthenticated
from callboard.settings import Secret, Settings


def credentials(token: str | None = "main-token", more: str | None = None, *, dev: bool = False) -> Credentials:
    return Credentials(
        Settings(
            dev=dev,
            service_token=Secret(token) if token else None,
            service_tokens=Secret(more) if more else None,
        )
    )


def test_the_service_token_opens_every_method() -> None:
    service = credentials().identify(b"Bearer main-token")
    assert service == Credential("service")
    assert service.allows("ANY.method")


@pytest.mark.parametrize("header", [b"bearer main-token", b"BEARER  main-token ", b"  Bearer main-token"])
def test_the_scheme_has_no_case_and_space_around_does_not_count(header: bytes) -> None:
    assert credentials().identify(header).name == "service"


@pytest.mark.parametrize("header", [None, b"", b"  ", b"Bearer", b"Bearer  "])
def test_no_credential(header: bytes | None) -> None:
    with pytest.raises(Unauthenticated):
        credentials().identify(header)


@pytest.mark.parametrize(
    "header",
    [
        b"Bearer wrong",
        b"Bearer main-toke",
        b"Bearer main-token2",
        b"Bearer main-token main-token",
        b"Bearer MAIN-TOKEN",
        b"Basic main-token",
        b"main-token",
        b"Bearer dev",
        "Bearer jeton-é-\N{SNOWMAN}".encode(),
        b"Bearer \xff\xfe\x00",
    ],
)
def test_a_wrong_credential(header: bytes) -> None:
    with pytest.raises(PermissionDenied):
        credentials().identify(header)


def test_two_authorization_headers_are_refused_even_when_both_are_right() -> None:
    headers = [(b"authorization", b"Bearer main-token")] * 2
    assert credentials().identify_headers(headers[:1]).name == "service"
    with pytest.raises(PermissionDenied):
        credentials().identify_headers(headers)
    with pytest.raises(Unauthenticated):
        credentials().identify_headers([(b"host", b"x")])


def test_a_token_may_hold_any_text() -> None:
    assert credentials("jeton-é").identify("Bearer jeton-é".encode()).name == "service"


def test_more_credentials_with_patterns() -> None:
    known = credentials(more="ci:t1:REGISTRY.*,FIREBASE_REALTIME.get_*;reports:t2  ops:t3:*")
    ci = known.identify(b"Bearer t1")
    assert ci == Credential("ci", ("REGISTRY.*", "FIREBASE_REALTIME.get_*"))
    assert ci.allows("REGISTRY.get_user")
    assert ci.allows("FIREBASE_REALTIME.get_all_threads")
    assert not ci.allows("FIREBASE_REALTIME.create_chat")
    assert not ci.allows("REGISTRY_TWO.get_user")
    assert known.identify(b"Bearer t2") == Credential("reports")
    assert known.identify(b"Bearer t3").allows("X.y")


def test_only_the_star_is_special_in_a_pattern() -> None:
    assert not Credential("x", ("A.b?",)).allows("A.bc")
    assert not Credential("x", ("A.b",)).allows("A_b")
    assert not Credential("x", ("A.b",)).allows("A.b\n")
    assert not Credential("x", ()).allows("A.b")
    assert Credential("x", ("*.get",)).allows("A.get")


def test_who_may_call_everything() -> None:
    known = credentials(more="a:t1:*;b:t2:A.*;c:t3;d:t4:*.*,A.b")
    unlimited = [
        known.identify(b"Bearer " + token).is_unlimited for token in (b"main-token", b"t1", b"t2", b"t3", b"t4")
    ]
    assert unlimited == [True, True, False, True, False]


def test_rotation_two_tokens_of_one_name_are_live_at_once() -> None:
    known = credentials("old", "service:new")
    assert known.identify(b"Bearer old") == known.identify(b"Bearer new") == Credential("service")


@pytest.mark.parametrize(
    "text",
    [
        "secret99",
        "secret99;x:y",
        ":secret99",
        "ci:",
        "ci::REGISTRY.*",
        "c!:secret99",
        "ci:secret99:",
        "ci:secret99:a b",
        "ci:secret99:registry.*",
        "ci:secret99:REGISTRY",
        "ci:secret99:REGISTRY.*:x",
        "ci:secret99,other99",
        "a:secret99;b:secret99",
        "old99:service;new99:service",
    ],
)
def test_malformed_credentials_stop_the_start_without_showing_a_token(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        credentials(more=text)
    assert "LISTENERS_SERVICE_TOKENS" in caught.value.message
    assert "99" not in caught.value.message


def test_dev_mode_has_a_token_when_none_is_set() -> None:
    assert credentials(None, dev=True).identify(b"Bearer dev").name == "service"
    with pytest.raises(PermissionDenied):
        credentials("main-token", dev=True).identify(b"Bearer dev")


def test_without_any_token_there_is_no_service() -> None:
    with pytest.raises(ConfigurationError):
        credentials(None)
