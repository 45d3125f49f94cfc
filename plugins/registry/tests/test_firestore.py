from __future__ import annotations

import pytest
from google.cloud.firestore import AsyncClient

from callboard import CallError
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local import FirestoreProcess
from callboard_registry.firestore import RegistryDocuments
from callboard_registry.mirror import Entry

pytestmark = pytest.mark.anyio


@pytest.fixture
def documents(firestore: AsyncClient) -> RegistryDocuments:
    return RegistryDocuments(firestore, ttl_s=90, instance_id="replica-1")


async def test_an_online_user_is_written_whole(documents: RegistryDocuments, firestore: AsyncClient) -> None:
    await documents.write([Entry("u1", True, ["a"]), Entry("u2", True, None)])
    one = await firestore.document("listeners_registry/u1").get()
    found = one.to_dict()
    assert found is not None
    assert abs((found.pop("heartbeat_at") - one.update_time).total_seconds()) < 60  # the server's time
    assert found == {
        "status": "online", "ttl_seconds": 90, "authorized_companies_ids": ["a"], "instance_id": "replica-1",
    }  # fmt: skip
    two = (await firestore.document("listeners_registry/u2").get()).to_dict()
    assert two is not None
    assert two["authorized_companies_ids"] is None


async def test_going_offline_keeps_the_companies_and_other_systems_fields(
    documents: RegistryDocuments, firestore: AsyncClient
) -> None:
    await firestore.document("listeners_registry/u1").set({"theirs": 1})
    await documents.write([Entry("u1", True, ["a"])])
    await documents.write([Entry("u1", False)])
    found = (await firestore.document("listeners_registry/u1").get()).to_dict()
    assert found is not None
    assert (found["status"], found["authorized_companies_ids"], found["theirs"]) == ("offline", ["a"], 1)


@pytest.mark.parametrize("uid", [".", "..", "__x__"])
def test_a_user_who_cannot_name_a_document_is_not_accepted(uid: str) -> None:
    documents = RegistryDocuments(AsyncClient.__new__(AsyncClient), ttl_s=90, instance_id="r")
    assert not documents.accepts(uid)
    assert documents.accepts("user@example.org")


async def test_without_firestore_a_write_fails_and_nothing_else() -> None:
    async with FirestoreProcess() as server:
        settings = FirebaseSettings(project_id="test", emulator_host=server.address)
        async with Firebase(settings) as firebase:
            documents = RegistryDocuments(firebase.client, ttl_s=90, instance_id="r")
            await documents.write([Entry("u1", True)])
            await server.kill()
            with pytest.raises(CallError) as refused:
                await documents.write([Entry("u1", True)])
            assert refused.value.retryable
