"""Jobs that run on a schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

import pytest

from callboard import FailedPrecondition, InvalidArgs
from callboard_firebase_management import FirebaseManagement

pytestmark = pytest.mark.anyio

Stored: TypeAlias = Callable[[str], Awaitable[dict[str, Any] | None]]
Store: TypeAlias = Callable[[str, dict[str, Any]], Awaitable[None]]
Paths: TypeAlias = Callable[[str], Awaitable[list[str]]]
MANDATE = "clients/ada/bo_clients/b1/mandates/m1"
JOB_ID = "clients_ada_bo_clients_b1_mandates_m1_router"
JOB = f"scheduler/{JOB_ID}"


async def test_saving_twice_is_one_job(service: FirebaseManagement, stored: Stored) -> None:
    data = {"cron": "0 8 * * *", "old.er": 1, "created_at": "1999", "options": {"a": 1}}
    assert await service.save_scheduler_job(MANDATE, "router", data) == JOB_ID
    first = await stored(JOB) or {}
    assert await service.save_scheduler_job(MANDATE, "router", {"cron": "0 9 * * *", "options": {"b": 1}}) == JOB_ID
    second = await stored(JOB) or {}

    times = [job.pop(field) for job in (first, second) for field in ("created_at", "updated_at")]
    assert all(isinstance(time, datetime) for time in times)
    assert times[0] == times[1] == times[2] < times[3]
    saved = {"enabled": True, "mandate_path": MANDATE, "job_type": "router"}
    assert first == {**saved, "cron": "0 8 * * *", "old.er": 1, "options": {"a": 1}}
    assert second == {**saved, "cron": "0 9 * * *", "options": {"b": 1}}


async def test_jobs_saved_at_once_are_one(service: FirebaseManagement, stored: Stored, client: Any) -> None:
    ids = await asyncio.gather(*(service.save_scheduler_job(MANDATE, "router", {f"f{n}": n}) for n in range(5)))

    assert set(ids) == {JOB_ID}
    assert len([each async for each in client.collection("scheduler").stream()]) == 1
    assert len([field for field in await stored(JOB) or {} if field.startswith("f")]) == 1  # of one of them, whole


async def test_disable_and_save_again(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.disable_scheduler_job(MANDATE, "router") is False
    assert await stored(JOB) is None

    await service.save_scheduler_job(MANDATE, "router", {"cron": "0 8 * * *"})
    assert await service.disable_scheduler_job(MANDATE, "router") is True
    disabled = await stored(JOB) or {}
    assert (disabled["enabled"], disabled["cron"]) == (False, "0 8 * * *")
    assert disabled["disabled_at"] == disabled["updated_at"] > disabled["created_at"]

    await service.save_scheduler_job(MANDATE, "router", {"cron": "0 8 * * *"})
    enabled = await stored(JOB) or {}
    assert (enabled["enabled"], "disabled_at" in enabled) == (True, False)
    await service.save_scheduler_job(MANDATE, "router", {"enabled": False})
    assert (await stored(JOB) or {})["enabled"] is False


async def test_names_that_make_the_same_id_do_not_touch_each_other(service: FirebaseManagement, stored: Stored) -> None:
    assert await service.save_scheduler_job("mandates/m_1", "x", {"n": 1}) == "mandates_m_1_x"

    with pytest.raises(FailedPrecondition):
        await service.save_scheduler_job("mandates/m", "1_x", {"n": 2})
    assert await service.disable_scheduler_job("mandates/m", "1_x") is False

    found = await stored("scheduler/mandates_m_1_x") or {}
    assert (found["n"], found["mandate_path"], found["enabled"]) == (1, "mandates/m_1", True)


async def test_a_job_that_does_not_say_whose_it_is(service: FirebaseManagement, store: Store, stored: Stored) -> None:
    await store(JOB, {"cron": "0 8 * * *", "enabled": True})

    assert await service.disable_scheduler_job(MANDATE, "router") is True
    assert await service.save_scheduler_job(MANDATE, "router", {}) == JOB_ID
    assert (await stored(JOB) or {})["mandate_path"] == MANDATE


async def test_delete_completely(service: FirebaseManagement, store: Store, paths: Paths) -> None:
    assert await service.delete_scheduler_job_completely(JOB_ID) == 0
    await service.save_scheduler_job(MANDATE, "router", {})
    await store(f"{JOB}/runs/1", {"n": 1})
    await store("scheduler/other", {"n": 1})

    assert await service.delete_scheduler_job_completely(JOB_ID) == 2

    assert await paths(JOB) == []
    assert await paths("scheduler/other") == ["scheduler/other"]


async def test_bad_arguments(service: FirebaseManagement, stored: Stored) -> None:
    for call in (
        service.save_scheduler_job("clients/ada/bo_clients", "router", {}),
        service.save_scheduler_job(MANDATE, "a/b", {}),
        service.save_scheduler_job(MANDATE, "", {}),
        service.save_scheduler_job(MANDATE, "router", {"x": [[1]]}),
        service.save_scheduler_job(f"{MANDATE}/x/{'y' * 1_490}", "router", {}),
        service.disable_scheduler_job("", "router"),
        service.delete_scheduler_job_completely("a/b"),
        service.delete_scheduler_job_completely(""),
    ):
        with pytest.raises(InvalidArgs):
            await call
    assert await stored(JOB) is None
