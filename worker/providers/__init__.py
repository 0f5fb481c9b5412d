"""The operator's providers by name, each client made on first use and shared by the whole process."""

from __future__ import annotations

from collections.abc import Mapping

from shared.errors import JobFailed
from shared.ports import Batcher, CompletionArchive, ModelDirectory, TeacherPort, Trainer
from shared.settings import ProviderSettings
from worker.providers.lean import LeanTeacher
from worker.providers.openai import OpenAIArchive, OpenAITeacher, OpenAITrainer
from worker.providers.openai_batches import OpenAIBatcher
from worker.providers.openai_models import OpenAIModels


class Providers:
    def __init__(self, settings: Mapping[str, ProviderSettings], *, trainer_timeout_seconds: float) -> None:
        self._settings = settings
        self._trainer_timeout_seconds = trainer_timeout_seconds
        self._teachers: dict[str, TeacherPort] = {}
        self._trainers: dict[str, Trainer] = {}
        self._archives: dict[str, CompletionArchive] = {}
        self._batchers: dict[str, Batcher] = {}
        self._models: dict[str, ModelDirectory] = {}

    def settings(self, name: str) -> ProviderSettings:
        """Raises JobFailed when this worker does not know the provider: its settings differ from the API's."""
        if name not in self._settings:
            raise JobFailed(
                "The job's provider is no longer configured.  Ask the operator to configure it, then retry the job.",
                code="provider_unavailable",
                retryable=True,
            )
        return self._settings[name]

    def teacher(self, name: str) -> TeacherPort:
        if name not in self._teachers:
            settings = self.settings(name)
            self._teachers[name] = LeanTeacher(settings) if settings.client == "lean" else OpenAITeacher(settings)
        return self._teachers[name]

    def trainer(self, name: str) -> Trainer:
        if name not in self._trainers:
            self._trainers[name] = OpenAITrainer(self.settings(name), timeout_seconds=self._trainer_timeout_seconds)
        return self._trainers[name]

    def archive(self, name: str) -> CompletionArchive | None:
        """None where the provider keeps no completions."""
        settings = self.settings(name)
        if not settings.can_store:
            return None
        if name not in self._archives:
            self._archives[name] = OpenAIArchive(settings, timeout_seconds=self._trainer_timeout_seconds)
        return self._archives[name]

    def batcher(self, name: str) -> Batcher:
        if name not in self._batchers:
            self._batchers[name] = OpenAIBatcher(self.settings(name), timeout_seconds=self._trainer_timeout_seconds)
        return self._batchers[name]

    def models(self, name: str) -> ModelDirectory:
        if name not in self._models:
            self._models[name] = OpenAIModels(self.settings(name), timeout_seconds=self._trainer_timeout_seconds)
        return self._models[name]

    async def close(self) -> None:
        clients: list[TeacherPort | Trainer | CompletionArchive | Batcher | ModelDirectory] = [
            *self._teachers.values(),
            *self._trainers.values(),
            *self._archives.values(),
            *self._batchers.values(),
            *self._models.values(),
        ]
        for client in clients:
            await client.close()
