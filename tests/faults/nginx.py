"""Debian's nginx in front of a fleet, with the configuration that is ours to give: deploy/nginx.conf."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from callboard_local.child import Child, StartError
from callboard_local.server import ServerProcess

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nginx.conf"
# One process, without a master: it dies with us, whatever happens.
_MAIN = """\
error_log stderr notice;
pid nginx.pid;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include callboard.conf;
}
"""


class Nginx(ServerProcess):
    """`async with Nginx([replica.port, …]) as nginx`, on a free port. `changes`: what to write for what, a control."""

    name = "nginx"

    def __init__(self, replicas: Sequence[int], *, changes: dict[str, str] | None = None) -> None:
        super().__init__(0)
        self._replicas = list(replicas)
        self._changes = changes or {}
        self._folder: str | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def ws_url(self) -> str:
        return f"ws://{self.address}/ws"

    @property
    def access_log(self) -> list[str]:
        assert self._folder is not None
        return Path(self._folder, "access.log").read_text().splitlines()

    @property
    def error_log(self) -> str:
        assert self._child is not None
        return self._child.output

    def stop(self) -> None:
        super().stop()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _launch(self, port: int) -> Child:
        binary = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if binary is None:
            raise StartError("nginx is not installed: apt-get install nginx-light")
        self._folder = self._folder or tempfile.mkdtemp(prefix="callboard-nginx-")
        Path(self._folder, "nginx.conf").write_text(_MAIN)
        Path(self._folder, "callboard.conf").write_text(self._configuration(port))
        command = [binary, "-p", self._folder, "-e", "stderr", "-c", "nginx.conf"]
        command += ["-g", "daemon off; master_process off;"]
        child = Child(command, name=self.name, ready="getrlimit(RLIMIT_NOFILE)")
        self._start_child(child, port)
        return child

    def _configuration(self, port: int) -> str:
        changes = {
            "listen 80;": f"listen {self.address.partition(':')[0]}:{port};",
            "/var/log/nginx/callboard.log": "access.log",
            **{
                f"replica-{number}.internal:8080": f"127.0.0.1:{replica}"
                for number, replica in enumerate(self._replicas, start=1)
            },
            **self._changes,
        }
        text = CONFIGURATION.read_text()
        for old, new in changes.items():
            if old not in text:
                raise StartError(f"{CONFIGURATION.name} has no {old!r}")
            text = text.replace(old, new)
        # Replicas that are not there.
        return "\n".join(line for line in text.splitlines() if ".internal:8080" not in line)
