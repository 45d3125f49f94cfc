"""The plugin in a whole service, on a real Valkey and a real Firestore: the embedded one, and (`emulator`) Google's."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from google.cloud.firestore import AsyncClient

import callboard_workflow_listener
from callboard.telemetry import Telemetry
from callboard.testing import Service, Subscription, running
from callboard_firebase import Firebase, FirebaseSettings
from callboard_local import ValkeyServer
from callboard_local.session_loop import anyio_backend as anyio_backend
from callboard_local.session_loop import one_event_loop as one_event_loop
from callboard_workflow_listener import Workflow


@pytest.fixture(autouse=True)
def no_blocking_calls() -> Iterator[BlockBuster]:
    """A blocking call on the event loop, made from this package, fails the test that makes it."""
    with blockbuster_ctx(["callboard_workflow_listener"]) as guard:
        yield guard


@pytest.fixture
def uid(firestore_project: str) -> str:
    """A user of this test's own, on the shared Valkey too."""
    return f"u-{firestore_project}"


@pytest.fixture
def environ(own_valkey: ValkeyServer, firestore_address: str, firestore_project: str) -> dict[str, str]:
    # A Valkey of its own: on a shared one a replica would take over the users of tests that are over.
    return {
        "LISTENERS_REDIS_HOST": "127.0.0.1",
        "LISTENERS_REDIS_PORT": str(own_valkey.port),
        "FIRESTORE_EMULATOR_HOST": firestore_address,
        "GOOGLE_PROJECT_ID": firestore_project,
    }


class Jobs:
    """A user's `task_manager` collection, written as other systems do."""

    def __init__(self, client: AsyncClient, uid: str) -> None:
        self._client = client
        self.path = f"clients/{uid}/task_manager"

    async def put(self, job_id: str, invoice: Any = None, steps: Any = None, **more: Any) -> None:
        """Replace a job's document."""
        fields = {**more}
        if invoice is not None:
            fields["document"] = {"initial_data": invoice}
        if steps is not None:
            fields["APBookeeper_step_status"] = steps
        await self._client.document(f"{self.path}/{job_id}").set(fields)

    async def update(self, job_id: str, **fields: Any) -> None:
        """Change fields, by paths with `__` for the dots."""
        paths = {name.replace("__", "."): value for name, value in fields.items()}
        await self._client.document(f"{self.path}/{job_id}").update(paths)

    async def put_older(self, job_id: str, invoice: Mapping[str, Any]) -> None:
        """Replace the sub-document of older writers."""
        await self._client.document(f"{self.path}/{job_id}/document/initial_data").set(dict(invoice))

    async def delete(self, job_id: str) -> None:
        await self._client.document(f"{self.path}/{job_id}").delete()

    async def delete_older(self, job_id: str) -> None:
        await self._client.document(f"{self.path}/{job_id}/document/initial_data").delete()


@pytest.fixture
async def jobs(firestore_address: str, firestore_project: str, uid: str) -> AsyncIterator[Jobs]:
    settings = FirebaseSettings(project_id=firestore_project, emulator_host=firestore_address)
    async with Firebase(settings) as firebase:
        yield Jobs(firebase.client, uid)


class Running:
    """One replica with this plugin, its log, and what it sends to one user."""

    def __init__(self, service: Service, log: io.StringIO, uid: str) -> None:
        self.service = service
        self.call = service.call
        self.uid = uid
        self._log = log

    @property
    def workflow(self) -> Workflow:
        plugin = next(iter(self.service.callboard.plugins.all))
        found = plugin.services[0]
        assert isinstance(found, Workflow)
        return found

    async def enter(self, session_id: str = "s1") -> None:
        await self.service.callboard.presence.register(self.uid, f"{self.uid}.{session_id}")

    async def leave(self, session_id: str = "s1") -> None:
        await self.service.callboard.presence.unregister(f"{self.uid}.{session_id}")

    def logged(self, event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self._log.getvalue().splitlines()]
        return [record for record in records if record["event"] == event]


@pytest.fixture
async def replicas(environ: dict[str, str], uid: str) -> AsyncIterator[Any]:
    """Starts replicas: `replica = await replicas(WORKFLOW_LISTENER_ENABLED="false")`."""
    async with AsyncExitStack() as stack:

        async def start(**variables: str) -> Running:
            log = io.StringIO()
            telemetry = Telemetry(replica=f"r{log.__hash__()}", stream=log)
            service = await stack.enter_async_context(
                running(callboard_workflow_listener, environ={**environ, **variables}, telemetry=telemetry)
            )
            return Running(service, log, uid)

        yield start


@pytest.fixture
async def replica(replicas: Any) -> Running:
    started: Running = await replicas()
    return started


@pytest.fixture
async def heard(replica: Running) -> AsyncIterator[Subscription]:
    """What a consumer that reads Redis gets for the user."""
    async with replica.service.subscribed(f"user:{replica.uid}") as subscription:
        yield subscription
