"""`distill keys` against a running API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from system import KEY, System, a_request


def create(system: System, *options: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    environment = system.environment | {"DISTILL_URL": system.url, "DISTILL_API_KEY": key}
    argv = (sys.executable, "-m", "cli", "keys", "create", *options)
    return subprocess.run(argv, env=environment, capture_output=True, check=False, text=True)


def test_a_key_made_for_one_provider_names_no_other_and_no_key_makes_none(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        refused = create(system, "--scope", "jobs:write", "--provider", "elsewhere", "--provider", "sandbox")
        assert refused.returncode == 1
        assert "/providers/0 is not a configured provider" in refused.stderr

        keyless = create(system, "--scope", "jobs:write", key="")
        assert keyless.returncode == 1
        assert "name yours with --api-key or DISTILL_API_KEY. [missing_api_key]" in keyless.stderr

        made = create(system, "--scope", "jobs:write", "--scope", "jobs:read", "--provider", "sandbox")
        system.private.add(made.stdout.strip())
        assert "at sandbox alone" in made.stderr
        [listed] = system.client.get("/v1/api_keys").json()["data"]
        assert listed["providers"] == ["sandbox"]
        system.client.headers["Authorization"] = f"Bearer {made.stdout.strip()}"
        assert system.client.post("/v1/jobs?validate_only=true", json=a_request(prompts=20)).status_code == 200
