from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from callboard.errors import ConfigurationError
from callboard.settings import EMULATOR_VARIABLES, Help, Secret, Settings, is_loopback, load, variable

MINIMAL = {"LISTENERS_SERVICE_TOKEN": "t0ken", "LISTENERS_REDIS_HOST": "cache"}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    number: Annotated[int, Help("a number")] = variable("SAMPLE_NUMBER", default=3)
    names: Annotated[tuple[str, ...], Help("names")] = variable("SAMPLE_NAMES", default=())
    switch: Annotated[bool, Help("a switch")] = variable("SAMPLE_SWITCH", default=False)
    kind: Annotated[Literal["a", "b"], Help("a kind")] = variable("SAMPLE_KIND", default="a")
    key: Annotated[Secret | None, Help("a key")] = variable("SAMPLE_KEY")


def test_text_becomes_the_fields_type() -> None:
    sample = load(Sample, {"SAMPLE_NUMBER": " 7 ", "SAMPLE_NAMES": "a, b,,c", "SAMPLE_SWITCH": "true"})
    assert (sample.number, sample.names, sample.switch) == (7, ("a", "b", "c"), True)


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(Sample, {"SAMPLE_NUMBER": "", "SAMPLE_NAMES": " "}) == Sample()


def test_a_wrong_value_names_the_variable_and_is_not_repeated() -> None:
    for name in ("SAMPLE_NUMBER", "SAMPLE_KIND"):
        with pytest.raises(ConfigurationError, match=f"^{name}: .") as caught:
            load(Sample, {name: "hunter2"})
        assert "hunter2" not in str(caught.value)


def test_a_switch_says_which_words_it_knows() -> None:
    with pytest.raises(ConfigurationError, match="SAMPLE_SWITCH: it is true, false, 1 or 0"):
        load(Sample, {"SAMPLE_SWITCH": "yes"})


def test_a_secret_hides_itself() -> None:
    sample = load(Sample, {"SAMPLE_KEY": "hunter2"})
    assert sample.key is not None
    assert sample.key.reveal() == "hunter2"
    assert "hunter2" not in repr(sample)
    assert sample.key == Secret("hunter2")
    assert len({sample.key, Secret("hunter2")}) == 1


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        load(Settings, MINIMAL).debug = True  # type: ignore[misc]


def test_without_a_token_it_refuses_to_start_unless_in_dev_mode() -> None:
    with pytest.raises(ConfigurationError, match="LISTENERS_SERVICE_TOKEN"):
        load(Settings, {"LISTENERS_REDIS_HOST": "cache"}).check({})
    load(Settings, {"LISTENERS_REDIS_HOST": "cache", "LISTENERS_DEV": "true"}).check({})


def test_without_redis_it_refuses_to_start() -> None:
    with pytest.raises(ConfigurationError, match="LISTENERS_REDIS_HOST"):
        load(Settings, {"LISTENERS_SERVICE_TOKEN": "x"}).check({})


def test_local_redis_wins_over_the_other_variables() -> None:
    settings = load(Settings, {**MINIMAL, "USE_LOCAL_REDIS": "true", "LISTENERS_REDIS_PORT": "7000"})
    assert settings.redis_address() == ("127.0.0.1", 6379)


@pytest.mark.parametrize("name", EMULATOR_VARIABLES)
def test_emulator_variables_stop_the_start_outside_dev_mode(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load(Settings, MINIMAL).check({name: "127.0.0.1:1"})
    load(Settings, {**MINIMAL, "LISTENERS_ALLOW_EMULATORS": "true"}).check({name: "127.0.0.1:1"})
    load(Settings, {**MINIMAL, "LISTENERS_DEV": "true"}).check({name: "127.0.0.1:1"})


@pytest.mark.parametrize(
    ("host", "own"), [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)]
)
def test_loopback(host: str, own: bool) -> None:
    assert is_loopback(host) is own


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RPC_IDEMP_TTL", "0"),
        ("LISTENERS_HEARTBEAT_INTERVAL", "0"),
        ("LISTENERS_MAX_TIMEOUT_MS", "-1"),
        ("LISTENERS_NAMESPACE_THREADS", "0"),
        ("LISTENERS_REDIS_PORT", "70000"),
    ],
)
def test_a_value_out_of_range_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        load(Settings, {**MINIMAL, name: value})


def test_a_heartbeat_must_fit_twice_into_the_ttl() -> None:
    with pytest.raises(ConfigurationError, match="LISTENERS_TTL_SECONDS"):
        load(Settings, {**MINIMAL, "LISTENERS_HEARTBEAT_INTERVAL": "60"}).check({})
