"""The namespace in a whole service: over the router, with a real Redis, and its listener run by the fleet."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import callboard_firebase_management
from callboard.errors import Unauthenticated
from callboard.testing import TOKEN, CallFailed, Service, running, serving
from callboard_firebase_management import FirebaseManagement
from callboard_local.firestore_process import FirestoreProcess
from callboard_local.valkey import ValkeyServer

pytestmark = pytest.mark.anyio

SIGNATURES = [
    "add_document(collection_path, data, merge=None)",
    "add_document_without_timestamp(collection_path, doc_id, data, merge=None)",
    "add_message_to_internal_message(user_id, job_id, message, sent_to, sent_from)",
    "add_new_document(collection_path, data)",
    "add_new_param(param_type, param_data)",
    "add_or_update_job_by_batch_id(collection_path, job_data)",
    "add_or_update_job_by_file_id(collection_path, job_data)",
    "add_or_update_job_by_job_id(collection_path, job_data)",
    "add_top_up(mandate_path, top_up)",
    "check_and_create_client_document(user_data)",
    "check_job_status(user_id, job_id=None, file_id=None)",
    "create_or_update_beta_request(payload)",
    "create_telegram_user(user_id, mandate_path, telegram_username, additional_data=None)",
    "delete_doc_id(doc_path)",
    "delete_document_recursive(doc_path, batch_size=100)",
    "delete_documents_by_full_paths(document_paths)",
    "delete_items_by_job_id(user_id, job_ids)",
    "delete_notifications(user_id, job_id=None)",
    "delete_scheduler_job_completely(job_id)",
    "delete_telegram_user(telegram_username, mandate_path=None)",
    "disable_scheduler_job(mandate_path, job_type)",
    "download_document_to_task_job_id(user_id, job_id)",
    "download_invoice_step(user_id, job_id)",
    "fetch_all_mandates_summary(user_id)",
    "fetch_documents_from_firestore(collection_path, mandat_id_value, max_docs=None)",
    "fetch_single_mandate(mandate_path)",
    "get_all_expenses(mandate_path, after=None, limit=None)",
    "get_balance_info(mandate_path=None, user_id=None)",
    "get_batch_details(user_id, batch_id)",
    "get_beta_request_by_email(email)",
    "get_customer_list(user_id)",
    "get_document(document_path)",
    "get_internal_message(user_id, job_id)",
    "get_notifications(user_id, read=None, limit=100)",
    "get_param_data(param_type)",
    "get_raw_document(document_path)",
    "get_telegram_user_by_username(telegram_username)",
    "get_unread_notifications(user_id, limit=50)",
    "get_user_balance(mandate_path=None, user_id=None)",
    "is_telegram_user_authorized(telegram_username, mandate_path)",
    "process_immediate_top_up(user_id, amount, transaction_path=None)",
    "process_stripe_webhook(event_data)",
    "restart_job(user_id, job_id)",
    "retrieve_stripe_session(session_id)",
    "save_scheduler_job(mandate_path, job_type, job_data)",
    "set_document(document_path, data, merge=False)",
    "update_firebase_doc(doc_path, update_data)",
    "update_job_status(user_id, job_id, new_status, additional_info=None)",
    "upload_chat_history(user_id, job_id, chat_history)",
    "upload_document_to_task_job_id(user_id, job_id, initial_document_data)",
    "upload_invoice_step(user_id, job_id, invoice_step)",
    "upload_metadatas_to_job_id(user_id, job_id, metadata)",
    "upload_token_usage(user_id, data)",
]

PLAIN_WRITES = {
    "add_document",
    "add_message_to_internal_message",
    "add_new_document",
    "add_top_up",
    "process_immediate_top_up",
}
READS = {
    "check_job_status",
    "download_document_to_task_job_id",
    "download_invoice_step",
    "fetch_all_mandates_summary",
    "fetch_documents_from_firestore",
    "fetch_single_mandate",
    "get_all_expenses",
    "get_balance_info",
    "get_batch_details",
    "get_beta_request_by_email",
    "get_customer_list",
    "get_document",
    "get_internal_message",
    "get_notifications",
    "get_param_data",
    "get_raw_document",
    "get_telegram_user_by_username",
    "get_unread_notifications",
    "get_user_balance",
    "is_telegram_user_authorized",
    "retrieve_stripe_session",
}


def test_methods_are_those_of_the_contract() -> None:
    found = []
    for name, function, declared in FirebaseManagement().methods():
        parameters = [
            one.name if one.default is inspect.Parameter.empty else f"{one.name}={one.default!r}"
            for one in inspect.signature(function).parameters.values()
        ]
        found.append(f"{name}({', '.join(parameters)})")
        assert declared.effect == ("read" if name in READS else "write"), name
        assert bool(declared.retry_safe) == (name not in READS | PLAIN_WRITES), name
        assert function.__doc__, name
    assert found == SIGNATURES


def test_the_readme_tells_of_every_method() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for signature in SIGNATURES:
        name = signature.partition("(")[0]
        effect = "read" if name in READS else "write" if name in PLAIN_WRITES else "safe write"
        assert f"| `{signature}` | {effect} |" in readme


@pytest.fixture
def environ(valkey_server: ValkeyServer, firestore_server: FirestoreProcess, firestore_project: str) -> dict[str, str]:
    return {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(valkey_server.port),
        "LISTENERS_CHANNEL_PREFIX": f"{firestore_project}:user:",
        "GOOGLE_PROJECT_ID": firestore_project,
        "FIRESTORE_EMULATOR_HOST": firestore_server.address,
    }


@pytest.fixture
async def service(environ: dict[str, str]) -> AsyncIterator[Service]:
    async with running(callboard_firebase_management, environ=environ) as service:
        yield service


async def call(service: Service, name: str, *args: Any) -> Any:
    return await service.call(f"FIREBASE_MANAGEMENT.{name}", *args, as_user="ada")


async def test_arguments_of_the_wrong_type(service: Service) -> None:
    for name, args in (
        ("set_document", ["clients/ada", "text"]),
        ("set_document", [1, {}]),
        ("set_document", ["clients/ada", {"a": 1}, []]),
        ("get_document", [None]),
        ("delete_document_recursive", ["clients/ada", 0]),
        ("delete_document_recursive", ["clients/ada", 501]),
        ("delete_documents_by_full_paths", ["clients/ada"]),
        ("fetch_documents_from_firestore", ["bills", "m1", 5_001]),
        ("get_notifications", ["ada", "false"]),
        ("get_notifications", ["ada", None, 0]),
        ("get_unread_notifications", ["ada", 1_001]),
        ("update_job_status", ["ada", "j1", 3]),
        ("add_top_up", ["clients/ada", {"currency": "CHF"}]),
        ("add_top_up", ["clients/ada", {"currency": 1, "amount": 1}]),
        ("add_top_up", ["clients/ada", {"currency": "CHF", "amount": True}]),
        ("process_stripe_webhook", ["evt_1"]),
        ("get_all_expenses", ["clients/ada", None, 0]),
        ("add_or_update_job_by_job_id", ["clients/ada/notifications", []]),
        ("upload_document_to_task_job_id", ["ada", "j1", {}]),
        ("upload_invoice_step", ["ada", "j1", "step_1"]),
        ("upload_metadatas_to_job_id", ["ada", "j1", []]),
        ("delete_items_by_job_id", ["ada", 1]),
        ("delete_items_by_job_id", ["ada", ["j1"] * 501]),
        ("add_message_to_internal_message", ["ada", "j1", ["m"], "to", "from"]),
        ("upload_chat_history", ["ada", "j1", "text"]),
        ("check_and_create_client_document", ["ada"]),
        ("add_new_param", ["currencies", {}]),
        ("create_telegram_user", ["ada", "mandates/m1", "bob", "text"]),
        ("save_scheduler_job", ["mandates/m1", "router", None]),
        ("create_or_update_beta_request", ["ada@example.org"]),
    ):
        with pytest.raises(CallFailed) as failed:
            await call(service, name, *args)
        assert failed.value.code == "INVALID_ARGS", (name, args)


async def test_an_update_of_nothing_is_refused_by_its_name(service: Service) -> None:
    with pytest.raises(CallFailed) as failed:
        await call(service, "update_firebase_doc", "clients/ada", {})
    assert failed.value.code == "INVALID_ARGS"
    assert "`update_data`" in failed.value.message


async def test_a_retry_with_the_same_key_adds_one_document(service: Service) -> None:
    method, args = "FIREBASE_MANAGEMENT.add_document", ("bills", {"mandat_id": "m1"})

    first = await service.call(method, *args, as_user="ada", with_key="k1")
    again = await service.call(method, *args, as_user="ada", with_key="k1")

    assert first == again
    assert len(await call(service, "fetch_documents_from_firestore", "bills", "m1")) == 1


async def test_an_online_user_gets_a_sync_then_deltas(service: Service, firestore_project: str) -> None:
    job = {"job_id": "j1", "read": False, "file_name": "bill.pdf", "status": "running", "collection_id": "acme"}
    await call(service, "add_or_update_job_by_job_id", "clients/ada/notifications", job)

    async with service.subscribed(f"{firestore_project}:user:ada") as events:
        await service.callboard.presence.register("ada", "session1", authorized_companies_ids=["acme"])
        sync = await events.next("notif.sync")
        assert [item["message"] for item in sync.payload["notifications"]] == ["bill.pdf - running"]
        assert sync.fence is not None

        other = {**job, "job_id": "j2", "collection_id": "other"}
        await call(service, "add_or_update_job_by_job_id", "clients/ada/notifications", other)
        await call(service, "update_job_status", "ada", "j1", "completed")
        update = await events.next("notif.update")
        assert (update.payload["doc_id"], update.payload["status"]) == ("j1", "completed")
        assert await call(service, "delete_notifications", "ada", "j1") == 1
        remove = await events.next("notif.remove")
        assert remove.payload == {"doc_id": "j1"}

    assert [event.type for event in events.seen] == [
        "notif.sync", "notif.job_updated", "notif.update", "notif.remove",
    ]  # fmt: skip


async def test_health_over_http(environ: dict[str, str]) -> None:
    async with serving(callboard_firebase_management, environ=environ) as service, httpx.AsyncClient() as http:
        healthz = await http.get(f"{service.url}/healthz/FIREBASE_MANAGEMENT")
        debug = await http.get(f"{service.url}/debug", headers={"Authorization": f"Bearer {TOKEN}"})

    assert (healthz.status_code, healthz.json()["status"]) == (200, "ok")
    assert (debug.status_code, debug.json()["firestore"]["status"]) == (200, "ok")


async def test_without_a_firebase_the_plugin_is_put_aside_and_says_why(environ: dict[str, str]) -> None:
    redis_alone = {name: value for name, value in environ.items() if name.startswith("LISTENERS_")}
    async with running(callboard_firebase_management, environ=redis_alone) as service:
        with pytest.raises(CallFailed) as failed:
            await call(service, "get_document", "clients/ada")
        assert failed.value.code == "UNAVAILABLE"
        [plugin] = service.callboard.plugins.all
        assert plugin.state == "quarantined"
        assert "no Firebase is configured: set GOOGLE_PROJECT_ID" in (plugin.error or "")
        check = callboard_firebase_management.register_health_checks(service.callboard.host)["firestore"]
        assert await check() == {"status": "not configured"}


async def test_id_tokens_are_checked(environ: dict[str, str]) -> None:
    async with serving(callboard_firebase_management, environ=environ) as service:
        assert service.callboard.websockets.verify_token is not None
        with pytest.raises(Unauthenticated, match="not valid"):
            await service.callboard.websockets.verify_token("a.b.c")
