"""All back ends of dev mode together."""

import asyncio
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .firestore_process import FirestoreProcess
from .realtime_process import RealtimeProcess
from .server import ServerProcess, in_thread
from .stripe_process import SECRET_KEY, StripeProcess
from .valkey import ValkeyServer

if TYPE_CHECKING:
    from google.cloud.firestore import AsyncClient

_EMULATOR_VARIABLE = "FIRESTORE_EMULATOR_HOST"
_WEBHOOK_SECRET = "whsec_callboard_local"  # noqa: S105 - of a stand-in: it opens nothing else


class Backends:
    """`async with Backends(base_port=8080) as backends: os.environ.update(backends.environ)`.

    Valkey listens on the port after `base_port`, Firestore on the second, the Realtime Database on the third, Stripe on
    the fourth. Stripe's webhooks go to the service on `base_port` itself. `base_port` 0 takes free ones, and then
    webhooks go nowhere. `seed` writes sample data for the user `demo`, where it is missing. `data` is a file to keep
    Firestore's documents in; the Realtime Database's are then in a file beside it, whose name begins with `realtime-`.
    `project` names the Google project, and the namespace in the Realtime Database. Raises `StartError`.
    """

    def __init__(
        self, base_port: int = 0, *, seed: bool = True, project: str = "demo", data: Path | None = None
    ) -> None:
        self.project = project
        self.valkey = ValkeyServer(base_port + 1 if base_port else 0)
        self.firestore = FirestoreProcess(base_port + 2 if base_port else 0, data=data)
        self.realtime = RealtimeProcess(
            base_port + 3 if base_port else 0,
            data=data.with_name(f"realtime-{data.name}") if data is not None else None,
        )
        self.stripe = StripeProcess(
            base_port + 4 if base_port else 0,
            webhook_url=f"http://127.0.0.1:{base_port}/webhooks/stripe" if base_port else None,
            webhook_secret=_WEBHOOK_SECRET,
        )
        self._seed = seed

    @property
    def environ(self) -> dict[str, str]:
        """What the service needs in its environment to use these back ends."""
        return {
            "LISTENERS_REDIS_HOST": self.valkey.host,
            "LISTENERS_REDIS_PORT": str(self.valkey.port),
            "LISTENERS_REDIS_TLS": "false",
            _EMULATOR_VARIABLE: self.firestore.address,
            "FIREBASE_DATABASE_EMULATOR_HOST": self.realtime.address,
            # With its namespace: Google's client takes it as an emulator's, and needs no credentials.
            "FIREBASE_REALTIME_DB_URL": self.realtime.url_of(self.project),
            "GOOGLE_PROJECT_ID": self.project,
            "STRIPE_SECRET_KEY": SECRET_KEY,
            "STRIPE_WEBHOOK_SECRET": _WEBHOOK_SECRET,
            "STRIPE_API_BASE": self.stripe.url,
            # An application of one's own to come back to may be set already.
            "STRIPE_SUCCESS_URL": os.environ.get("STRIPE_SUCCESS_URL") or f"{self.stripe.url}/paid",
            "STRIPE_CANCEL_URL": os.environ.get("STRIPE_CANCEL_URL") or f"{self.stripe.url}/cancelled",
        }

    async def died(self) -> str:
        """Wait until one of them has ended without being asked to; the name of that one."""
        waits = {asyncio.create_task(server.exited(), name=f"{server.name} exit"): server for server in self._servers()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        return waits[done.pop()].name

    async def __aenter__(self) -> Self:
        try:
            await self._start()
            if self._seed:
                await self._write_sample_data()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    def _servers(self) -> list[ServerProcess]:
        return [self.valkey, self.firestore, self.realtime, self.stripe]

    async def _start(self) -> None:
        starting = [in_thread(server.start) for server in self._servers()]
        if self._seed:
            # A second of imports, while the servers start.
            starting.append(in_thread(_import_seed))
        results = await asyncio.gather(*starting, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _stop(self) -> None:
        await asyncio.gather(*(in_thread(server.stop) for server in self._servers()))

    async def _write_sample_data(self) -> None:
        from .realtime_seed import seed_realtime
        from .seed import seed

        realtime = self.realtime
        client = self._client()
        try:
            await asyncio.gather(
                seed(client), in_thread(lambda: seed_realtime(realtime.host, realtime.port, self.project))
            )
        finally:
            await client._firestore_api.transport.close()

    def _client(self) -> "AsyncClient":
        from google.cloud.firestore import AsyncClient

        # Google's client takes the address from the environment, when it is made, and nowhere else.
        with _environment_variable(_EMULATOR_VARIABLE, self.firestore.address):
            return AsyncClient(project=self.project)


def _import_seed() -> None:
    importlib.import_module(".realtime_seed", __package__)


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
