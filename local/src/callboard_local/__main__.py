"""`python -m callboard_local firestore|realtime|stripe --port N`, and what each takes beside."""

import argparse
import asyncio
import importlib.util
import signal
import sys
import types
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any


def main() -> None:
    options = _parser().parse_args()
    try:
        options.run(options)
    except OSError as error:
        sys.exit(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="callboard_local", description="The embedded back ends.")
    commands = parser.add_subparsers(dest="command", required=True)
    firestore = commands.add_parser("firestore", help="serve the Firestore API on the loopback")
    firestore.add_argument("--max-streams", type=int, default=100, help="calls at once per connection")
    firestore.set_defaults(run=_run_firestore)
    realtime = commands.add_parser("realtime", help="serve the Realtime Database's REST API on the loopback")
    realtime.add_argument("--keep-alive", type=float, default=30, help="seconds between two on a stream; 0: none")
    realtime.add_argument("--max-pending-bytes", type=int, default=8 * 1024 * 1024, help="unread, on a stream")
    realtime.set_defaults(run=_run_realtime)
    stripe = commands.add_parser("stripe", help="serve a Stripe stand-in on the loopback")
    stripe.add_argument("--webhook-url", help="where every event is delivered")
    stripe.add_argument("--webhook-secret", help="what deliveries to it are signed with")
    stripe.add_argument("--retry-s", type=float, default=1.0, help="pause after a failed delivery; then it doubles")
    stripe.set_defaults(run=_run_stripe)
    for command in (firestore, realtime, stripe):
        command.add_argument("--port", type=int, default=0, help="0: a free one")
    for command in (firestore, realtime):
        command.add_argument("--data", type=Path, help="a SQLite file to keep the data in")
    return parser


# What follows imports its server late: that is heavy, and the arguments may be no good.


def _run_firestore(options: argparse.Namespace) -> None:
    _import_messages_alone()
    from .firestore import FirestoreServer
    from .firestore_process import READY

    server = FirestoreServer(options.port, data=options.data, max_streams=options.max_streams)
    asyncio.run(_serve(server, READY))


def _run_realtime(options: argparse.Namespace) -> None:
    import uvloop

    from .realtime import RealtimeServer
    from .realtime_process import READY

    _allow_many_sockets()
    server = RealtimeServer(
        options.port,
        data=options.data,
        keep_alive_s=options.keep_alive or None,
        max_pending_bytes=options.max_pending_bytes,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(server, READY))


def _run_stripe(options: argparse.Namespace) -> None:
    from .stripe import StripeServer
    from .stripe_process import READY

    server = StripeServer(
        options.port,
        webhook_url=options.webhook_url,
        webhook_secret=options.webhook_secret,
        retry_s=options.retry_s,
    )
    asyncio.run(_serve(server, READY))


def _allow_many_sockets() -> None:
    """A stream is a socket, and there may be thousands; a shell's own limit is often 1,024."""
    if sys.platform == "win32":
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    elif now != resource.RLIM_INFINITY:
        # macOS grants no more than this, whatever it says.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, 10_240), most))


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


async def _serve(server: AbstractAsyncContextManager[Any], ready: str) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with server as started:
        print(ready, started.port, flush=True)  # noqa: T201 - whoever started us reads this line
        await stop.wait()


if __name__ == "__main__":
    main()
