"""`python -m callboard_local firestore --port N [--data FILE] [--max-streams N]`."""

import argparse
import asyncio
import importlib.util
import signal
import sys
import types
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="callboard_local", description="The embedded back ends.")
    commands = parser.add_subparsers(dest="command", required=True)
    firestore = commands.add_parser("firestore", help="serve the Firestore API on the loopback")
    firestore.add_argument("--port", type=int, default=0, help="0: a free one")
    firestore.add_argument("--data", type=Path, help="a SQLite file to keep the documents in")
    firestore.add_argument("--max-streams", type=int, default=100, help="calls at once per connection")
    options = parser.parse_args()
    _import_messages_alone()
    try:
        asyncio.run(_serve(options.port, options.data, options.max_streams))
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


async def _serve(port: int, data: Path | None, max_streams: int) -> None:
    from .firestore import FirestoreServer  # heavy: after the arguments have been found good
    from .firestore_process import READY

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with FirestoreServer(port, data=data, max_streams=max_streams) as server:
        print(READY, server.port, flush=True)  # noqa: T201 - whoever started us reads this line
        await stop.wait()


if __name__ == "__main__":
    main()
