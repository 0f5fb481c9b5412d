"""The map of the database: one function per key, with its type, fields and lifetime.

Keys of one job share the hash tag {job_id} and live until the job is purged; those of a file share {file_id}.
Everything starts with `d:`."""

from __future__ import annotations

import hashlib
from typing import Final

from shared.ids import DeliveryId, EndpointId, FileId, JobId, KeyId, TenantId
from shared.lifecycle import JobStatus


def job(job_id: JobId) -> str:
    """HASH, the row: tenant, status, stage, version, spec, … (JSON where it is not a scalar), the lease (fence, owner,
    lease_until_ms, takeovers, commits), runs (times it began or went on to run), the money (spent_nano, reserved_nano,
    unconfirmed_nano, possibly_billed), where the prompts lie when they are a file's (source_chunks: that key), and what
    none of them says itself (prompt_defaults).  once: the key of its idempotency record.  deleted_at_ms: nobody sees it
    any more; counted (JSON): what its purge began with; once purged, only tenant, deleted_at_ms, purged_at_ms and
    receipt (JSON) are left, for 30 days.
    let_go_day: see commit.lua.  needs_nano: what a job that waits for money needs to go on."""
    return f"d:{{{job_id}}}:job"


def events(job_id: JobId) -> str:
    """STREAM, append-only: entry `<sequence>-0` with field `e`, the event as JSON."""
    return f"d:{{{job_id}}}:events"


def results(job_id: JobId) -> str:
    """STRING, JSON: the verdict."""
    return f"d:{{{job_id}}}:results"


def metrics(job_id: JobId) -> str:
    """HASH, `<student>/<step>` → JSON of a point of the training curve; about 2,000 of a student."""
    return f"d:{{{job_id}}}:metrics"


def prompts(job_id: JobId, prompt_set: str) -> str:
    """HASH, chunk number → zstd-compressed JSONL of prompts.  Sets: `source`, `holdout` once it is split off, and
    what a judge is asked, under the name of its pass."""
    return f"d:{{{job_id}}}:prompts:{prompt_set}"


def file(file_id: FileId) -> str:
    """HASH, the row of an uploaded file of prompts: row (JSON), expires_at_ms, deleted (when its owner has deleted it
    and jobs still use it).  Lives until it expires, and as long as a job uses it."""
    return f"d:{{{file_id}}}:file"


def file_prompts(file_id: FileId) -> str:
    """HASH, chunk number → zstd-compressed JSONL of prompts, like `prompts`.  Lives as long as the file's row; during
    the upload, when there is no row yet, an hour after the last write."""
    return f"d:{{{file_id}}}:file:prompts"


def file_jobs(file_id: FileId) -> str:
    """SET, ids of the jobs whose prompts are this file's, until they are purged."""
    return f"d:{{{file_id}}}:file:jobs"


def tenant_files(tenant: TenantId) -> str:
    """ZSET of file ids, score 0, so in order of creation.  May hold some that have expired."""
    return f"d:t:{tenant}:files"


def purging(job_id: JobId) -> str:
    """STRING, there while a worker purges the job; lives as long as a lease, renewed."""
    return f"d:{{{job_id}}}:purging"


def cleanup(job_id: JobId) -> str:
    """HASH, what is to be cleaned up at the providers of a deleted job, without content: row (JSON), token of the
    worker that is at it, until_ms (end of its lease, or when the next look is due), models ("1": the fine-tuned models
    shall go, too).  Lives until it is over, and 30 days more."""
    return f"d:{{{job_id}}}:cleanup"


def decisions(job_id: JobId) -> str:
    """HASH, chunk number of the source prompts → zstd-compressed JSON list of decisions, one per prompt, of the
    teacher's first samples; `<chunk>.<sample>` of the others, with null for a prompt that was not asked again."""
    return f"d:{{{job_id}}}:decisions"


def pass_row(job_id: JobId, name: str) -> str:
    """HASH of one pass (one model answering one prompt set): prompts, chunk_size, next (first chunk never claimed),
    done (chunks), settled, accepted, rejected, failed, reused, smoke (calls allowed before the trial is passed; empty
    when it is), lost (calls without an answer, see pass_calls), halt (JSON: why nothing more may start), halt_run (the
    job's `runs` then; a halt of an earlier run is void), waits_for (id of a job that was buying the same at
    waits_at_ms), waits_told (the one of which the owner was told), complete."""
    return f"d:{{{job_id}}}:pass:{name}"


def open_passes(tenant: TenantId) -> str:
    """ZSET, the tenant's open passes `<job id>/<pass name>` → unix ms of opening: what pumps may draw from.  There as
    long as the tenant is in `OPEN`."""
    return f"{OPEN}:{tenant}"


def pass_chunks(job_id: JobId, name: str) -> str:
    """ZSET, claimed and unfinished chunks of a pass; score: end of the lease in unix ms, 0 when given back."""
    return f"d:{{{job_id}}}:pass:{name}:chunks"


def pass_claims(job_id: JobId, name: str) -> str:
    """HASH, chunk number → token of the worker that holds it."""
    return f"d:{{{job_id}}}:pass:{name}:claims"


def pass_calls(job_id: JobId, name: str) -> str:
    """HASH, calls begun and not settled.  Field `<index>`: `<call>|<reserved nano>`;
    field `<index>|<call>`: `<reserved nano>|<day>` of a call whose answer was lost that day, kept against the
    budget."""
    return f"d:{{{job_id}}}:pass:{name}:calls"


def completions(job_id: JobId, name: str, chunk: int | str) -> str:
    """HASH, index of the prompt → zstd-compressed JSON of the completion.  First one wins; never changed."""
    return f"d:{{{job_id}}}:pass:{name}:c:{chunk}"


def tenant_jobs(tenant: TenantId, status: JobStatus | None = None) -> str:
    """ZSET of job ids, score 0, so in order of creation; one for all jobs and one per status."""
    return f"d:t:{tenant}:jobs" + (f":{status}" if status else "")


def tenant_metadata(tenant: TenantId, name: str, value: str) -> str:
    """ZSET of job ids, score 0: the tenant's jobs that carry this pair of metadata."""
    pair = hashlib.sha256(f"{name}\0{value}".encode()).hexdigest()[:32]
    return f"d:t:{tenant}:meta:{pair}"


def delivery(delivery_id: DeliveryId) -> str:
    """HASH of one webhook delivery: `row` (JSON), `lease_until_ms` (of the attempt being made, or until the next one is
    due), `attempting` while one is made, `settled` when there will be none.  Expires 30 days after the event, or after
    it was last sent again on request."""
    return f"d:delivery:{delivery_id}"


def job_deliveries(job_id: JobId) -> str:
    """ZSET of delivery ids, score 0: the delivery log of one job's webhooks."""
    return f"d:{{{job_id}}}:deliveries"


def webhook_endpoints(tenant: TenantId) -> str:
    """HASH, endpoint id → the endpoint as JSON, with the secrets that sign what it is sent.  All of a tenant's in one
    place, because every event is held against all of them."""
    return f"d:t:{tenant}:webhooks"


def endpoint_deliveries(tenant: TenantId, endpoint_id: EndpointId) -> str:
    """ZSET of delivery ids, score 0, the newest 1,000: the delivery log of one endpoint.  May hold some that are gone;
    lives 30 days after the last one."""
    return f"d:t:{tenant}:webhook:{endpoint_id}"


def catalogue(provider: str) -> str:
    """STRING, JSON: the provider's models by id, when they were read and how that went.  Lives a day after that."""
    return f"d:catalogue:{provider}"


def tuned_models(provider: str) -> str:
    """HASH, fine-tuned model → the tenant whose job made it.  Lives on after the job, as the model
    does, until that is deleted at the provider."""
    return f"d:tuned:{provider}"


def models_made_lately(provider: str) -> str:
    """ZSET, fine-tuned models that our jobs have made, by unix ms.  Of the last hour; lives an hour after the last."""
    return f"d:tuned:{provider}:lately"


def spending(tenant: TenantId) -> str:
    """HASH, what all jobs of a tenant hold at this moment: reserved_nano.  Lives as long as the tenant."""
    return f"d:t:{tenant}:spending"


def day(tenant: TenantId, number: int | str) -> str:
    """HASH, what a tenant's jobs have spent in one day (UTC, days since 1970 by the server's clock): spent_nano,
    unconfirmed_nano (upper bounds of calls lost that day), prompt_tokens, completion_tokens, cached_tokens,
    cache_write_tokens, reasoning_tokens, bought and reused (completions).  Lives 400 days."""
    return f"d:t:{tenant}:day:{number}"


def days(tenant: TenantId) -> str:
    """ZSET, number of a day → the same number: the days of the last 400 on which the tenant has spent something."""
    return f"d:t:{tenant}:days"


def allowance(tenant: TenantId) -> str:
    """HASH, what is left of a tenant's requests: tokens, at_ms.  Lives two minutes after its last use."""
    return f"d:t:{tenant}:requests"


def api_key(digest: str) -> str:
    """STRING, JSON: the API key with this SHA-256, until it is revoked."""
    return f"d:key:{digest}"


def api_key_place(key_id: KeyId) -> str:
    """STRING, the SHA-256 under which the key with this id lies."""
    return f"d:key_id:{key_id}"


def api_keys(tenant: TenantId | None) -> str:
    """ZSET of key ids, score 0, so in order of creation; one per tenant and one (None) for all."""
    return "d:keys" if tenant is None else f"d:t:{tenant}:keys"


def once(tenant: TenantId, place: str) -> str:
    """HASH of one idempotency key: fingerprint of the request; while it is served, owner; then job (its id) and body
    (the answer, zstd-compressed; empty once the job was deleted).  Lives 24 h from the answer."""
    return f"d:t:{tenant}:once:{place}"


def worker(worker_id: str) -> str:
    """STRING with a time to live: JSON of a worker process that is alive (pid, version, calls in flight)."""
    return f"d:worker:{worker_id}"


def ledger(tenant: TenantId, fingerprint: str) -> str:
    """STRING, one completion the tenant has paid for (`paid|<job>|<pass>|<chunk>|<index>`) or is paying for right now
    (`call|<call>|<job row>|<pass row>|<chunk>|<index>`; void when nobody holds the chunk for that call any more).
    Lives as long as the job that paid is kept; a call's entry 20 minutes."""
    return f"d:t:{tenant}:ledger:{fingerprint}"


def rate(endpoint: str, model: str) -> str:
    """HASH, the shared rate of one model at one endpoint: rpm, tpm (limits, 0 unknown), share (of them in use, cut and
    grown back), requests, tokens (in the bucket), at_ms, pause_until_ms, cut_at_ms, second:0…3 (calls per second).
    Lives a day after its last use."""
    return f"d:rate:{endpoint}:{model}"


def awaited(provider: str, object_id: str) -> str:
    """STRING, id of the job that waits for this fine-tuning job or batch of the provider's.  Lives three days after
    the last look at it."""
    return f"d:p:{provider}:awaited:{object_id}"


def followed(provider: str) -> str:
    """HASH, fine-tuning job id → JSON of how it is followed (`followed.Pace`).  What nobody has looked at for a day is
    dropped by the next reading; lives three days after the last look."""
    return f"d:p:{provider}:followed"


def noticeboard(provider: str) -> str:
    """HASH, fine-tuning job id → `<unix ms of reading> <the job as JSON, or - when it was not on the list>`: what one
    worker has read for all.  Lives a day after the last reading."""
    return f"d:p:{provider}:board"


def reading(provider: str) -> str:
    """STRING, there while a worker reads the provider's list of fine-tuning jobs; a few seconds after it died."""
    return f"d:p:{provider}:reading"


def unlisted(provider: str) -> str:
    """STRING, there for ten minutes after a provider turned out to have no list of fine-tuning jobs."""
    return f"d:p:{provider}:unlisted"


def provider_event(provider: str, event_id: str) -> str:
    """STRING, there for 15 minutes after the provider sent an event with this id: longer than its signature holds."""
    return f"d:p:{provider}:event:{event_id}"


def hint(job_id: JobId) -> str:
    """STRING, there from a provider's event about the job until a worker looks; a minute at most."""
    return f"d:{{{job_id}}}:hint"


DUE: Final = "d:due"
"""ZSET, the one clock: `job:<id>`, `dlv:<id>`, `exp:<id>` (a job to be purged), `cln:<id>` (one to be cleaned up at
its providers), `cat:<provider>` (its models to be read) or `out:<id>` (an ended job whose calls may still be out) →
unix ms when somebody must look."""

OPEN: Final = "d:open"
"""ZSET, tenants with open passes → unix ms when the first of them was opened: whom pumps may draw for.  (Versions that
kept all passes in one ZSET `d:passes` left nothing that matters there: whoever looks at a running job opens its pass
again.)"""

TENANTS: Final = "d:tenants"
"""SET, tenants that have ever had a job: over what metrics add up."""

QUEUE: Final = "distillery"
"""LIST, Celery's own: bells that no worker has heard yet."""

WORKERS: Final = "d:workers"
"""ZSET, worker id → unix ms until which it counts as alive."""
