"""The container file, and the compose file with its proxy and Prometheus. `make container-test` builds one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import ROOT, program
from web.commands import line
from web.server.composition import EXIT_SECONDS_MAX
from web.server.settings import PREFIX, load

COMPOSE = ROOT / "deploy" / "compose"
CONTAINER = (ROOT / "deploy" / "container" / "Containerfile").read_text().replace("\\\n", " ")


def steps(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", CONTAINER, re.MULTILINE)


def test_the_container_runs_as_nobody_and_builds_from_the_lock() -> None:
    assert steps("USER") == ["10001:10001"]
    assert len(steps("FROM")) == 2, "what builds stays behind"
    assert "--require-hashes" in CONTAINER
    assert "requirements/run.lock" in CONTAINER


def test_the_commands_of_the_container_are_command_lines() -> None:
    (health,), (entry,), (command,) = (steps(name) for name in ("HEALTHCHECK", "ENTRYPOINT", "CMD"))
    for words in (yaml.safe_load(health.partition("CMD ")[2]), yaml.safe_load(entry) + yaml.safe_load(command)):
        assert words[0] == "avicenna-live"
        line.parser().parse_args(words[1:])


def test_the_variables_of_the_container_are_settings() -> None:
    pairs = (one.partition("=") for text in steps("ENV") for one in shlex.split(text))
    assert load({name: value for name, _, value in pairs if name.startswith(PREFIX)}).data == Path("/data")


def test_what_the_container_copies_is_there_and_is_given_to_the_builder() -> None:
    given = {one[1:] for one in (ROOT / ".dockerignore").read_text().splitlines() if one.startswith("!")}
    copied = {name for text in steps("COPY") if "--from" not in text for name in text.split()[:-1]}
    assert copied == given
    assert all((ROOT / name).exists() for name in copied)


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compose file as podman-compose understands it; it asks podman for its version, and for nothing else."""
    podman = tmp_path_factory.mktemp("bin") / "podman"
    podman.write_text("#!/bin/sh\necho 'podman version 4.9.3'\n")
    podman.chmod(0o755)
    command = [sys.executable, "-m", "podman_compose", "--podman-path", str(podman), "-f", "compose.yml", "config"]
    done = subprocess.run(command, cwd=COMPOSE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_the_compose_file_names_what_is_there(composed: Any) -> None:
    services = composed["services"]
    assert set(services) == {"live", "proxy", "prometheus"}
    for service in services.values():
        assert set(service["networks"]) <= set(composed["networks"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in composed["volumes"] or (COMPOSE / source).is_file(), volume
    build = services["live"]["build"]
    assert (Path(build["context"]) / build["dockerfile"]).is_file()
    for name in ("proxy", "prometheus"):
        assert re.search(r":v?\d+\.\d+", services[name]["image"]), "a version that stays"


def test_the_composed_server_can_do_little_and_has_the_time_to_drain(composed: Any) -> None:
    live = composed["services"]["live"]
    assert live["read_only"] is True
    assert live["cap_drop"] == ["ALL"]
    assert live["security_opt"] == ["no-new-privileges:true"]
    assert "ports" not in live, "clients come through the proxy"
    assert int(live["stop_grace_period"].removesuffix("s")) > EXIT_SECONDS_MAX + 1


def test_the_settings_of_the_composed_server_fit_its_neighbours(composed: Any) -> None:
    services = composed["services"]
    settings = load(services["live"]["environment"])
    (subnet,) = composed["networks"]["front"]["ipam"]["config"]
    assert [str(one) for one in settings.trusted_proxies] == [subnet["subnet"]]
    assert services["proxy"]["environment"]["UPSTREAM"] == f"live:{settings.port}"
    assert settings.operators_listen is not None
    port = settings.operators_listen.rpartition(":")[2]
    scraped = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"]
    assert [(one["job_name"], one["static_configs"]) for one in scraped] == [
        ("avicenna-live", [{"targets": [f"live:{port}"]}])
    ]


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for file in (COMPOSE / "prometheus.yml", ROOT / "deploy" / "prometheus" / "alerts.yml"):
        shutil.copy(file, tmp_path)
    command = [program("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
