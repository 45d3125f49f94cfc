"""`python -m callboard_local firestore --port N [--data FILE] [--max-streams N]`, and `… stripe --port N …`."""

import argparse
import asyncio
import importlib.util
import signal
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .firestore import FirestoreServer
    from .stripe import StripeServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="callboard_local", description="The embedded back ends.")
    commands = parser.add_subparsers(dest="command", required=True)
    firestore = commands.add_parser("firestore", help="serve the Firestore API on the loopback")
    firestore.add_argument("--port", type=int, default=0, help="0: a free one")
    firestore.add_argument("--data", type=Path, help="a SQLite file to keep the documents in")
    firestore.add_argument("--max-streams", type=int, default=100, help="calls at once per connection")
    stripe = commands.add_parser("stripe", help="serve a Stripe stand-in on the loopback")
    stripe.add_argument("--port", type=int, default=0, help="0: a free one")
    stripe.add_argument("--webhook-url", help="where every event is delivered")
    stripe.add_argument("--webhook-secret", help="what deliveries to it are signed with")
    stripe.add_argument("--retry-s", type=float, default=1.0, help="pause after a failed delivery; then it doubles")
    options = parser.parse_args()
    try:
        asyncio.run(_serve(_stripe(options) if options.command == "stripe" else _firestore(options)))
    except OSError as error:
        sys.exit(str(error))


def _import_messages_alone() -> None:
    """Spare this process Google's client library: its messages are all that a server needs of it.

    Importing them would first run the package around them, which imports clients, transports and credentials:
    half a second of a newcomer's first start. An empty package in its place finds them as well.
    """
    name = "google.cloud.firestore_v1"
    spec = importlib.util.find_spec(name)
    if spec is not None:
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = list(spec.submodule_search_locations or [])


def _firestore(options: argparse.Namespace) -> "tuple[FirestoreServer, str]":
    _import_messages_alone()
    from .firestore import FirestoreServer  # heavy: after the arguments have been found good
    from .firestore_process import READY

    return FirestoreServer(options.port, data=options.data, max_streams=options.max_streams), READY


def _stripe(options: argparse.Namespace) -> "tuple[StripeServer, str]":
    from .stripe import StripeServer
    from .stripe_process import READY

    server = StripeServer(
        options.port,
        webhook_url=options.webhook_url,
        webhook_secret=options.webhook_secret,
        retry_s=options.retry_s,
    )
    return server, READY


async def _serve(made: "tuple[FirestoreServer | StripeServer, str]") -> None:
    server, ready = made
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with server:
        print(ready, server.port, flush=True)  # noqa: T201 - whoever started us reads this line
        await stop.wait()


if __name__ == "__main__":
    main()
