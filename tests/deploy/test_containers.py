"""The container file, and the compose file with its proxy and Prometheus. `make container-test` builds one."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.installation import configuration
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
    """The compose file of one server."""
    return understood("compose.yml", tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compose file of several servers."""
    return understood("cluster.yml", tmp_path_factory.mktemp("bin"))


def understood(file: str, place: Path) -> Any:
    """A file as podman-compose understands it; it asks podman for its version, and for nothing else."""
    podman = place / "podman"
    podman.write_text("#!/bin/sh\necho 'podman version 4.9.3'\n")
    podman.chmod(0o755)
    command = [sys.executable, "-m", "podman_compose", "--podman-path", str(podman), "-f", file, "config"]
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


def test_the_compose_file_of_several_servers_names_what_is_there(cluster: Any) -> None:
    services = cluster["services"]
    assert set(services) == {"n1", "n2", "n3", "a", "b", "c", "proxy"}
    for service in services.values():
        assert set(service["networks"]) <= set(cluster["networks"])
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            is_ours = source.startswith("./secrets/")
            assert is_ours or source in cluster["volumes"] or (COMPOSE / source).is_file(), volume
    for name in ("n1", "proxy"):
        assert re.search(r":\d+\.\d+", services[name]["image"]), "a version that stays"


def test_what_several_composed_servers_are_told_fits_their_neighbours(cluster: Any) -> None:
    services = cluster["services"]
    (subnet,) = cluster["networks"]["front"]["ipam"]["config"]
    shipped = (ROOT / "deploy" / "haproxy" / "several.cfg").read_text()
    for name in "abc":
        settings = load(services[name]["environment"])
        assert (settings.engine, settings.nats_replicas) == ("nats", 3)
        assert list(settings.nats_url) == [f"nats://n{number}:4222" for number in (1, 2, 3)]
        assert [str(one) for one in settings.trusted_proxies] == [subnet["subnet"]]
        mounted = {one.split(":")[1] for one in services[name]["volumes"]}
        assert {str(settings.nats_credentials), "/etc/avicenna-live/token.key"} == mounted
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > EXIT_SECONDS_MAX + 1
        assert shipped.count(f"    server {name} {name}:{settings.port}") == 2, "its connections and its event streams"
        address = ip_address(services[name]["networks"]["front"]["ipv4_address"])
        assert address in ip_network(subnet["subnet"])
    wanted = set(re.findall(r"\$([A-Z_]+)\b", (ROOT / "deploy" / "nats" / "nats-server.conf").read_text())) - {"JS"}
    for name in ("n1", "n2", "n3"):
        assert set(services[name]["environment"]) == wanted
        assert services[name]["environment"]["NATS_NODE"] == name


def test_haproxy_takes_the_configuration_of_several_servers(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration(8000, (8001, 8002, 8003)))
    done = subprocess.run(
        [program("haproxy"), "-c", "-f", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[ALERT]" not in done.stderr
    assert "[WARNING]" not in done.stderr, done.stderr
