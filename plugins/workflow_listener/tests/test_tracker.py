from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from callboard import Event
from callboard_firebase import Batch, Change, Document
from callboard_workflow_listener.tracker import MAX_SYNCED, Part, Tracker, sync_event

START = datetime(2025, 9, 20, 12, 0, tzinfo=UTC)
COLLECTION = "clients/u/task_manager"


def at(second: int) -> datetime:
    return START + timedelta(seconds=second)


def job(job_id: str, second: int, invoice: Any = None, steps: Any = None) -> Document:
    data = {"document": {"initial_data": invoice or {}}, "APBookeeper_step_status": steps or {}}
    return Document(f"{COLLECTION}/{job_id}", job_id, data, START, at(second))


def older(job_id: str, second: int, **invoice: Any) -> Document:
    path = f"{COLLECTION}/{job_id}/document/initial_data"
    return Document(path, "initial_data", invoice, START, at(second))


def initial(second: int, *documents: Document) -> Batch:
    added = tuple(Change("added", document) for document in documents)
    return Batch(True, added, {document.path: document for document in documents}, at(second))


def then(second: int, kind: Literal["added", "modified", "removed"], document: Document) -> Batch:
    documents = {} if kind == "removed" else {document.path: document}
    return Batch(False, (Change(kind, document),), documents, at(second))


def told(events: list[Event]) -> list[tuple[str, str | None, Any]]:
    return [(event.type, event.job_id, event.payload) for event in events]


def sync_of(job_id: str, invoice: dict[str, Any], steps: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    return "workflow.sync", job_id, {"job_id": job_id, "invoice": invoice, "steps": steps}


def test_the_first_batch_is_told_as_syncs() -> None:
    tracker = Tracker("u")
    events = tracker.take_collection(initial(9, job("a", 1, {"currency": "EUR"}), job("b", 2, steps={"extract": 1})))
    assert told(events) == [sync_of("b", {}, {"extract": 1}), sync_of("a", {"currency": "EUR"}, {})]
    assert {event.as_of for event in events} == {"2025-09-20T12:00:09.000Z"}
    assert len(tracker) == 2


def test_a_change_is_told_with_the_changed_fields_alone() -> None:
    tracker = Tracker("u")
    tracker.take_collection(initial(1, job("a", 1, {"currency": "EUR", "sender": "Acme"}, {"extract": 1, "book": 1})))
    changed = job("a", 2, {"currency": "CHF", "sender": "Acme", "other": 1}, {"extract": 2, "book": 1})
    events = tracker.take_collection(then(2, "modified", changed))
    assert told(events) == [
        ("workflow.invoice_update", "a", {"invoice_changes": {"currency": "CHF"}}),
        ("workflow.step_update", "a", {"step_changes": {"APBookeeper_step_status": {"extract": 2}}}),
    ]
    assert {event.timestamp for event in events} == {"2025-09-20T12:00:02.000Z"}


def test_a_job_that_changed_in_several_steps_is_told_as_a_whole() -> None:
    """A value may have changed and changed back: nothing differs, but who read it between has the other one."""
    for several, events in ((False, []), (True, [sync_of("a", {"currency": "EUR"}, {})])):
        tracker = Tracker("u")
        tracker.take_collection(initial(1, job("a", 1, {"currency": "EUR"})))
        again = job("a", 3, {"currency": "EUR"})
        batch = Batch(False, (Change("modified", again, several),), {again.path: again}, at(3))
        assert told(tracker.take_collection(batch)) == events
        assert told(tracker.take_document("a", "job", batch)) == events


def test_what_is_gone_is_told_as_null() -> None:
    tracker = Tracker("u")
    tracker.take_collection(initial(1, job("a", 1, {"currency": "EUR", "sender": "Acme"}, {"extract": 1})))
    events = tracker.take_collection(then(2, "modified", job("a", 2, {"sender": "Acme"})))
    assert [event.payload for event in events] == [
        {"invoice_changes": {"currency": None}},
        {"step_changes": {"APBookeeper_step_status": {"extract": None}}},
    ]


def test_a_change_of_what_is_not_watched_is_not_told() -> None:
    tracker = Tracker("u")
    tracker.take_collection(initial(1, job("a", 1, {"currency": "EUR"})))
    assert tracker.take_collection(then(2, "modified", job("a", 2, {"currency": "EUR", "note": "x"}))) == []


def test_a_job_that_comes_or_goes_is_told_as_a_whole() -> None:
    tracker = Tracker("u")
    tracker.take_collection(initial(1))
    came = tracker.take_collection(then(2, "added", job("a", 2, {"currency": "EUR"})))
    assert told(came) == [sync_of("a", {"currency": "EUR"}, {})]
    went = tracker.take_collection(then(3, "removed", job("a", 2, {"currency": "EUR"})))
    assert told(went) == [sync_of("a", {}, {})]
    assert len(tracker) == 0
    assert came[0].id != went[0].id


def test_ids_depend_on_document_version_and_type_alone() -> None:
    def run() -> list[Event]:
        tracker = Tracker("u")
        events = tracker.take_collection(initial(1, job("a", 1, {"currency": "EUR"}, {"extract": 1})))
        return events + tracker.take_collection(then(2, "modified", job("a", 2, {"currency": "CHF"}, {"extract": 2})))

    one, two = run(), run()
    assert [event.id for event in one] == [event.id for event in two]
    assert len({event.id for event in one}) == 3
    assert one[0].id == sync_event("u", "a", job("a", 1, {"currency": "EUR"}, {"extract": 1}), None, as_of=at(99)).id


def test_of_many_jobs_the_most_recent_are_told_and_an_older_one_when_it_changes() -> None:
    tracker = Tracker("u")
    many = [job(f"j{number}", number, {"currency": "EUR"}) for number in range(MAX_SYNCED + 1)]
    events = tracker.take_collection(initial(999, *many))
    assert len(events) == len(tracker) == MAX_SYNCED
    assert events[0].job_id == f"j{MAX_SYNCED}"
    late = tracker.take_collection(then(1000, "modified", job("j0", 1000, {"currency": "CHF"})))
    assert told(late) == [sync_of("j0", {"currency": "CHF"}, {})]


def test_a_watched_job_is_told_when_both_its_documents_are_known() -> None:
    tracker = Tracker("u")
    assert tracker.take_document("a", "older", initial(1, older("a", 1, sender="Acme"))) == []
    events = tracker.take_document("a", "job", initial(2, job("a", 2, steps={"extract": 1})))
    assert told(events) == [sync_of("a", {"sender": "Acme"}, {"extract": 1})]
    assert events[0].as_of == "2025-09-20T12:00:02.000Z"


def test_a_watched_job_without_documents_is_told_as_empty() -> None:
    tracker = Tracker("u")
    tracker.take_document("a", "job", initial(1))
    assert told(tracker.take_document("a", "older", initial(1))) == [sync_of("a", {}, {})]
    came = tracker.take_document("a", "older", then(2, "added", older("a", 2, sender="Acme")))
    assert told(came) == [sync_of("a", {"sender": "Acme"}, {})]


def test_a_change_of_the_older_document_is_the_same_event() -> None:
    tracker = Tracker("u")
    tracker.take_document("a", "job", initial(1, job("a", 1, {"currency": "EUR"})))
    tracker.take_document("a", "older", initial(1, older("a", 1, sender="Acme", currency="CHF")))
    events = tracker.take_document("a", "older", then(2, "modified", older("a", 2, sender="Best", currency="USD")))
    assert told(events) == [("workflow.invoice_update", "a", {"invoice_changes": {"sender": "Best"}})]
    gone = tracker.take_document("a", "older", then(3, "removed", older("a", 2, sender="Best", currency="USD")))
    assert told(gone) == [("workflow.invoice_update", "a", {"invoice_changes": {"sender": None}})]
    assert gone[0].id != events[0].id


def test_a_watched_job_that_comes_and_goes_is_told_with_another_id_each_time() -> None:
    tracker = Tracker("u")
    tracker.take_document("a", "older", initial(1))
    events = tracker.take_document("a", "job", initial(1))
    for second in (2, 4):
        created = job("a", second, {"sender": "Acme"})
        events += tracker.take_document("a", "job", then(second, "added", created))
        events += tracker.take_document("a", "job", then(second + 1, "removed", created))
    full, empty = sync_of("a", {"sender": "Acme"}, {}), sync_of("a", {}, {})
    assert told(events) == [empty, full, empty, full, empty]
    assert len({event.id for event in events}) == 5
    assert [event.as_of for event in events] == [f"2025-09-20T12:00:0{second}.000Z" for second in (1, 2, 3, 4, 5)]
    (again,) = tracker.syncs()
    assert (again.id, again.as_of) == (events[-1].id, events[-1].as_of)


def test_a_watched_jobs_last_document_is_what_the_sync_is_caused_by() -> None:
    """Both documents go, either one last."""
    own, old = job("a", 1, {"currency": "EUR"}), older("a", 1, sender="Acme")
    ids = []
    orders: list[tuple[Part, Part]] = [("job", "older"), ("older", "job")]
    for first, last in orders:
        tracker = Tracker("u")
        tracker.take_document("a", "job", initial(1, own))
        tracker.take_document("a", "older", initial(1, old))
        for second, part in ((2, first), (3, last)):
            events = tracker.take_document("a", part, then(second, "removed", own if part == "job" else old))
        assert told(events) == [sync_of("a", {}, {})]
        assert events[0].as_of == "2025-09-20T12:00:03.000Z"
        ids.append(events[0].id)
    assert len(set(ids)) == 2


def test_a_delta_is_not_older_than_the_sync_before_it() -> None:
    """The batch of one document comes before an earlier change of the other."""
    tracker = Tracker("u")
    tracker.take_document("a", "older", initial(1))
    (sync,) = tracker.take_document("a", "job", initial(5, job("a", 1, {"currency": "EUR"})))
    (delta,) = tracker.take_document("a", "older", then(6, "added", older("a", 4, sender="Acme")))
    assert sync.as_of is not None
    assert sync.as_of <= delta.timestamp
    (delta,) = tracker.take_document("a", "older", then(7, "modified", older("a", 7, sender="Best")))
    assert delta.timestamp == "2025-09-20T12:00:07.000Z"
