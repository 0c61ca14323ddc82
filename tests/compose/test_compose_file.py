import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
STACK = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = STACK["services"]
OURS = ("migrate", "api", "worker-cpu", "worker-gpu", "maintenance")
PROFILES = {"worker-gpu": "gpu", "objects": "s3", "prometheus": "monitoring", "grafana": "monitoring"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_and_looked_after(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert "privileged" not in service
    assert service.get("profiles", [None])[0] == PROFILES.get(name)
    if name == "migrate":
        assert service["restart"] == "on-failure"
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    assert int(service["stop_grace_period"].removesuffix("s")) >= 30


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_gets_settings_that_there_are_and_secrets_as_files(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    fields = set(Settings.model_fields)
    assert {variable.removeprefix("POTSTILL_").lower() for variable in service["environment"]} <= fields
    targets = {secret["target"].removeprefix("potstill_") for secret in service["secrets"]}
    assert targets == {"database_password", "redis_password", "store_access_key_id", "store_secret_access_key"}
    assert targets <= fields


def test_a_worker_is_given_longer_to_stop_than_its_steps_are() -> None:
    grace = Settings.model_fields["stop_grace_seconds"].default
    assert all(int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > 3 * grace for name in ("worker-cpu", "worker-gpu"))


def test_secrets_are_files_and_nothing_else_is_one() -> None:
    made = re.search(r"for name in (.+); do", (ROOT / "docker/make-secrets.sh").read_text())
    assert made
    assert set(made.group(1).split()) == set(STACK["secrets"])
    assert all(secret == {"file": f"${{POTSTILL_SECRETS:-./secrets}}/{name}"} for name, secret in STACK["secrets"].items())
    assert not re.search(r"://[^/\s]*:[^/@\s]+@", TEXT), "a password in a URL"


def test_every_variable_of_the_example_is_read() -> None:
    named = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)) - {"COMPOSE_PROFILES"}
    assert named
    assert named <= set(re.findall(r"\$\{([A-Z_]+)", TEXT))
    assert not re.search(r"(PASSWORD|SECRET_ACCESS_KEY|KEY_ID)=", (ROOT / ".env.example").read_text())


def test_what_is_mounted_is_in_the_tree() -> None:
    mounts = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ()) if volume.startswith("./")]
    assert mounts
    assert [mount for mount in mounts if not (ROOT / mount).is_file()] == []
