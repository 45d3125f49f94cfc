"""What we ask of Redis: docs/redis.md grants it, and the scripts use no more."""

from __future__ import annotations

import re

from architecture.workspace import page, sources

from callboard_local.deployment import LEAST_ACL


def test_the_documented_acl_is_the_tested_one() -> None:
    [recipe] = re.findall(r"ACL SETUSER callboard on >\S+ (.*?)```", page("docs/redis.md"), re.DOTALL)
    assert recipe.split() == list(LEAST_ACL)


def test_scripts_call_what_the_acl_grants() -> None:
    called: set[str] = set()
    for path in sources():
        called |= set(re.findall(r"redis\.p?call\('(\w+)'", path.read_text()))
    granted = {rule.removeprefix("+").upper() for rule in LEAST_ACL if rule.startswith("+")}
    assert {"HMGET", "ZADD", "TIME"} <= called <= granted


def test_no_key_has_the_name_of_a_channel() -> None:
    """Serverless keeps both in one name space: keys begin with `callboard:`, channels do not, but for the bus's own."""
    written = {text for path in sources() for text in re.findall(r'"(callboard:[^"]*)"', path.read_text())}
    channels = {text for text in written if text.startswith(("callboard:probe:", "callboard:control:"))}
    assert len(channels) == 3
    assert {"callboard:idem:", "callboard:leases"} <= written - channels
    prefixes = [rule.removeprefix("&").removesuffix("*") for rule in LEAST_ACL if rule.startswith("&")]
    assert "user:" in prefixes
    assert not [key for key in written - channels if key.startswith(tuple(prefixes))]
