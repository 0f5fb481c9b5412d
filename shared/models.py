"""The records of jobs and their prompts: frozen values, stored as JSON by msgspec.  A changed job is a new value.

Times are unix milliseconds (`*_at_ms`), money is whole nano-dollars (`*_nano`): exact in Python, JSON and Lua alike."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

import msgspec

from shared.ids import FileId, JobId, TenantId
from shared.lifecycle import JobStatus, PausedReason, Stage

JsonObject: TypeAlias = dict[str, Any]
NANO: Final = 1_000_000_000  # nano-dollars in a dollar
STUDENTS_MAX: Final = 8  # of one job
CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # in no name: those go into logs, addresses and headers


def usd(nano: int) -> str:
    """Nano-dollars as the decimal string the API shows, without trailing zeros: 2_100_000 → "0.0021"."""
    if nano % NANO == 0:  # of a new job most are nothing
        return str(nano // NANO)
    text = format(Decimal(nano) / NANO, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of every stored record."""


# --- what the customer asked for -------------------------------------------------------------------------------------


INSTRUCTIONS: Final = frozenset({"system", "developer"})  # roles that instruct the model rather than ask it


class Prompt(Record, frozen=True, kw_only=True):
    """One question to the teacher.

    messages: as Chat Completions takes them, system message included.  completion: an assistant message the caller
    already has; not asked again.  reference: the right answer where it is known; lets graders score the teacher.
    origin: of a prompt that was made from a source prompt (in the holdout, for a judge), that one's index.  place: of a
    judge's prompt, which score it gives.  sample: in the holdout, which of the teacher's answers was kept.
    finish_reason: of a completion that the provider has stored; one from a caller counts as whole."""

    messages: list[JsonObject]
    key: str | None = None
    tools: list[JsonObject] | None = None
    response_format: JsonObject | None = None
    completion: JsonObject | None = None
    reference: str | None = None
    origin: int | None = None
    place: int | None = None
    sample: int = 0
    finish_reason: str | None = None

    @property
    def is_bare(self) -> bool:
        """Whether it has no instructions of its own, so takes its job's."""
        for message in self.messages:  # noqa: SIM110  # of a thousand prompts; `any` takes three times as long
            if message.get("role") in INSTRUCTIONS:
                return False
        return True


class PromptDefaults(Record, frozen=True, kw_only=True):
    """What a job says once for all prompts that do not say it themselves."""

    system_prompt: str | None = None
    tools: list[JsonObject] | None = None
    response_format: JsonObject | None = None


class PromptCounts(Record, frozen=True, kw_only=True):
    """What the rules of a job need to know of prompts that nobody wants to read again.

    asked: those without a completion.  bytes: of the parts of their requests that cost tokens, as JSON.
    unreferenced: those without a reference.  unpairable: those without a completion that can give no pair for dpo
    (shared/exports.py).  Both 0 for files from before they were counted.
    bare, toolless, formatless: those without instructions, tools, response format of their own.
    longest_chars: of one prompt's messages together, among all and among the bare ones."""

    prompts: int = 0
    asked: int = 0
    bytes: int = 0
    bare: int = 0
    toolless: int = 0
    formatless: int = 0
    longest_chars: int = 0
    longest_bare_chars: int = 0
    unreferenced: int = 0
    unpairable: int = 0


class PromptFile(Record, frozen=True, kw_only=True):
    """An uploaded file of prompts.  bytes, sha256: of the file as it was sent.  chunk_size: prompts per stored chunk.

    From expires_at_ms on no new job can name it; jobs that do keep its prompts until the last of them is purged."""

    id: FileId
    tenant: TenantId
    filename: str | None
    bytes: int
    sha256: str
    counts: PromptCounts
    chunk_size: int
    created_at_ms: int
    expires_at_ms: int


class Teacher(Record, frozen=True, kw_only=True):
    """mode: `live` asks prompt by prompt; `batch` hands them to the provider in files, at half the price.
    samples: answers to each prompt, of which curating keeps the best."""

    provider: str
    model: str
    params: JsonObject = {}
    mode: Literal["live", "batch"] = "live"
    samples: int = 1


class Student(Record, frozen=True, kw_only=True):
    """hyperparameters: n_epochs, batch_size, learning_rate_multiplier (and beta for dpo), each "auto" or a number, and
    what else the provider takes.  integrations: as fine_tuning.jobs takes them."""

    provider: str
    model: str
    method: Literal["supervised", "dpo"] = "supervised"
    hyperparameters: JsonObject = {}
    suffix: str | None = None
    seed: int | None = None
    integrations: list[JsonObject] = []


class Curation(Record, frozen=True, kw_only=True):
    """min_accepted: fewer kept completions fail the job.  max_output_chars: longer answers are `truncated`.
    grader: gives each usable answer a score, as in `Evaluation`.  min_score: lower ones are rejected."""

    min_accepted: int = 10
    dedupe: bool = True
    response_schema: JsonObject | None = None
    max_output_chars: int | None = None
    grader: JsonObject | None = None
    min_score: float | None = None


class Split(Record, frozen=True, kw_only=True):
    """Shares of the prompts, 0 <= share < 1; what is left is the training split."""

    validation: float = 0.1
    holdout: float = 0.2
    seed: int = 0


class Evaluation(Record, frozen=True, kw_only=True):
    """graders: objects with a `type` (shared/graders.py).  min_score: a student below it gets a warning."""

    graders: list[JsonObject] = msgspec.field(default_factory=lambda: [{"type": "text_similarity"}])
    min_score: float | None = None


class Budget(Record, frozen=True, kw_only=True):
    max_cost_nano: int | None = None
    on_limit: Literal["pause", "fail"] = "pause"


class WebhookTarget(Record, frozen=True, kw_only=True):
    """Where to tell of this job's events.  events: types as in docs; the default is what ends or stops a job."""

    url: str
    events: list[str]


class StoredFilter(Record, frozen=True, kw_only=True):
    """Which completions that a provider has stored are meant.  model: None for the teacher's."""

    provider: str
    model: str | None = None
    metadata: dict[str, str] = {}


class JobSpec(Record, frozen=True, kw_only=True):
    """A distillation request with its defaults filled in.  The prompts lie apart, in chunks.

    file_id: where they are a file's, also by way of the earlier job `source_job_id`."""

    teacher: Teacher
    students: list[Student]
    source: Literal["inline", "file", "job", "stored_completions"]
    file_id: FileId | None = None
    source_job_id: JobId | None = None
    stored: StoredFilter | None = None
    name: str | None = None
    system_prompt: str | None = None
    store: bool = False
    metadata: dict[str, str] = {}
    curation: Curation = Curation()
    split: Split = Split()
    evaluation: Evaluation = Evaluation()
    budget: Budget = Budget()
    deadline_seconds: int = 86_400
    retention_days: int = 30
    webhook: WebhookTarget | None = None


# --- how far it has come ---------------------------------------------------------------------------------------------


class ProviderAnswer(Record, frozen=True, kw_only=True):
    """What a provider said when it failed us, without its message: that may carry a prompt or a key."""

    status: int | None = None
    code: str | None = None
    request_id: str | None = None


class JobError(Record, frozen=True, kw_only=True):
    code: str
    message: str
    param: str | None = None
    stage: Stage | None = None
    retryable: bool = False
    provider: ProviderAnswer | None = None


class Advice(Record, frozen=True, kw_only=True):
    """Something the customer should know that does not stop the job."""

    code: str
    message: str


class StudentEndpoint(Record, frozen=True, kw_only=True):
    """Where a student answers that its owner has deployed.  base_model: what answers there as the untrained student;
    None for the student's own provider and model.  told_at_ms: by which the same place, told again after nobody
    answered there, is another."""

    provider: str
    model: str
    base_model: str | None = None
    told_at_ms: int = 0

    def is_same_place(self, other: StudentEndpoint | None) -> bool:
        return other is not None and msgspec.structs.replace(other, told_at_ms=self.told_at_ms) == self


class MetricPoint(Record, frozen=True, kw_only=True):
    """One step of a training, as the provider measured it; None for what it did not."""

    step: int
    train_loss: float | None = None
    train_mean_token_accuracy: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None
    full_valid_loss: float | None = None
    full_valid_mean_token_accuracy: float | None = None


class Checkpoint(Record, frozen=True, kw_only=True):
    """A model on the way to the fine-tuned one.  step: how far it was trained.  model: its name, to be asked by.
    created_at: unix s."""

    id: str
    created_at: int
    step: int
    model: str | None
    metrics: MetricPoint | None = None


class FineTune(Record, frozen=True, kw_only=True):
    """One student on its way.  `step` is written before each provider call, so a crash is always found half-way.

    step: new → uploading → uploaded → intent → submitted → ended, by way of awaiting where the owner deploys the model.
    endpoint: where the student answers when it is not `fine_tuned_model` at the student's provider; while the student
    is awaiting, where it was found not to answer.  replaced: those told before it.
    status, fine_tuned_model, …: the provider's words, as last seen.  intent_at_ms: when submission was first meant.
    hold: what became of the owner's pause at the provider: it is paused there, it trains on, or it has been asked to go
    on and does not.  last_event_id, last_event_at (unix s): of the newest of its events that is read.
    events_at_ms: when they were read.  unconfirmed_nano: the most that a training may cost of which nobody knows what
    the provider bills."""

    step: Literal["new", "uploading", "uploaded", "intent", "submitted", "awaiting", "ended"] = "new"
    training_file: str | None = None
    validation_file: str | None = None
    intent_at_ms: int | None = None
    submissions: int = 0
    fine_tuning_job_id: str | None = None
    status: str | None = None
    fine_tuned_model: str | None = None
    shutdown_date: str | None = None
    step_number: int | None = None
    total_steps: int | None = None
    trained_tokens: int | None = None
    estimated_finish_at: int | None = None
    ended_at_ms: int | None = None
    last_event_id: str | None = None
    last_event_at: int | None = None
    hold: Literal["paused", "refused", "resuming"] | None = None
    checkpoints: list[Checkpoint] = []
    events_at_ms: int | None = None
    reserved_nano: int = 0
    unconfirmed_nano: int = 0
    cost_nano: int | None = None
    endpoint: StudentEndpoint | None = None
    replaced: list[StudentEndpoint] = []
    error: JobError | None = None


class BatchRun(Record, frozen=True, kw_only=True):
    """One batch of the teacher's prompts on its way.  `step` is written before each provider call.

    step: new (its calls are being begun) → uploading → uploaded → intent → submitted → ended; from intent, which is
    written before a submission, back to where it was when the provider turned that one away.
    first, end: the prompts looked at for it, by index, `end` not included; which of them it asks is told by the calls
    begun in its name.  more: prompts from `end` on have yet to be looked at.  attempt: 1, and one more after each batch
    that left prompts to be asked again, `released` of them.  submissions: that the provider may have received.  status,
    completed, failed, …: the provider's words, as last seen.  others: ids of those that earlier submissions have
    started besides, once they are in the books; others_nano: what their answers cost.  error: why the job has to
    end."""

    step: Literal["new", "uploading", "uploaded", "intent", "submitted", "ended"] = "new"
    first: int = 0
    end: int = 0
    more: bool = False
    attempt: int = 1
    requests: int = 0
    input_file: str | None = None
    intent_at_ms: int | None = None
    submissions: int = 0
    batch_id: str | None = None
    status: str | None = None
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    others: list[str] = []
    others_nano: int = 0
    released: int = 0
    crowded_out: bool = False
    cancelled_at_ms: int | None = None
    ended_at_ms: int | None = None
    error: JobError | None = None


class Import(Record, frozen=True, kw_only=True):
    """How far the completions that a provider stores have been read.

    after: id of the last one looked at.  chunks, prompts: what is written of them.  skipped: those left out, by reason.
    complete: there are no more, or as many as a job may have."""

    after: str | None = None
    chunks: int = 0
    prompts: int = 0
    skipped: dict[str, int] = {}
    complete: bool = False


class DatasetFile(Record, frozen=True, kw_only=True):
    """One split of the dataset in one format, byte for byte.  sha256, bytes: None where they were not kept."""

    split: Literal["train", "validation", "holdout"]
    format: Literal["openai_chat", "openai_dpo", "raw"]
    lines: int
    sha256: str | None = None
    bytes: int | None = None


class Manifest(Record, frozen=True, kw_only=True):
    """The identity of the curated dataset.  sha256, train_bytes: of the training split's JSONL in OpenAI's chat format.

    files: all formats; none in manifests from before they were kept.  unpaired: examples without a pair in
    `openai_dpo`, by reason, where it is one of the formats."""

    sha256: str
    holdout_sha256: str
    train: int
    validation: int
    holdout: int
    rejected: dict[str, int]
    train_bytes: int = 0
    files: list[DatasetFile] = []
    unpaired: dict[str, int] = {}

    def file(self, split: str, format: str) -> DatasetFile | None:
        """None where the dataset does not have this format, or nothing is known of it."""
        found = next((file for file in self.files if (file.split, file.format) == (split, format)), None)
        if found is not None or format != "openai_chat":
            return found
        match split:
            case "train":
                return DatasetFile(
                    split="train",
                    format="openai_chat",
                    lines=self.train,
                    sha256=self.sha256,
                    bytes=self.train_bytes or None,
                )
            case "validation":
                return DatasetFile(split="validation", format="openai_chat", lines=self.validation)
            case "holdout":
                return DatasetFile(
                    split="holdout", format="openai_chat", lines=self.holdout, sha256=self.holdout_sha256
                )
            case _:
                return None


class Counters(Record, frozen=True, kw_only=True):
    """settled = accepted + rejected + failed, of the teacher's completions, all samples.  possibly_billed: calls whose
    answer was lost on the way (a crash, a broken connection) and that the provider may have billed all the same."""

    prompts_total: int = 0
    settled: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    reused: int = 0
    possibly_billed: int = 0
    unpriced_calls: int = 0


class Money(Record, frozen=True, kw_only=True):
    """All in nano-dollars.  reserved: upper bounds of calls in flight.  unconfirmed: upper bounds of lost calls,
    and of trainings whose bill nobody knows.  spent + reserved + unconfirmed never exceeds the limit.
    generating: the teacher's part of spent; curating: that of the judge who rates its answers.
    told_share: percent of the limit of whose spending the owner has been told.
    needs: what the next step of a job that waits for more budget, or for another day's spending, may cost."""

    estimated_low_nano: int | None = None
    estimated_high_nano: int | None = None
    spent_nano: int = 0
    reserved_nano: int = 0
    unconfirmed_nano: int = 0
    limit_nano: int | None = None
    generating_nano: int = 0
    curating_nano: int = 0
    told_share: int = 0
    needs_nano: int = 0

    @property
    def used_nano(self) -> int:
        """What counts against the limit."""
        return self.spent_nano + self.reserved_nano + self.unconfirmed_nano


class Usage(Record, frozen=True, kw_only=True):
    """Tokens of one call, as the provider counted them.  cached, cache_write: parts of prompt_tokens that were read
    from or written to its prompt cache; reasoning: the hidden part of completion_tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class Job(Record, frozen=True, kw_only=True):
    """failing: what the job ends with once nothing of it trains any more.
    prompt_defaults: what the stored source prompts do not say themselves; `ContentStore.prompt_chunk` adds it.
    endpoints: as the owner has told them, by student; the worker takes each into its `FineTune`."""

    id: JobId
    tenant: TenantId
    spec: JobSpec
    status: JobStatus
    version: int
    created_at_ms: int
    stage: Stage | None = None
    started_at_ms: int | None = None
    finished_at_ms: int | None = None
    deadline_at_ms: int | None = None
    expires_at_ms: int | None = None
    paused_reason: PausedReason | None = None
    counters: Counters = Counters()
    money: Money = Money()
    fine_tunes: list[FineTune] = []
    batches: list[BatchRun] = []
    manifest: Manifest | None = None
    warnings: list[Advice] = []
    error: JobError | None = None
    failing: JobError | None = None
    has_results: bool = False
    retry_of: JobId | None = None
    stage_attempts: int = 0
    usage: Usage = Usage()
    chunk_size: int = 100
    prompt_defaults: PromptDefaults | None = None
    imported: Import | None = None
    endpoints: dict[int, StudentEndpoint] = {}

    def untaken_endpoint(self, number: int) -> StudentEndpoint | None:
        """What the owner has told of a student and no worker has taken up yet."""
        told = self.endpoints.get(number)
        return None if told == self.fine_tunes[number].endpoint else told

    def endpoint(self, number: int) -> StudentEndpoint | None:
        """Where a student answers, as told last; None while its owner has yet to tell, or to tell another place."""
        tune = self.fine_tunes[number]
        return self.untaken_endpoint(number) or (None if tune.step == "awaiting" else tune.endpoint)


class Event(Record, frozen=True, kw_only=True):
    """One line of a job's history.  sequence: 1, 2, 3, … per job, assigned by the store."""

    id: str
    level: Literal["info", "warn", "error"]
    type: Literal["status", "message", "metrics"]
    message: str
    created_at_ms: int
    stage: Stage | None = None
    data: JsonObject = {}
    sequence: int = 0
