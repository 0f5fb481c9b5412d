"""Every setting, typed, with unit and default.  Built once, in api/app.py, worker/app.py and the CLI."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.settings_files import read_text
from shared.settings_sources import ENV_PREFIX, DotEnv, Environment, SecretFiles, Tables, Unread, UnreadFiles
from shared.settings_types import (
    HeaderText,
    HttpUrl,
    Names,
    Networks,
    Ports,
    PriceFile,
    RedisUrl,
    SigningSecret,
    Table,
    TablesFile,
    named,
    not_shorter_than,
)

TrainingState = Literal["waiting", "running", "paused", "succeeded", "failed", "cancelled"]
#: What we say ourselves, in every request or of every fine-tuning job.
_OWN_HEADERS: Final = frozenset({"authorization", "content-type", "content-length", "host"})
_OWN_FIELDS: Final = frozenset(
    {"model", "training_file", "validation_file", "method", "hyperparameters", "suffix", "seed", "integrations"}
    | {"metadata"}
)


class ProviderSettings(BaseModel):
    """One OpenAI-compatible server, by the name that requests use.  A tenant picks it, never points it elsewhere."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: HttpUrl = Field(description="root of its API, ending in /v1 or the like")
    api_key: HeaderText | None = Field(None, description="sent as Bearer token")
    api_key_file: Path | None = Field(None, description="file that holds the key; read at start")
    headers: Table[SecretStr] = Field({}, description="sent with every request beside the key")
    webhook_secret: SigningSecret | None = Field(
        None, description="verifies the events it sends to /v1/provider_events/<name>: whsec_…"
    )
    webhook_secret_file: Path | None = Field(None, description="file that holds that secret; read at start")
    prices: str | None = Field(None, description="price list to use: a genai-prices provider id; null means unpriced")
    lists_models: bool = Field(
        True, description="its GET /models shows every model that can be named: a request for another is refused"
    )
    can_train: bool = Field(True, description="serves files and fine_tuning.jobs")
    training_closes: date | None = Field(
        None, description="last day on which it takes new fine-tuning jobs; null: open"
    )
    can_store: bool = Field(False, description="keeps completions asked with store: true, listable by metadata")
    can_dpo: bool = Field(True, description="trains students by method dpo too")
    examples_min: int = Field(1, ge=1, description="fewest examples that it trains a student with; 10 at OpenAI")
    can_batch: bool = Field(False, description="serves batches: half the price, up to a day later")
    max_in_flight: int = Field(
        1000, ge=1, le=10_000, description="calls at once, per worker process, whichever jobs they are for"
    )
    requests_per_minute: int | None = Field(None, ge=1, description="shared by all workers; null: learned")
    tokens_per_minute: int | None = Field(None, ge=1, description="shared by all workers; null: learned")
    timeout_seconds: float = Field(120.0, gt=0, le=900, description="one completion, whole")
    answer_max_bytes: int = Field(8_000_000, ge=10_000, description="a longer answer is refused, not read")
    upload_max_bytes: int = Field(512_000_000, ge=1_000, description="a larger training file goes up in parts")
    upload_part_bytes: int = Field(64_000_000, ge=1_000, le=64 * 1024**2, description="of each part but the last")
    hyperparameters: Names = Field(
        (), description="those it takes besides n_epochs, batch_size, learning_rate_multiplier"
    )
    statuses: Table[TrainingState] = Field({}, description="its own words for the state of a fine-tuning job")
    tuned_model: Literal["ready", "checkpoint", "deployment"] = Field(
        "ready", description="what answers after training: its model, its last checkpoint, or what its owner deploys"
    )
    training_extra: Table[Any] = Field({}, description="added to the body that creates a fine-tuning job")
    client: Literal["lean", "sdk"] = Field("lean", description="what sends completions: pyreqwest or the openai SDK")

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, values: Any) -> Any:
        for name in ("api_key", "webhook_secret"):
            if isinstance(values, dict) and values.get(f"{name}_file") and not values.get(name):
                values = values | {name: read_text(Path(values[f"{name}_file"])).strip()}
        return values

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if taken := sorted(_OWN_HEADERS & {name.lower() for name in headers}):
            raise ValueError(f"must not name {', '.join(taken)}; the key goes into api_key")
        return headers

    @field_validator("training_extra")
    @classmethod
    def _not_of_requests(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(_OWN_FIELDS & set(extra)):
            raise ValueError(f"must not name {', '.join(taken)}; requests and we ourselves say that")
        return extra


class TenantSettings(BaseModel):
    """What one tenant may, where it differs from what all may."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    daily_spend_max_usd: Decimal | None = Field(
        None, ge=0, le=1_000_000, decimal_places=9, description="as the setting of this name; null: that applies"
    )
    providers: Names | None = Field(None, description="providers its jobs may name; null: all")
    active_jobs_max: int | None = Field(None, ge=0, description="as the setting of this name; null: that applies")
    requests_per_minute: int | None = Field(None, ge=0, description="as the setting of this name; null: that applies")


_AS_ALL: Final = TenantSettings()


class Settings(BaseSettings):
    """Read from DISTILL_… and DISTILL_…_FILE, in the environment and then in `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_nested_delimiter="__",
        frozen=True,
        extra="ignore",
        populate_by_name=True,
    )

    redis_url: RedisUrl = Field(
        description="redis://, rediss:// or unix:// address of the store; a wrong one is worse than none"
    )
    secret_key: Annotated[SecretStr, not_shorter_than(32)] = Field(
        description="signs webhooks, completion ids and the ledger; the same in every process"
    )
    admin_key: Annotated[HeaderText, not_shorter_than(20)] | None = Field(
        None, description="API key with every scope, tenant `local`"
    )

    openai_api_key: HeaderText | None = Field(
        None, validation_alias="OPENAI_API_KEY", description="makes a provider `openai` when set"
    )
    openai_base_url: HttpUrl = Field(
        "https://api.openai.com/v1", validation_alias="OPENAI_BASE_URL", description="of the provider `openai`"
    )
    openai_webhook_secret: SecretStr | None = Field(
        None,
        validation_alias="OPENAI_WEBHOOK_SECRET",
        description="verifies what OpenAI sends to /v1/provider_events/openai",
    )
    providers: Table[ProviderSettings] = Field({}, description="further providers by name, as JSON or nested names")
    providers_file: TablesFile | None = Field(None, description="TOML file with one table per provider")
    prices_file: PriceFile | None = Field(
        None, description="TOML file with the operator's own prices per million tokens"
    )

    daily_spend_max_usd: Decimal | None = Field(
        None, ge=0, le=1_000_000, decimal_places=9, description="a tenant's jobs spend at most this a day (UTC)"
    )
    tenants: Table[TenantSettings] = Field({}, description="what differs for some tenants, by name")
    tenants_file: TablesFile | None = Field(None, description="TOML file with one table per such tenant")

    api_host: str = Field("127.0.0.1", description="address the API listens on")
    api_port: int = Field(8600, ge=0, le=65535, description="port the API listens on")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="port of /metrics for Prometheus, on the API's address; null: off"
    )
    worker_metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of a worker's own /metrics, on the API's address; each further worker of `distill up` takes"
        " the next; null: off",
    )
    requests_per_minute: int = Field(60_000, ge=0, description="requests of one tenant; 0: any number")
    active_jobs_max: int = Field(200, ge=0, description="jobs of one tenant queued or running; 0: any number")
    waits_max: int = Field(500, ge=0, description="answers held by Prefer: wait at once, per API process")
    streams_max: int = Field(2_000, ge=0, description="event streams open at once, per API process")
    streams_per_tenant_max: int = Field(1_000, ge=0, description="event streams of one tenant, per API process")
    stream_keepalive_seconds: float = Field(15.0, gt=0, le=300, description="a silent event stream says so this often")
    body_max_bytes: int = Field(8_000_000, ge=1_000, description="largest JSON body")
    inline_prompts_max: int = Field(1_000, ge=1, description="largest number of prompts in a request body")
    prompt_max_chars: int = Field(400_000, ge=100, description="longest single prompt, all its messages together")
    file_max_bytes: int = Field(2_000_000_000, ge=1_000, description="largest uploaded file of prompts")
    file_max_prompts: int = Field(1_000_000, ge=1, description="largest number of prompts in a file")
    file_retention_days: int = Field(30, ge=1, description="a file of prompts can be named by new jobs for so long")

    worker_hands: int = Field(
        16, ge=1, le=256, description="jobs in hand at once, per worker process; half of them of one tenant"
    )
    worker_max_in_flight: int = Field(
        200, ge=1, le=10_000, description="calls at once, to all providers together, per worker process"
    )
    chunk_size: int = Field(100, ge=1, le=1_000, description="prompts leased together")
    chunk_lease_seconds: float = Field(30.0, ge=1, le=600, description="a chunk is free again when nobody renews it")
    lease_seconds: float = Field(30.0, ge=1, le=600, description="a job is free again when nobody renews it")
    takeover_grace_seconds: float = Field(2.0, ge=0, le=60, description="wait for late answers before a takeover")
    takeovers_max: int = Field(8, ge=1, description="takeovers of one job without progress before it fails")
    sweep_interval_seconds: float = Field(1.0, gt=0, le=60, description="how often each worker looks for due rows")
    sweep_grace_seconds: float = Field(5.0, ge=1, le=300, description="a due row is handed out once per this time")
    shutdown_grace_seconds: float = Field(25.0, ge=0, le=300, description="SIGTERM waits for answers in flight")

    completion_attempts_max: int = Field(8, ge=1, le=50, description="calls for one completion before it has failed")
    retry_base_seconds: float = Field(0.5, gt=0, le=60, description="first back-off after a failed call")
    retry_cap_seconds: float = Field(60.0, gt=0, le=600, description="longest back-off")
    smoke_completions: int = Field(8, ge=0, le=100, description="tried before the rest is bought; 0: no trial")

    poll_min_seconds: float = Field(1.0, gt=0, description="shortest wait between two looks at a fine-tune or batch")
    poll_max_seconds: float = Field(
        30.0, gt=0, validate_default=True, description="longest wait between two looks at a fine-tune or batch"
    )
    poll_list_from: int = Field(
        3, ge=1, description="as many due fine-tunes of one provider are read by list pages, fewer one by one"
    )
    provider_timeout_seconds: float = Field(60.0, gt=0, le=600, description="files and fine-tuning requests")
    unknown_outcome_wait_seconds: float = Field(
        120.0,
        ge=0,
        description="how long an unanswered submission of a fine-tune or batch is looked for before it is sent again",
    )
    fresh_model_wait_seconds: float = Field(600.0, ge=0, description="how long a new model may answer 404")
    stage_attempts_max: int = Field(10, ge=1, description="provider failures in a row before a stage gives up")

    webhook_timeout_seconds: float = Field(15.0, gt=0, le=60, description="one delivery attempt")
    webhook_allow_http: bool = Field(False, description="also deliver to http:// addresses")
    webhook_allow_networks: Networks = Field((), description="private networks that deliveries may reach, as CIDRs")
    webhook_ports: Ports = Field((80, 443), description="ports deliveries may use; []: any")

    cleanup_patience_seconds: float = Field(
        604_800.0, ge=0, description="how long a provider that will not delete what a deleted job left is asked again"
    )
    retention_days_max: int = Field(365, ge=1, description="longest `retention_days` a job may ask for")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe line written")
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people")
    data_dir: Path = Field(Path(".distillery"), description="embedded stack: store, keys and logs")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        environment, dotenv = Environment(settings_cls), DotEnv.instead_of(dotenv_settings)
        here, in_file = environment.env_vars, dotenv.env_vars
        in_file = {name: value for name, value in in_file.items() if name not in here}  # each is said once
        return (
            UnreadFiles(settings_cls, {**in_file, **here}),
            init_settings,
            environment,
            SecretFiles(settings_cls, here),
            dotenv,
            SecretFiles(settings_cls, in_file),
            Tables(settings_cls),
        )

    @field_validator("*", mode="before")
    @classmethod
    def _was_read(cls, value: Any) -> Any:
        if isinstance(value, Unread):
            raise named(value.why)
        return value

    @field_validator("providers_file", "prices_file", "tenants_file", mode="before")
    @classmethod
    def _unset(cls, path: Any) -> Any:
        """An empty text is what a variable that is not set leaves, and names no file, as with those of secrets."""
        return None if path == "" else path

    # Whether settings agree is asked of the last of them, so that it is told beside whatever else is wrong.

    @field_validator("poll_max_seconds")
    @classmethod
    def _not_below_the_shortest(cls, longest: float, info: ValidationInfo) -> float:
        if info.data.get("poll_min_seconds", longest) > longest:
            raise named("DISTILL_POLL_MIN_SECONDS must not be above DISTILL_POLL_MAX_SECONDS")
        return longest

    @field_validator("metrics_port")
    @classmethod
    def _not_the_apis(cls, port: int | None, info: ValidationInfo) -> int | None:
        if port is not None and port == info.data.get("api_port"):
            raise named("DISTILL_METRICS_PORT must be another than DISTILL_API_PORT")
        return port

    @field_validator("tenants")
    @classmethod
    def _of_configured_providers(
        cls, tenants: dict[str, TenantSettings], info: ValidationInfo
    ) -> dict[str, TenantSettings]:
        if not {"providers", "providers_file"} <= info.data.keys():
            return tenants  # what is configured is known once these are mended
        configured = sorted(info.data["providers"])
        complaints = [
            f"tenants.{name}.providers names {', '.join(unknown)}; configured: {', '.join(configured) or 'none'}"
            for name, tenant in tenants.items()
            if (unknown := sorted({*(tenant.providers or ())} - {*configured}))
        ]
        if complaints:
            raise named("; ".join(complaints))
        return tenants

    def tenant(self, name: str) -> TenantSettings:
        """What a tenant may, with what applies to all filled in."""
        own = self.tenants.get(name, _AS_ALL)
        shared = ("daily_spend_max_usd", "active_jobs_max", "requests_per_minute")
        return own.model_copy(update={field: getattr(self, field) for field in shared if getattr(own, field) is None})

    def day_limit_nano(self, tenant: str) -> int | None:
        """Nano-dollars a tenant may spend a day; None: any number.  Asked at every turn, so it copies no settings."""
        own = self.tenants.get(tenant, _AS_ALL).daily_spend_max_usd
        limit = self.daily_spend_max_usd if own is None else own
        return None if limit is None else int(limit * 1_000_000_000)

    @property
    def broker_url(self) -> str:
        """The store's address in Celery's spelling: it would not look at a server's certificate unless told to."""
        parts = urlsplit(self.redis_url)
        options = dict(parse_qsl(parts.query))
        database = options.pop("db", None)
        if parts.scheme == "unix":
            return f"redis+socket://{parts.netloc}{parts.path}?virtual_host={database or 0}"
        if parts.scheme == "rediss":
            options = {"ssl_cert_reqs": "required"} | options
        path = parts.path if database is None else f"/{database}"
        return parts._replace(path=path, query=urlencode(options)).geturl()

    @property
    def secret(self) -> bytes:
        return self.secret_key.get_secret_value().encode()
