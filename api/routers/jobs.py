"""Jobs: asked for, looked at, steered."""

from __future__ import annotations

import hashlib
import re
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from api.content import Filters, completion, completions, dataset_head, dataset_lines, matches
from api.deps import (
    METADATA_DOCS,
    Caller,
    MetadataFilter,
    Services,
    Wired,
    aside,
    authenticate,
    body_docs,
    json_body,
    key_held,
    known_query_only,
    requires,
)
from api.idempotency import IdempotencyKey, repeatable
from api.problems import RETRY_AFTER_SECONDS, documented
from api.schemas.common import Page, page_of
from api.schemas.completions import CompletionOut
from api.schemas.datasets import ManifestOut
from api.schemas.deletions import DeletedJobOut
from api.schemas.job_requests import EndpointIn, JobCreate, Resume
from api.schemas.jobs import EstimateOut, EventOut, JobOut, job_json
from api.shortcuts import Accepting, Revalidated, etag_of, no_change
from api.streaming import Stream, open_event_stream, wants_events
from api.waiting import WaitSeconds, hold
from shared.curation import Reason, SplitName
from shared.errors import BadRequest, JobNotFinished, NotFound, Unauthenticated
from shared.exports import Format
from shared.ids import event_id, locate_event
from shared.lifecycle import TERMINAL, JobStatus
from shared.models import STUDENTS_MAX, Job, JobSpec
from shared.planning import Plan
from shared.preflight import require_allowed, require_provider
from shared.store.idempotency import Kept

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)

Reader = Annotated[Caller, requires("jobs:read")]
Writer = Annotated[Caller, requires("jobs:write")]
DataReader = Annotated[Caller, requires("data:read")]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="`last_id` of the page before")]
Order = Annotated[Literal["asc", "desc"], Query()]
Moment = Annotated[int | None, Query(ge=0, le=100_000_000_000, description="unix seconds, not included")]
IfNoneMatch = Annotated[str | None, Header()]
_SEQUENCE_DIGITS: Final = 15
_AS_KNOWN: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "nothing has changed"}}


def _shown(job: Job, response: Response) -> JobOut:
    response.headers["ETag"] = etag_of(job.version)
    response.headers["Cache-Control"] = "private, no-cache"
    return JobOut.of(job)


async def _accepted(
    job: Job | Kept, services: Services, request: Request, caller: Caller, wait_seconds: int
) -> Response:
    """The answer to a new job; for a repeated request the same, byte by byte, unless it asks to be held."""
    job_id, body = (job.job_id, job.body) if isinstance(job, Kept) else (job.id, job_json(job))
    headers = {
        "Location": f"/v1/jobs/{job_id}",
        "Retry-After": str(RETRY_AFTER_SECONDS),
        "ETag": etag_of(1),
        "Cache-Control": "private, no-cache",
    }
    if isinstance(job, Kept):
        headers["Idempotent-Replayed"] = "true"
    applied = {}
    with suppress(Unauthenticated):  # revoked meanwhile: the job was accepted all the same
        applied = await hold(services, request, caller, job_id, wait_seconds)
    if applied:
        now = await services.jobs.get(caller.tenant, job_id)
        body, headers = job_json(now), headers | applied | {"ETag": etag_of(now.version)}
    return Response(body, 202, headers, "application/json")


async def create_job(
    caller: Writer,
    body: Annotated[JobCreate, json_body(JobCreate)],
    services: Wired,
    key: IdempotencyKey,
    wait_seconds: WaitSeconds,
    request: Request,
    validate_only: Annotated[bool, Query()] = False,
) -> Any:
    """Queue a distillation job.  With the answer in hand, the job survives a crash of every process."""
    if validate_only:
        plan = await _plan(caller, services, body, request)
        return Response(EstimateOut.of(plan).model_dump_json(), 200, media_type="application/json")
    async with repeatable(services.store, caller.tenant, "POST /v1/jobs", key, body, job_json) as once:
        if isinstance(once, Kept):
            new: Job | Kept = once
        else:
            plan = await _plan(caller, services, body, request)
            new = await services.jobs.accept(caller.tenant, plan, once=once)
    return await _accepted(new, services, request, caller, wait_seconds)


router.add_api_route(
    "",
    create_job,
    methods=["POST"],
    status_code=202,
    response_model=JobOut,
    responses=documented(400, 409, 413, 415)
    | {200: {"model": EstimateOut, "description": "`validate_only`: nothing was stored or spent"}},
    openapi_extra=body_docs(JobCreate),
    route_class_override=Accepting,
)


async def _plan(caller: Caller, services: Services, body: JobCreate, request: Request) -> Plan:
    spec = body.to_spec()
    require_allowed(spec, caller.providers)
    return await services.preflight.cleared(caller.tenant, await _planned(caller, services, body, spec, request))


async def _planned(caller: Caller, services: Services, body: JobCreate, spec: JobSpec, request: Request) -> Plan:
    if spec.source == "file":
        return await services.planner.from_file(caller.tenant, spec)
    if spec.source == "job":
        return await services.planner.from_job(caller.tenant, spec)
    if spec.source == "stored_completions":
        return services.planner.from_stored(spec)
    size: int = request.state.body_bytes
    prompts = await aside(size, body.to_prompts, most=services.settings.inline_prompts_max)
    return await aside(size, services.planner.plan, spec, prompts)


@router.get("", responses=documented(400), openapi_extra=METADATA_DOCS)
async def list_jobs(
    caller: Reader,
    services: Wired,
    metadata: MetadataFilter,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    status: Annotated[JobStatus | None, Query()] = None,
    created_after: Moment = None,
    created_before: Moment = None,
) -> Page[JobOut]:
    """Your jobs, newest first."""
    jobs, more = await services.jobs.page(
        caller.tenant,
        limit=limit,
        after=after,
        newest_first=order == "desc",
        status=status,
        metadata=metadata,
        created_after=created_after,
        created_before=created_before,
    )
    return page_of([JobOut.of(job) for job in jobs], has_more=more)


async def get_job(
    job_id: str,
    caller: Reader,
    services: Wired,
    response: Response,
    wait_seconds: WaitSeconds,
    request: Request,
    if_none_match: IfNoneMatch = None,
) -> Any:
    """The job as it stands.  With `If-None-Match`, 304 while nothing has changed."""
    applied = {}
    if wait_seconds:
        await services.jobs.version(caller.tenant, job_id)  # none of another tenant's
        applied = await hold(services, request, caller, job_id, wait_seconds)
        response.headers.update(applied)
    if if_none_match is not None:
        etag = etag_of(await services.jobs.version(caller.tenant, job_id))
        if matches(if_none_match, etag):
            return no_change(etag, applied)
    return _shown(await services.jobs.get(caller.tenant, job_id), response)


router.add_api_route(
    "/{job_id}",
    get_job,
    methods=["GET"],
    response_model=JobOut,
    responses=documented(404, 410) | _AS_KNOWN,
    route_class_override=Revalidated,
)


@router.delete(
    "/{job_id}",
    status_code=202,
    responses=documented(404, 410, 409) | {200: {"model": DeletedJobOut, "description": "purged"}},
)
async def delete_job(
    job_id: str,
    caller: Writer,
    services: Wired,
    response: Response,
    delete_models: Annotated[bool, Query()] = False,
) -> DeletedJobOut:
    """Delete an ended job: prompts, completions, dataset, events, deliveries, verdict; and at its providers the files
    and stored completions that it made, with `delete_models` also its fine-tuned models.  202 until that is done or has
    been tried for long enough, then 200 with what was removed and what is left, for 30 days.  Everything else about the
    job is 410."""
    receipt = await services.jobs.delete(caller.tenant, job_id, delete_models=delete_models)
    response.status_code = 200 if receipt.complete else 202
    return DeletedJobOut.of(receipt)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    responses=documented(404, 410, 409) | {200: {"model": JobOut, "description": "it is cancelled"}},
)
async def cancel_job(job_id: str, caller: Writer, services: Wired, response: Response) -> JobOut:
    """Stop the job.  202 while its worker lets go, 200 once it is cancelled.  Paid work stays and can be exported."""
    job = await services.jobs.cancel(caller.tenant, job_id)
    response.status_code = 200 if job.status is JobStatus.CANCELLED else 202
    return _shown(job, response)


@router.post("/{job_id}/pause", responses=documented(404, 410, 409))
async def pause_job(job_id: str, caller: Writer, services: Wired, response: Response) -> JobOut:
    """Start no further calls until resumed; a queued job is held before its first.  Fine-tuning jobs are paused too,
    where the provider does that."""
    return _shown(await services.jobs.pause(caller.tenant, job_id), response)


@router.post(
    "/{job_id}/resume",
    responses=documented(400, 404, 410, 409, 413, 415),
    openapi_extra=body_docs(Resume, required=False),
)
async def resume_job(
    job_id: str,
    caller: Writer,
    body: Annotated[Resume, json_body(Resume, optional=True)],
    services: Wired,
    response: Response,
) -> JobOut:
    """Go on with a paused job, with a larger budget if one is given.  A job at its budget needs one: 422 says of how
    much."""
    budget = None if body.budget is None else body.budget.to_domain()
    job = await services.jobs.resume(caller.tenant, job_id, budget, providers=caller.providers)
    return _shown(job, response)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobOut,
    responses=documented(400, 404, 410, 409, 413, 415),
    openapi_extra=body_docs(Resume, required=False),
)
async def retry_job(
    job_id: str,
    caller: Writer,
    body: Annotated[Resume, json_body(Resume, optional=True)],
    services: Wired,
    key: IdempotencyKey,
    wait_seconds: WaitSeconds,
    request: Request,
) -> Any:
    """A new job like an ended one.  Answers already paid for are reused."""
    budget = None if body.budget is None else body.budget.to_domain()
    route = f"POST /v1/jobs/{job_id}/retry"
    async with repeatable(services.store, caller.tenant, route, key, body, job_json) as once:
        if isinstance(once, Kept):
            new: Job | Kept = once
        else:
            new = await services.jobs.retry(caller.tenant, job_id, budget, providers=caller.providers, once=once)
    return await _accepted(new, services, request, caller, wait_seconds)


def _as_written(number: Any) -> Any:
    """One student has one address: `00` and `+0` are none, though they can be read as a number."""
    if isinstance(number, str) and not re.fullmatch(r"0|[1-9][0-9]*", number):
        raise PydanticKnownError("int_parsing")
    return number


StudentNumber = Annotated[
    Annotated[int, Field(ge=0, lt=STUDENTS_MAX)],
    BeforeValidator(_as_written),
    Path(description="the student's place in `students`, from 0"),
]


@router.post(
    "/{job_id}/students/{number}/endpoint",
    responses=documented(400, 404, 410, 409, 413, 415),
    openapi_extra=body_docs(EndpointIn),
)
async def tell_endpoint(
    job_id: str,
    number: StudentNumber,
    caller: Writer,
    body: Annotated[EndpointIn, json_body(EndpointIn)],
    services: Wired,
    response: Response,
) -> JobOut:
    """Say where a student answers that you have deployed, once its status is `awaiting_deployment`.  Repeated, it
    changes nothing.  Another place can be told until the model has given its first answer; when the provider knows no
    such model, the student awaits its deployment again."""
    if body.provider is not None:
        require_provider("/provider", body.provider, caller.providers)
    return _shown(await services.jobs.tell_endpoint(caller.tenant, job_id, number, **body.model_dump()), response)


@router.get(
    "/{job_id}/events",
    response_model=Page[EventOut],
    responses=documented(400, 404, 410)
    | {
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        204: {"description": "as a stream: the job has ended, and there is nothing after `Last-Event-ID`"},
    },
)
async def list_events(
    job_id: str,
    caller: Reader,
    services: Wired,
    limit: Limit = 20,
    after: After = None,
    order: Order = "desc",
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[str | None, Header(description="for streams: the last `id` seen")] = None,
) -> Any:
    """What happened to the job, newest first as in OpenAI's list of fine-tuning events.

    With `Accept: text/event-stream`, everything after `Last-Event-ID` (or from the start), oldest first and then as it
    happens; each event's `id` is its sequence.  The stream ends with the job."""
    job = await services.jobs.get(caller.tenant, job_id)
    secret, events = services.settings.secret, services.store.jobs
    sequence = None if after is None else locate_event(secret, job.id, after)
    if after is not None and sequence is None:
        raise BadRequest("`after` is not the id of an event of this job.", code="invalid_cursor", param="after")
    if wants_events(accept):
        if last_event_id is not None:
            if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) <= _SEQUENCE_DIGITS):
                raise BadRequest("Last-Event-ID is not an id of this stream.", code="invalid_cursor")
            sequence = int(last_event_id)
        if job.status in TERMINAL and not await events.events(job.id, after=sequence or 0, limit=1):
            return Response(status_code=204)  # by which a browser knows not to connect again
        held = AsyncExitStack()
        held.enter_context(services.streams.taken(caller.tenant))
        return open_event_stream(
            services.watcher,
            held,
            job.id,
            after=sequence or 0,
            keepalive_seconds=services.settings.stream_keepalive_seconds,
            show=lambda event: EventOut.of(event, event_id(secret, job.id, event.sequence), job.id).model_dump_json(),
            allowed=held.enter_context(key_held(services, caller)),
        )
    if order == "desc":
        found = await events.events_before(job.id, before=sequence, limit=limit + 1)
    else:
        found = await events.events(job.id, after=sequence or 0, limit=limit + 1)
    shown = [EventOut.of(event, event_id(secret, job.id, event.sequence), job.id) for event in found[:limit]]
    return page_of(shown, has_more=len(found) > limit)


@router.get("/{job_id}/results", responses=documented(404, 410, 409))
async def get_results(job_id: str, caller: Reader, services: Wired) -> dict[str, Any]:
    """The verdict: rows by model and grader, differences with their intervals, samples."""
    job = await services.jobs.get(caller.tenant, job_id)
    results = await services.store.jobs.results(job.id) if job.has_results else None
    if results is not None:
        return results
    if job.status not in TERMINAL:
        raise JobNotFinished("The verdict exists once the job has succeeded.")
    raise NotFound("This job ended without a verdict; see its `error`.")


@router.get("/{job_id}/completions", responses=documented(400, 404, 410))
async def list_completions(
    job_id: str,
    caller: DataReader,
    services: Wired,
    limit: Limit = 20,
    after: After = None,
    role: Annotated[Literal["teacher", "base", "student", "judge"] | None, Query()] = None,
    status: Annotated[Literal["accepted", "rejected", "failed"] | None, Query()] = None,
    reason: Annotated[Reason | None, Query()] = None,
    split: Annotated[SplitName | None, Query()] = None,
) -> Page[CompletionOut]:
    """Answers of the teacher, then of base and student, then of judges, each in the order of the prompts."""
    job = await services.jobs.get(caller.tenant, job_id)
    filters = Filters(role=role, status=status, reason=reason, split=split)
    found, more = await completions(
        services.store, services.settings.secret, job, after=after, limit=limit, filters=filters
    )
    return page_of(found, has_more=more)


@router.get("/{job_id}/completions/{completion_id}", responses=documented(404, 410))
async def get_completion(job_id: str, completion_id: str, caller: DataReader, services: Wired) -> CompletionOut:
    job = await services.jobs.get(caller.tenant, job_id)
    return await completion(services.store, services.settings.secret, job, completion_id)


@router.get(
    "/{job_id}/dataset",
    response_class=Stream,
    responses=documented(404, 410, 409) | _AS_KNOWN | {200: {"content": {"application/jsonl": {}}}},
)
async def get_dataset(
    job_id: str,
    caller: DataReader,
    services: Wired,
    split: Annotated[SplitName, Query()] = "train",
    format: Annotated[Format, Query()] = "openai_chat",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The curated examples as JSONL: ready to train on (`openai_chat`, and `openai_dpo` where `teacher.samples` gave a
    choice), or every completion with its fate (`raw`)."""
    job = await services.jobs.get(caller.tenant, job_id)
    head = dataset_head(job, split, format)
    if matches(if_none_match, head.etag):
        return no_change(head.etag)
    return Stream(dataset_lines(services.store, job, split, format), headers=head.headers())


@router.get("/{job_id}/dataset/manifest", response_model=ManifestOut, responses=documented(404, 410, 409) | _AS_KNOWN)
async def get_manifest(
    job_id: str, caller: DataReader, services: Wired, response: Response, if_none_match: IfNoneMatch = None
) -> Any:
    """What the dataset is made of and how, and the identity of each of its files."""
    job = await services.jobs.get(caller.tenant, job_id)
    if job.manifest is None:
        if job.status not in TERMINAL:
            raise JobNotFinished("The dataset exists once the job's curating stage is done.")
        raise NotFound("This job ended before its dataset was curated; see its `error`.")
    manifest = ManifestOut.of(job, job.manifest)
    etag = f'"{hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:32]}"'
    if matches(if_none_match, etag):
        return no_change(etag)
    response.headers.update({"ETag": etag, "Cache-Control": "private, no-cache"})
    return manifest
