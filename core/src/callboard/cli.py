"""The command line: `callboard serve | dev | plugins | call`."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import click

from callboard.errors import CallboardError, ConfigurationError
from callboard.plugins import Plugins
from callboard.settings import Settings, load
from callboard.telemetry import Telemetry

EXIT_CONFIGURATION = 2
EXIT_CALL_FAILED = 1


class _Group(click.Group):
    """Our commands, and those of installed plugins. Errors of our own end a command with their message alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(self._of_plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._of_plugins().get(cmd_name)

    def _of_plugins(self) -> dict[str, click.Command]:
        found = _installed_plugins()
        commands: dict[str, click.Command] = {}
        owners = dict.fromkeys(self.commands, "the core")
        for plugin, given in found.collect("register_commands", list, settings=found.settings):
            for command in given:
                if command.name in owners:
                    raise ConfigurationError(
                        f"the command {command.name} is declared by {owners[command.name]} and by {plugin.name}"
                    )
                owners[command.name], commands[command.name] = plugin.name, command
        return commands

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except CallboardError as error:
            click.echo(f"callboard: {error.message}", err=True)
            sys.exit(EXIT_CONFIGURATION)


@click.group(cls=_Group)
@click.version_option(package_name="callboard")
def main() -> None:
    """Serve plain Python classes as namespaces: RPC in, live events out."""


@main.command()
@click.option("--host", default="0.0.0.0", show_default=True, help="address to listen on")  # noqa: S104 - a service
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535), help="port to listen on")
@click.option("--strict", is_flag=True, help="a plugin that fails stops the start")
def serve(host: str, port: int, strict: bool) -> None:
    """Run the service with the environment's settings."""
    environ = {**os.environ, **({"LISTENERS_STRICT": "true"} if strict else {})}
    _leave(asyncio_run(_serve(environ, host, port)))


@main.command()
@click.option(
    "--port", default=8080, show_default=True, type=click.IntRange(0, 65_531),
    help="the service's port; back ends take the four after it",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="a plugin that fails stops the start")
def dev(port: int, strict: bool) -> None:
    """Run the service with embedded back ends and sample data, on this machine only."""
    environ = {**os.environ, "LISTENERS_DEV": "true", **({"LISTENERS_STRICT": "true"} if strict else {})}
    _leave(asyncio_run(_dev(environ, port)))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="machine-readable")
def plugins(as_json: bool) -> None:
    """List the installed plugins and what they bring."""
    found = _installed_plugins()
    found.build_services()
    rows: list[dict[str, Any]] = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "state": plugin.state,
            "error": plugin.error,
            "methods": [f"{s.namespace}.{name}" for s in plugin.services for name, _, _ in s.methods()],
        }
        for plugin in found.all
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.secho(f"{row['name']}  {row['distribution']} {row['version']}  {row['state']}", bold=True)
        if row["error"]:
            click.secho(f"  {row['error']}", fg="red")
        for name in row["methods"]:
            click.echo(f"  {name}")


def _installed_plugins() -> Plugins:
    """What is installed, loaded but not opened; one that fails is in the list with its reason."""
    environ = {**os.environ, "LISTENERS_STRICT": ""}
    found = Plugins(load(Settings, environ), environ, Telemetry(replica="cli", stream=io.StringIO()))
    found.discover()
    return found


@main.command()
@click.argument("method")
@click.argument("arguments", nargs=-1, metavar="[KEY=VALUE | VALUE]...")
@click.option("--url", envvar="LISTENERS_SERVICE_URL", default="http://127.0.0.1:8080", show_default=True)
@click.option("--token", envvar="LISTENERS_SERVICE_TOKEN", default="dev", help="bearer token  [default: dev]")
@click.option("--user", help="user_id of the call")
@click.option("--key", help="idempotency key")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="deadline, seconds")
@click.pass_context
def call(
    ctx: click.Context, method: str, arguments: tuple[str, ...], url: str, token: str, user: str | None,
    key: str | None, timeout_s: float,
) -> None:  # fmt: skip
    """Call METHOD of a running service. A VALUE that is JSON is sent as such, any other as text.

    callboard call REGISTRY.get_user user_id=demo
    """
    body: dict[str, Any] = {"method": method, "args": [], "kwargs": {}, "timeout_ms": int(timeout_s * 1000)}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.isidentifier():
            body["kwargs"][name] = _json_or_text(value)
        else:
            body["args"].append(_json_or_text(argument))
    body |= {k: v for k, v in {"user_id": user, "idempotency_key": key}.items() if v is not None}
    reply = _post(url.rstrip("/") + "/rpc", token, body, timeout_s + 5)
    click.echo(json.dumps(reply, indent=2, ensure_ascii=False))
    if not reply.get("ok"):
        ctx.exit(EXIT_CALL_FAILED)


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _post(url: str, token: str, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"{url} is not an http address; check --url")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            status, answer = response.status, response.read()
    except urllib.error.HTTPError as refusal:
        status, answer = refusal.code, refusal.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(f"no service answers at {url}: {getattr(error, 'reason', error)}") from None
    try:
        reply = json.loads(answer)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise ConfigurationError(
            f"what answers at {url} is not this service (HTTP {status}); check --url, and whether a replica is up "
            "behind the load balancer"
        )
    return reply


# -- running the service ------------------------------------------------------------------------------------------


def asyncio_run(main: Any) -> int:
    import uvloop

    return uvloop.run(main)  # type: ignore[no-any-return]


async def _serve(environ: Mapping[str, str], host: str, port: int) -> int:
    from callboard.app import Callboard
    from callboard.server import LibraryLogs, Server, listen

    callboard = Callboard(load(Settings, environ), environ=environ)
    LibraryLogs.install(callboard.telemetry)
    server = Server(callboard)
    await server.serve(sockets=[listen(host, port)])
    return 0 if server.started else 3


async def _dev(environ: Mapping[str, str], port: int) -> int:
    from callboard.app import Callboard
    from callboard.server import LibraryLogs, Server, listen

    try:
        from callboard_local import Backends, PortInUseError, StartError
    except ModuleNotFoundError as error:
        if error.name != "callboard_local":
            raise
        raise ConfigurationError("dev mode needs the embedded back ends: pip install callboard-local") from None

    listener = listen("127.0.0.1", port)
    port = listener.getsockname()[1]
    async with AsyncExitStack() as stack:
        try:
            backends = await stack.enter_async_context(Backends(base_port=port))
        except StartError as error:
            hint = "Choose another --port: back ends take the four after it."
            raise ConfigurationError(f"{error}. {hint}" if isinstance(error, PortInUseError) else str(error)) from None
        environ = {**environ, **backends.environ}
        callboard = Callboard(load(Settings, environ), environ=environ)
        LibraryLogs.install(callboard.telemetry)
        server = Server(callboard)
        tasks = {
            asyncio.create_task(_keep_demo_user_online(callboard, port), name="demo user"),
            asyncio.create_task(_stop_when_one_dies(backends, server), name="back ends"),
        }
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    return 0 if server.started else 3


async def _stop_when_one_dies(backends: Any, server: Any) -> None:
    name = await backends.died()
    click.echo(f"callboard: the embedded {name} ended by itself; stopping", err=True)
    server.should_exit = True


async def _keep_demo_user_online(callboard: Any, port: int) -> None:
    """Sample data needs somebody who is there: the user `demo` has a session for as long as dev mode runs."""
    while callboard.lifecycle.state == "starting":  # noqa: ASYNC110 - a start-up of a second
        await asyncio.sleep(0.02)
    _show_table(callboard, port)
    while True:
        try:
            if not await callboard.presence.heartbeat("demo-session"):
                await callboard.presence.register("demo", "demo-session")
        except CallboardError as error:
            callboard.telemetry.log.warning("task_failed", task="demo user", code=getattr(error, "code", ""))
        await asyncio.sleep(callboard.settings.heartbeat_interval_s)


def _show_table(callboard: Any, port: int) -> None:
    settings = callboard.settings
    token = settings.service_token.reveal() if settings.service_token else "dev"
    rows = [
        ("service", f"http://127.0.0.1:{port}   (POST /rpc, /ws, /healthz, /debug, /metrics, /openapi.json)"),
        ("token", token),
        ("user", "demo (online, with sample data)"),
        ("redis", "{}:{}".format(*settings.redis_address())),
        ("firestore", f"{callboard.host.environ.get('FIRESTORE_EMULATOR_HOST')} (project demo)"),
        ("realtime", f"{callboard.host.environ.get('FIREBASE_DATABASE_EMULATOR_HOST')} (namespace demo)"),
        ("stripe", f"{callboard.host.environ.get('STRIPE_API_BASE')} (no money moves)"),
    ]
    click.echo("")
    for name, value in rows:
        click.echo(f"  {click.style(name.ljust(10), bold=True)} {value}")
    for plugin in callboard.plugins.all:
        methods = sum(len(callboard.router.table.methods_of(namespace)) for namespace in plugin.namespaces())
        state = "ready" if plugin.state == "ready" else f"{plugin.state}: {plugin.error}"
        state = click.style(state, fg="green" if plugin.state == "ready" else "red")
        label = click.style("plugin".ljust(10), bold=True)
        click.echo(
            f"  {label} {', '.join(plugin.namespaces())} ({methods} {'method' if methods == 1 else 'methods'}) {state}"
        )
    click.echo("")
    sys.stdout.flush()


def _leave(code: int) -> None:
    from callboard.server import leave

    leave(code)
