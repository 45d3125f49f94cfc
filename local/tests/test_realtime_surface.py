"""All that `firebase_admin.db` offers is used by the suite: what a new version adds shows here."""

import ast
import inspect
from pathlib import Path

from firebase_admin import db

SURFACE = {
    "reference(path, app, url)",
    "Event.data", "Event.path", "Event.event_type",
    "ListenerRegistration.close()",
    "Query.end_at(end)", "Query.equal_to(value)", "Query.get()", "Query.limit_to_first(limit)",
    "Query.limit_to_last(limit)", "Query.start_at(start)",
    "Reference.child(path)", "Reference.delete()", "Reference.get(etag, shallow)", "Reference.get_if_changed(etag)",
    "Reference.key", "Reference.listen(callback)", "Reference.order_by_child(path)", "Reference.order_by_key()",
    "Reference.order_by_value()", "Reference.parent", "Reference.path", "Reference.push(value)", "Reference.set(value)",
    "Reference.set_if_unchanged(expected_etag, value)", "Reference.transaction(transaction_update)",
    "Reference.update(value)",
    "TransactionAbortedError",
}  # fmt: skip


def public(thing: object) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def shown(name: str, value: object) -> str:
    if not inspect.isfunction(value):
        return name
    return f"{name}({', '.join(each for each in inspect.signature(value).parameters if each != 'self')})"


def test_the_surface_is_the_one_the_suite_was_written_for() -> None:
    found = set()
    for name, thing in public(db).items():
        if getattr(thing, "__module__", None) != db.__name__:
            continue
        if inspect.isclass(thing):
            found |= {shown(f"{name}.{member}", value) for member, value in public(thing).items()} or {name}
        else:
            found.add(shown(name, thing))
    assert found == SURFACE


def test_every_part_of_it_is_used_by_some_test() -> None:
    used = set()
    for path in Path(__file__).parent.glob("test_realtime_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.keyword) and node.arg:
                used.add(f"{node.arg}=")
    names = {entry.partition("(")[0].rpartition(".")[2] for entry in SURFACE}
    assert names <= used
    options = {"etag=", "shallow=", "url=", "app="}
    assert options <= used


def test_every_option_of_the_app_is_used() -> None:
    """The client reads them by name: these, and no others."""
    source = inspect.getsource(db)
    read = {line.split("options.get('")[1].split("'")[0] for line in source.splitlines() if "options.get('" in line}
    assert read == {"databaseURL", "databaseAuthVariableOverride", "httpTimeout"}
    suite = "".join(path.read_text() for path in Path(__file__).parent.glob("test_realtime_data.py"))
    assert all(f'"{option}"' in suite for option in read)
