"""Reading and writing with Google's client: `firebase_admin.db.Reference`."""

import time
from typing import Any

import firebase_admin
import pytest
from firebase_admin import db, exceptions

from callboard_local import RealtimeProcess

VALUES: list[Any] = [
    1, -7, 2.5, 2**53 + 1, -(2**63), 1e300, "", "text", "ünï😀\u2028\n\"\\", True, False,
    {"a": {"b": {"c": 1}}}, ["x", "y"], {"10": "far"},
]  # fmt: skip


def test_a_reference_knows_where_it_is(root: db.Reference) -> None:
    assert root.key is None
    assert root.path == "/"
    assert root.parent is None
    deep = root.child("a").child("b/c")
    assert (deep.key, deep.path) == ("c", "/a/b/c")
    assert deep.parent is not None
    assert deep.parent.path == "/a/b"


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_what_is_set_is_got(root: db.Reference, value: Any) -> None:
    node = root.child("a/b")
    node.set(value)
    assert node.get() == value
    assert type(node.get()) is type(value)
    assert root.get() == {"a": {"b": value}}


def test_nothing_is_none(root: db.Reference) -> None:
    assert root.get() is None
    assert root.child("a/b").get() is None


def test_set_replaces_and_delete_takes_the_empty_parents_along(root: db.Reference) -> None:
    root.set({"a": {"b": 1, "c": 2}, "d": 3})
    root.child("a").set({"e": 4})
    assert root.get() == {"a": {"e": 4}, "d": 3}
    root.child("a/e").delete()
    assert root.get() == {"d": 3}
    root.delete()
    assert root.get() is None


def test_what_is_empty_is_not_stored(root: db.Reference) -> None:
    root.set({"a": {}, "b": [], "c": {"d": {"e": None}}, "f": 1})
    assert root.get() == {"f": 1}


def test_a_child_of_a_scalar_replaces_it_and_its_absence_does_not(root: db.Reference) -> None:
    root.child("a").set(5)
    root.child("a/b").delete()
    assert root.get() == {"a": 5}
    root.child("a/b").set(6)
    assert root.get() == {"a": {"b": 6}}


def test_whole_doubles_come_back_as_integers(root: db.Reference) -> None:
    root.set({"a": 3.0, "b": -0.0, "c": 1e16})
    value = root.get()
    assert value == {"a": 3, "b": 0, "c": 1e16}
    assert type(value["a"]) is type(value["b"]) is int
    assert type(value["c"]) is float


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ({"0": "a", "1": "b"}, ["a", "b"]),
        ({"0": "a", "2": "c"}, ["a", None, "c"]),
        ({"1": "b", "2": "c"}, [None, "b", "c"]),
        ({"0": "a", "9": "z"}, {"0": "a", "9": "z"}),
        ({"0": "a", "b": "c"}, {"0": "a", "b": "c"}),
        ({"00": "a", "1": "b"}, {"00": "a", "1": "b"}),
        (["a", None, "c"], ["a", None, "c"]),
        (["a", None, None, None, "e"], {"0": "a", "4": "e"}),
        ([None, None], None),
    ],
)
def test_numbered_children_are_an_array_while_they_fill_more_than_half_of_it(
    root: db.Reference, stored: Any, shown: Any
) -> None:
    root.child("a").set(stored)
    assert root.child("a").get() == shown


def test_a_shallow_get_has_keys_alone(root: db.Reference) -> None:
    root.set({"a": {"b": 1}, "c": 2, "d": ["x"]})
    assert root.get(shallow=True) == {"a": True, "c": True, "d": True}
    assert root.child("d").get(shallow=True) == {"0": True}
    assert root.child("c").get(shallow=True) == 2
    assert root.child("e").get(shallow=True) is None


def test_an_update_leaves_the_others_and_reaches_deep(root: db.Reference) -> None:
    root.set({"a": {"b": 1, "c": 2}, "d": 3})
    root.update({"a/b": None, "a/e/f": {"g": 4}, "d": 5, "h": "new"})
    assert root.get() == {"a": {"c": 2, "e": {"f": {"g": 4}}}, "d": 5, "h": "new"}
    root.child("a").update({"c": None, "e": None})
    assert root.get() == {"d": 5, "h": "new"}


def test_an_update_is_all_or_nothing(root: db.Reference) -> None:
    root.set({"a": 1})
    for refused in ({"a": 2, "b/$": 3}, {"a": 2, "a/b": 3}, {"a": 2, "c": {".sv": "no"}}):
        with pytest.raises(exceptions.InvalidArgumentError):
            root.update(refused)
    assert root.get() == {"a": 1}


def test_pushed_names_sort_in_the_order_of_their_making(root: db.Reference) -> None:
    pushed = [root.child("list").push({"n": number}) for number in range(30)]
    keys = [node.key for node in pushed]
    assert all(isinstance(key, str) and len(key) == 20 for key in keys)
    assert keys == sorted(set(keys))
    assert list(root.child("list").order_by_key().get()) == keys
    assert pushed[7].get() == {"n": 7}
    assert root.child("list").push().get() == ""


def test_server_values(root: db.Reference) -> None:
    before = int(time.time() * 1000)
    root.set({"at": {".sv": "timestamp"}, "deep": {"too": {".sv": "timestamp"}}, "n": {".sv": {"increment": 2}}})
    value = root.get()
    assert before <= value["at"] <= int(time.time() * 1000)
    assert value["deep"]["too"] == value["at"]
    assert value["n"] == 2
    root.update({"n": {".sv": {"increment": -5}}, "at": {".sv": {"increment": 0.5}}})
    assert root.get() == {**value, "n": -3, "at": value["at"] + 0.5}
    root.child("text").set("five")
    root.child("text").set({".sv": {"increment": 1}})
    assert root.child("text").get() == 1


def test_an_etag_belongs_to_the_data(root: db.Reference) -> None:
    assert root.get(etag=True) == (None, "null_etag")
    root.set({"a": 1, "b": {"c": True}})
    value, etag = root.get(etag=True)
    assert value == {"a": 1, "b": {"c": True}}
    root.child("b/c").set(1)
    assert root.get(etag=True)[1] != etag
    root.set({"b": {"c": True}, "a": 1})
    assert root.get(etag=True)[1] == etag


def test_get_if_changed(root: db.Reference) -> None:
    root.set({"a": 1})
    changed, value, etag = root.get_if_changed("another")
    assert (changed, value) == (True, {"a": 1})
    assert root.get_if_changed(etag) == (False, None, None)
    root.child("a").set(2)
    assert root.get_if_changed(etag)[:2] == (True, {"a": 2})
    root.delete()
    assert root.get_if_changed("null_etag") == (False, None, None)


def test_set_if_unchanged(root: db.Reference) -> None:
    success, value, etag = root.set_if_unchanged("null_etag", {"a": 1})
    assert (success, value) == (True, {"a": 1})
    assert root.get(etag=True) == ({"a": 1}, etag)
    success, value, current = root.set_if_unchanged("null_etag", {"a": 2})
    assert (success, value, current) == (False, {"a": 1}, etag)
    assert root.set_if_unchanged(current, {"a": 3})[0]
    assert root.get() == {"a": 3}


def test_what_google_refuses_is_refused_in_its_words(root: db.Reference) -> None:
    for value in ({"a.b": 1}, {"a": {"$": 1}}, {"": 1}, {"a/b": 1}, {"#": 1}, {"[": 1}, {"\x07": 1}, {"k" * 769: 1}):
        with pytest.raises(exceptions.InvalidArgumentError, match="Invalid data; couldn't parse"):
            root.set(value)
    assert root.get() is None
    root.child("k" * 768).set(1)


def test_thirty_two_levels_and_no_more(root: db.Reference) -> None:
    value: Any = 1
    for _ in range(32):
        value = {"k": value}
    root.set(value)
    assert root.get() == value
    with pytest.raises(exceptions.InvalidArgumentError, match="deeper than 32"):
        root.set({"k": value})
    with pytest.raises(exceptions.InvalidArgumentError, match="deeper than 32"):
        root.child("/".join("k" * 33)).set(1)


def test_another_database_by_its_url(
    root: db.Reference, app: firebase_admin.App, realtime_server: RealtimeProcess, realtime_namespace: str
) -> None:
    root.set({"mine": 1})
    other = db.reference("/", app, url=realtime_server.url_of(f"{realtime_namespace}-other"))
    assert other.get() is None
    other.set("theirs")
    assert root.get() == {"mine": 1}
    same = db.reference("mine", app, url=realtime_server.url_of(realtime_namespace))
    assert same.get() == 1


@pytest.mark.parametrize("override", [{"uid": "somebody", "admin": False}, None, {}])
def test_an_override_of_who_is_asking_changes_nothing(
    realtime_server: RealtimeProcess, realtime_namespace: str, override: Any
) -> None:
    options = {
        "databaseURL": realtime_server.url_of(realtime_namespace),
        "databaseAuthVariableOverride": override,
        "httpTimeout": 20,
    }
    app = firebase_admin.initialize_app(options=options, name=f"{realtime_namespace} overridden")
    try:
        node = db.reference("a", app)
        node.set({"b": 1})
        node.update({"c": 2})
        assert node.get() == {"b": 1, "c": 2}
        assert node.order_by_key().limit_to_first(1).get() == {"b": 1}
    finally:
        firebase_admin.delete_app(app)
