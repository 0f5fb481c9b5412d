"""One sandbox for the whole folder, wiped before each test; a test that kills its sandbox starts its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from sandbox_kit import client_of

from sandbox.testing import SandboxProcess


@pytest.fixture(scope="session")
def shared_sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess(
        latency_seconds=0.01,
        training_seconds=0.3,
        batch_seconds=0.3,
        fresh_model_404_seconds=0,
        max_file_bytes=1_000_000,
        today="2026-11-22",
    ) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: SandboxProcess) -> SandboxProcess:
    shared_sandbox.reset()
    return shared_sandbox


@pytest.fixture(scope="session")
def shared_client(shared_sandbox: SandboxProcess) -> Iterator[OpenAI]:
    with client_of(shared_sandbox) as client:
        yield client


@pytest.fixture
def client(sandbox: SandboxProcess, shared_client: OpenAI) -> OpenAI:
    """The official SDK, without retries of its own, at a sandbox that remembers nothing."""
    return shared_client
