"""A stage for the commands of the pages: directories that stand for `/etc`, `/opt` and `/run`, and programs for them.

The programs are the real ones where they can be told of another root. What wants systemd as the first process is noted
alone: a reload has nginx start.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.programs import ROOT, program

NAME: Final = "live.example.org"
"""What the pages call the site. Here it is this machine."""

_PATHS: Final = re.compile(r"(?<![\w./-])/(?=(?:etc|opt|run)/)")
_OF_ROOT: Final = re.compile(r' -o "\$USER" -g \S+')

_SUDO: Final = """#!/bin/sh
exec "$@"
"""

_SYSUSERS: Final = """#!/bin/sh
exec {systemd_sysusers} --root={root} "$@"
"""

_SYSTEMCTL: Final = """#!/bin/sh
echo "systemctl $*" >> {root}/noted
case "$1" in
enable) [ "$2" = --now ] && shift 2 && exec {systemctl} --root={root} enable "$@" ;;
reload) [ "$2" != nginx ] || exec nginx ;;
daemon-reload) exit 0 ;;
*) echo "systemctl $1 is not known here" >&2; exit 2 ;;
esac
"""

_PYTHON: Final = """#!/bin/sh
# An environment that finds what the locks name where these tests have it, so that nothing is fetched.
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3" || exit
for packages in "$3"/lib/python3*/site-packages; do echo {root}/packages > "$packages/packages.pth"; done
printf '#!/bin/sh\\nexec %s/bin/python -m pip "$@" --no-index --no-build-isolation\\n' "$3" > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""

_HERE: Final = (
    "s#/run/avicenna/#{root}/run/avicenna/#; s#/etc/ssl/#{root}/etc/ssl/#; s#/etc/haproxy/#{root}/etc/haproxy/#"
)

_NGINX: Final = """#!/bin/sh
sed '{here}; s#/var/log/nginx/#{root}/#; s#listen 443 #listen 127.0.0.1:{port} #' \\
    {root}/etc/nginx/conf.d/avicenna-live.conf > {root}/site.conf || exit
exec {nginx} -p {root} -e {root}/error.log -c {root}/nginx.conf "$@"
"""

_NGINX_CONF: Final = """pid {root}/nginx.pid; error_log {root}/error.log; {user} events {{}}
http {{ client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi; include {root}/site.conf; }}
"""

_HAPROXY: Final = """#!/bin/sh
sed '{here}; /^    user /d; /^    group /d' {root}/etc/haproxy/haproxy.cfg > {root}/haproxy.cfg || exit
[ "$*" = "-c -f {root}/etc/haproxy/haproxy.cfg" ] && exec {haproxy} -c -f {root}/haproxy.cfg
echo "haproxy $* is not known here" >&2; exit 2
"""


@dataclass(frozen=True)
class Stage:
    """Where it is."""

    root: Path
    port: int
    """Where nginx listens in place of 443."""

    @property
    def programs(self) -> Path:
        """What stands first on the PATH."""
        return self.root / "bin"

    @property
    def noted(self) -> list[str]:
        """What systemctl was asked."""
        return (self.root / "noted").read_text().splitlines()

    def here(self, command: str) -> str:
        """A command of a page, with this place in place of the machine's."""
        if os.geteuid() != 0:
            command = _OF_ROOT.sub("", command)
        command = _PATHS.sub(f"{self.root}/", command)
        return command.replace(f"https://{NAME}", f"https://localhost:{self.port}").replace(NAME, "localhost")


@contextmanager
def stage(port: int) -> Iterator[Stage]:
    """A stage with programs; what it started is ended with it. Its path is short, as a Unix socket wants it."""
    real = {name: program(name) for name in ("nginx", "haproxy", "caddy", "openssl")}
    program("systemd-analyze")
    systemd = {name.replace("-", "_"): str(shutil.which(name)) for name in ("systemctl", "systemd-sysusers")}
    with tempfile.TemporaryDirectory(prefix="stage") as made:
        root = Path(made)
        root.chmod(0o755)
        for name in (
            "bin",
            "packages",
            "etc/systemd/system",
            "etc/nginx/conf.d",
            "etc/haproxy",
            "etc/caddy",
            "etc/ssl",
            "run",
        ):
            (root / name).mkdir(parents=True)
        (root / "noted").touch()
        _packages(root / "packages")
        values = {"root": root, "port": port, "python": sys.executable, **systemd, **real}
        values["here"] = _HERE.format(**values)
        programs = {
            "sudo": _SUDO,
            "systemd-sysusers": _SYSUSERS,
            "systemctl": _SYSTEMCTL,
            "python3": _PYTHON,
            "nginx": _NGINX,
            "haproxy": _HAPROXY,
        }
        for name, text in programs.items():
            (root / "bin" / name).write_text(text.format(**values))
            (root / "bin" / name).chmod(0o755)
        (root / "bin" / "avicenna-live").symlink_to(ROOT / ".venv" / "bin" / "avicenna-live")
        user = "user root;" if os.geteuid() == 0 else ""
        (root / "nginx.conf").write_text(_NGINX_CONF.format(user=user, **values))
        try:
            yield Stage(root, port)
        finally:
            with suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((root / "nginx.pid").read_text()), signal.SIGTERM)


def _packages(directory: Path) -> None:
    """Links to all that is installed here but the project itself, which a page installs."""
    installed = Path(sys.executable).parents[1] / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    for one in installed.iterdir():
        if not one.name.startswith(("avicenna_live", "_avicenna")) and one.suffix != ".pth":
            (directory / one.name).symlink_to(one)
