"""Transactions of Google's client: nothing is lost, whoever else writes."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from firebase_admin import db

WRITERS, EACH = 8, 10


def plus_one(value: Any) -> int:
    return (value or 0) + 1


def test_a_transaction_sees_the_value_and_writes_the_next(root: db.Reference) -> None:
    assert root.child("n").transaction(plus_one) == 1
    assert root.child("n").transaction(plus_one) == 2
    assert root.get() == {"n": 2}


def test_an_error_of_the_function_leaves_the_value(root: db.Reference) -> None:
    root.set(5)

    def fail(_: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        root.transaction(fail)
    assert root.get() == 5


def test_concurrent_transactions_are_all_counted(root: db.Reference) -> None:
    node = root.child("n")

    def count(_: int) -> None:
        done = 0
        while done < EACH:
            try:
                node.transaction(plus_one)
            except db.TransactionAbortedError:
                continue  # 25 attempts lost against the others: nothing was written
            done += 1

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(count, range(WRITERS)))
    assert node.get() == WRITERS * EACH


def test_without_the_condition_increments_are_lost(root: db.Reference) -> None:
    """The negative control: read and write apart, with all readers before the first writer."""
    node = root.child("n")
    all_have_read = threading.Barrier(WRITERS, timeout=20)

    def count(_: int) -> None:
        value = plus_one(node.get())
        all_have_read.wait()
        node.set(value)

    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(count, range(WRITERS)))
    assert node.get() == 1


def test_concurrent_server_increments_are_all_counted(root: db.Reference) -> None:
    with ThreadPoolExecutor(WRITERS) as threads:
        list(threads.map(lambda _: root.update({"a/n": {".sv": {"increment": 1}}}), range(WRITERS * EACH)))
    assert root.get() == {"a": {"n": WRITERS * EACH}}


def test_a_transaction_runs_again_on_what_another_has_written(root: db.Reference) -> None:
    seen = []

    def append(value: Any) -> list[str]:
        seen.append(value)
        if len(seen) == 1:
            root.set(["theirs"])
        return [*(value or []), "mine"]

    assert root.transaction(append) == ["theirs", "mine"]
    assert seen == [None, ["theirs"]]


def test_a_transaction_gives_up_after_25_attempts(root: db.Reference) -> None:
    attempts = []

    def disturbed(value: Any) -> int:
        attempts.append(value)
        root.set(len(attempts))
        return 0

    with pytest.raises(db.TransactionAbortedError):
        root.transaction(disturbed)
    assert len(attempts) == 25
    assert root.get() == 25
