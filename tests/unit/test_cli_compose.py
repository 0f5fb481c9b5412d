"""The container files, held against the code they run: no engine is needed for what goes wrong most."""

from __future__ import annotations

import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from shared.settings import ProviderSettings, Settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_locked_down_and_watched(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "/tmp" in service["tmpfs"]
    assert service["healthcheck"]["test"]


def test_every_setting_in_the_compose_file_exists() -> None:
    known = {f"DISTILL_{name.upper()}" for name in Settings.model_fields}
    given = {name for service in SERVICES.values() for name in service.get("environment", {})}
    given -= {"SANDBOX_TODAY", "TMPDIR"}
    assert given
    assert {name.removesuffix("_FILE") if name not in known else name for name in given} <= known


def test_the_store_keeps_what_a_202_promises() -> None:
    command = SERVICES["valkey"]["command"]
    flags = dict(zip(command[1::2], command[2::2], strict=True))
    assert flags["--appendonly"] == "yes"
    assert flags["--appendfsync"] == "always"
    assert flags["--save"] == ""
    assert flags["--maxmemory-policy"] == "noeviction"
    assert "ports" not in SERVICES["valkey"]
    assert COMPOSE["networks"]["store"] == {"internal": True}


def test_training_files_are_written_to_disk_and_not_to_memory() -> None:
    worker = COMPOSE["services"]["worker"]
    assert worker["environment"]["TMPDIR"] in worker["volumes"]
    assert worker["environment"]["TMPDIR"] not in worker["tmpfs"]


def test_workers_stop_later_than_their_grace() -> None:
    period = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert period > Settings.model_fields["shutdown_grace_seconds"].default


def test_secrets_are_made_once_and_none_is_in_the_compose_file(tmp_path: Path) -> None:
    script = tmp_path / "init-secrets.sh"
    script.write_bytes((ROOT / "deploy" / "init-secrets.sh").read_bytes())
    for _ in range(2):
        said = subprocess.run(["sh", script], capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert said.stdout.count("exists") == len(COMPOSE["secrets"])
    files = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert files.keys() == COMPOSE["secrets"].keys()
    assert len(files["secret_key"].strip()) == 64
    assert files["admin_key"].startswith("dk_")
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_the_providers_of_the_containers_are_valid() -> None:
    tables = tomllib.loads((ROOT / "deploy" / "providers.toml").read_text(encoding="utf-8"))
    for table in tables.values():
        table.pop("api_key_file", None)
        assert ProviderSettings.model_validate(table).prices == "openai"


def test_the_image_holds_every_package_and_nothing_else_is_sent_to_the_builder() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    for pattern in wanted["packages"]["find"]["include"]:
        assert f"COPY {pattern.rstrip('*')} " in dockerfile
        assert f"!{pattern.rstrip('*')}/" in (ROOT / ".dockerignore").read_text(encoding="utf-8")
    assert "USER 10001:10001" in dockerfile
    assert "--require-hashes" in dockerfile


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_file_fits_the_dependencies_and_names_no_registry(lock: str) -> None:
    text = (ROOT / lock).read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([a-z0-9.-]+)==([^ ;\\]+)", text, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]["dev"] if "dev" in lock else []
    for dependency in map(Requirement, [*project["dependencies"], *extras]):
        assert dependency.specifier.contains(pinned.get(dependency.name.lower(), "0")), f"{dependency}: run `make lock`"
    assert not re.search(r"https?:|--index|--find-links|--extra-index", text)
    assert text.count("--hash=sha256:") > len(pinned)


@pytest.mark.parametrize("path", ["deploy/prometheus/alerts.yml", "docs/operations.md"])
def test_alarms_name_metrics_that_exist(path: str) -> None:
    named = set(re.findall(r"distillery_(\w+)", (ROOT / path).read_text(encoding="utf-8")))
    served = set(re.findall(r'_gauges?\(\s*"(\w+)"', (ROOT / "api/metrics.py").read_text(encoding="utf-8")))
    assert named
    assert named <= served
    yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8"))


def test_prometheus_reads_the_port_that_the_api_serves_metrics_on() -> None:
    scrape = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"][
        0
    ]
    port = SERVICES["api"]["environment"]["DISTILL_METRICS_PORT"]
    assert scrape["static_configs"] == [{"targets": [f"api:{port}"]}]
    assert not any(port in published for published in SERVICES["api"]["ports"]), "for containers only"


def test_prometheus_finds_every_worker_on_the_port_of_its_metrics() -> None:
    workers = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"][
        1
    ]
    environment = SERVICES["worker"]["environment"]
    port = int(environment["DISTILL_WORKER_METRICS_PORT"])
    assert workers["dns_sd_configs"] == [{"names": ["worker"], "type": "A", "port": port}]
    assert environment["DISTILL_API_HOST"] == "0.0.0.0", "other containers must reach it"
    assert "ports" not in SERVICES["worker"]
