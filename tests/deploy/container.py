"""`make container-test`: builds the container file with buildah, and runs what came of it: read-only, as its user.

Where no registry of images can be reached, the base is made of Debian's packages with mmdebstrap. It needs root, and
takes some minutes; `make test` looks at the files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.documents.test_nginx import free_port
from tests.programs import ROOT

BUILD: Final = ROOT / "build" / "container"
BASE: Final = "localhost/avicenna-live-base"
IMAGE: Final = "localhost/avicenna-live"
USER: Final = 10001
SECONDS_MAX: Final = 30.0
"""Longest wait for something the container is to do."""

BUILDAH: Final = ("buildah", "--storage-driver", "vfs")

CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")

ENTER: Final = """
set -e
root=$1 data=$2; shift 2
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$data" "$root/data"
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --bind /dev "$root/dev"
exec chroot --userspec=%d:%d "$root" env -i "$@"
"""
"""What an engine does with `read_only`, `tmpfs` and the user, without an engine."""


def run(*command: str | Path) -> str:
    """A command that must succeed; what it prints."""
    print("+", *command, flush=True)
    return subprocess.run([str(one) for one in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def make_base() -> None:
    """A base image of Debian's packages: Python with venv, and certificates."""
    root = BUILD / "root.tar"
    if not root.exists():
        packages = "--include=python3,python3-venv,ca-certificates"
        run("mmdebstrap", "--variant=minbase", packages, "bookworm", root)
    container = run(*BUILDAH, "from", "scratch").strip()
    run(*BUILDAH, "add", "--quiet", container, root, "/")
    run(*BUILDAH, "commit", "--quiet", "--rm", container, BASE)


def build(base: str) -> dict[str, Any]:
    """Build the image; its configuration."""
    mounts: list[str] = []
    if CERTIFICATES.exists():
        # An index may have a certificate of this machine's authority.
        (BUILD / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")
        mounts = ["-v", f"{BUILD / 'pip.conf'}:/etc/pip.conf:ro", "-v", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    file = ROOT / "deploy" / "container" / "Containerfile"
    run(
        *BUILDAH, "bud", "--quiet", "--format", "docker", "--isolation", "chroot", "--build-arg", f"BASE={base}",
        *mounts, "-f", file, "-t", IMAGE, ROOT,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(run(*BUILDAH, "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    return found


@contextmanager
def mounted() -> Iterator[Path]:
    """The root of a new container of the image."""
    container = run(*BUILDAH, "from", IMAGE).strip()
    try:
        yield Path(run(*BUILDAH, "mount", container).strip())
    finally:
        run(*BUILDAH, "rm", container)


def try_it(root: Path, configuration: dict[str, Any], data: Path) -> None:
    """Start the server as an engine would, ask it, look at its health, and stop it."""
    port = free_port()
    os.chown(data, USER, USER)
    inside = ["unshare", "--mount", "sh", "-c", ENTER % (USER, USER), "sh", str(root), str(data), *configuration["Env"]]
    command = [*configuration["Entrypoint"], *configuration["Cmd"], "--port", str(port)]
    server = subprocess.Popen([*inside, *command])
    try:
        deadline = time.monotonic() + SECONDS_MAX
        while not (data / "listening.json").exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=SECONDS_MAX) as answer:
            assert answer.status == 200
        health = configuration["Healthcheck"]["Test"]
        assert health[0] == "CMD"
        checked = subprocess.run([*inside, *health[1:]], check=False, stdout=subprocess.PIPE, text=True)
        assert (checked.returncode, checked.stdout) == (0, "ok\n"), checked
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Uid:\t{USER}\t" in status, status
        touched = subprocess.run([*inside, "touch", "/opt/written"], check=False, stderr=subprocess.PIPE, text=True)
        assert "Read-only file system" in touched.stderr, touched
        assert {one.stat().st_uid for one in data.iterdir()} == {USER}
    finally:
        server.terminate()
        assert server.wait(timeout=15) == 0
    checked = subprocess.run([*inside, *health[1:]], check=False, stderr=subprocess.PIPE, text=True)
    assert checked.returncode == 3, checked


def main() -> int:
    """Build and try; 0 if all is as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="an image to build on; default: one made of Debian's packages")
    base = parser.parse_args().base
    missing = [one for one in ("buildah", *(() if base else ("mmdebstrap",))) if shutil.which(one) is None]
    if missing or os.geteuid() != 0:
        print(
            f"container-test: needs root and {', '.join(missing) or 'nothing else'} (Debian's packages)",
            file=sys.stderr,
        )
        return 1
    BUILD.mkdir(parents=True, exist_ok=True)
    if base is None:
        make_base()
    configuration = build(base or BASE)
    assert configuration["User"] == f"{USER}:{USER}", configuration
    with mounted() as root, tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "data"
        data.mkdir(mode=0o700)
        Path(directory).chmod(0o755)
        try_it(root, configuration, data)
    print("the container was built, served, was healthy, and stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
