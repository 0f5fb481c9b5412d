"""Cleaning up at the provider: all that the job made and nothing else, through outages, kills and any amount of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from accounts import Account
from builders import a_job, a_spec, accepted, loaded, now_ms, prompts, standing_at
from cleaners import FOREIGN, Clock, a_cleaner, a_deleted_job, a_training, cleaned, kept_by, left_in, make_due, note_of
from engines import Killed

from shared.deletion import mark_deleted
from shared.errors import JobFailed, ProviderAuthFailed, ProviderRejected, ProviderUnavailable, StoreFull
from shared.lifecycle import JobStatus
from shared.models import FineTune
from shared.pricing import Prices
from shared.store import Store, keys
from shared.store.jobs import Change
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio
DAY_SECONDS = 86_400.0
AWAY = ProviderUnavailable("away", provider_code="disconnected")


async def test_everything_the_job_made_goes_and_nothing_else(store: Store, client: Any):
    account = Account(page_size=2)
    job = await a_deleted_job(store, account)
    await a_cleaner(store, account).clean(job.id)
    note = await note_of(store, job)
    assert note.over
    assert left_in(account) == ({"file-foreign"}, {"ft:ours", "ft:foreign"}, FOREIGN[2])
    assert note.deleted == {"file": 3, "batch_file": 2, "stored_completions": 5}
    assert [(model.kind, model.id) for model in note.left] == [("model", "ft:ours")]
    assert await client.zscore(keys.DUE, f"cln:{job.id}") is None
    assert 0 < await client.ttl(keys.cleanup(job.id)) <= 30 * 86_400


async def test_models_go_when_that_was_asked_for_at_once_or_later(store: Store, client: Any):
    for at_once in (True, False):
        account = Account()
        job = await a_deleted_job(store, account, delete_models=at_once)
        cleaner = a_cleaner(store, account)
        await cleaner.clean(job.id)
        if not at_once:
            assert "ft:ours" in account.models
            assert await store.catalogues.all_owners("lab") == {"ft:ours": job.tenant}, "nobody else sees it"
            assert await store.cleanups.want_models(job.id)
            assert not await store.cleanups.want_models(job.id)
            assert await client.zscore(keys.DUE, f"cln:{job.id}") is not None
            await cleaner.clean(job.id)
        assert left_in(account) == FOREIGN
        assert await store.catalogues.all_owners("lab") == {}
        assert (await note_of(store, job)).left == []
        assert await client.zscore(keys.DUE, f"cln:{job.id}") is None


async def test_models_asked_for_while_a_worker_is_at_it_are_not_forgotten(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)
    held = await store.cleanups.claim(job.id, lease_seconds=30, now_ms=now_ms())
    assert held is not None
    await store.cleanups.want_models(job.id)
    claim, note = held
    await store.cleanups.let_go(claim, msgspec.structs.replace(note, remnants=[], over=True), next_look_in_seconds=None)
    await a_cleaner(store, account).clean(job.id)
    assert account.models == {"ft:foreign"}


async def test_a_server_that_does_not_filter_loses_nothing_of_others(store: Store, client: Any):
    account = Account(filters=False, page_size=3)
    job = await a_deleted_job(store, account)
    account.stored |= {f"later-{n}": {"distillation_job": "job_other"} for n in range(7)}
    note = await cleaned(client, a_cleaner(store, account), store, job)
    assert set(account.stored) == {*FOREIGN[2], *(f"later-{n}" for n in range(7))}
    assert note.deleted["stored_completions"] == 5


async def test_a_cursor_that_has_gone_starts_again_from_the_front(store: Store, client: Any):
    account = Account(filters=False, page_size=3)
    job = await a_deleted_job(store, account)

    def the_first_other_goes(call: str, _: str) -> None:
        if call == "page" and account.calls.count("page") == 2:
            del account.stored["cmp-users"]

    account.before = the_first_other_goes
    await cleaned(client, a_cleaner(store, account), store, job)
    assert set(account.stored) == {"cmp-first", "cmp-last"}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_around_any_call_it_is_finished_by_another(real_store: Store, valkey_client: Any, when: str):
    """Every call of the whole clean-up in turn is the one that kills the worker."""
    store, strike = real_store, 1
    while True:
        account = Account(page_size=2)
        job = await a_deleted_job(store, account, delete_models=True, completions=3)
        struck = False

        def kill(call: str, _: str, account: Account = account, strike: int = strike) -> None:
            nonlocal struck
            if len(account.calls) == strike and not struck:
                struck = True
                raise Killed

        setattr(account, when, kill)
        cleaner = a_cleaner(store, account)
        try:
            await cleaner.clean(job.id)
        except Killed:
            assert await valkey_client.zscore(keys.DUE, f"cln:{job.id}") is not None
        note = await cleaned(valkey_client, cleaner, store, job)
        assert left_in(account) == FOREIGN
        assert note.left == []
        assert note.deleted["stored_completions"] == 3  # also those that went with the worker
        if not struck:
            break
        strike += 1
    assert strike > 15


@pytest.mark.parametrize("script", ["hold", "let_go"])
async def test_killed_before_any_note_of_progress_it_is_finished_by_another(
    real_store: Store, valkey_client: Any, script: str, monkeypatch: pytest.MonkeyPatch
):
    store, strike = real_store, 0
    wrote = getattr(store.cleanups, script)
    while True:
        account, count = Account(), 0
        job = await a_deleted_job(store, account, delete_models=True)

        async def write(*arguments: Any, _strike: int = strike, **named: Any) -> bool:
            nonlocal count
            count += 1
            if count - 1 == _strike:
                raise Killed
            return await wrote(*arguments, **named)  # type: ignore[no-any-return]

        monkeypatch.setattr(store.cleanups, script, write)
        with suppress(Killed):
            await a_cleaner(store, account).clean(job.id)
        struck = count > strike
        await cleaned(valkey_client, a_cleaner(store, account), store, job)
        assert left_in(account) == FOREIGN
        if not struck:
            break
        strike += 1


async def test_while_the_provider_is_away_it_is_asked_ever_more_rarely_and_our_copies_are_long_gone(
    store: Store, client: Any
):
    account, clock = Account(), Clock()
    job = await a_deleted_job(store, account)

    def away(_call: str, _what: str) -> None:
        raise AWAY

    account.before = away
    cleaner, waits = a_cleaner(store, account, clock), []
    for _ in range(14):
        await make_due(client, job)
        calls = len(account.calls)
        await cleaner.clean(job.id)
        assert len(account.calls) == calls + 1  # one refused call tells enough
        waits.append((await client.zscore(keys.DUE, f"cln:{job.id}")) - now_ms())
    assert 2_000 < waits[0] < 5_100
    assert 1_800_000 <= max(waits) <= 3_600_000

    account.before = lambda _call, _what: None
    await cleaned(client, cleaner, store, job)
    assert left_in(account) == ({"file-foreign"}, {"ft:ours", "ft:foreign"}, FOREIGN[2])


async def test_a_provider_that_stays_away_is_given_up_after_a_bounded_time(store: Store, client: Any):
    account, clock = Account(), Clock()
    job = await a_deleted_job(store, account, delete_models=True)

    def away(_call: str, _what: str) -> None:
        raise AWAY

    account.before = away
    cleaner = a_cleaner(store, account, clock, patience_seconds=7 * DAY_SECONDS)
    await cleaner.clean(job.id)
    clock.ahead_seconds = 7 * DAY_SECONDS - 60
    await make_due(client, job)
    await cleaner.clean(job.id)
    assert not (await note_of(store, job)).over
    clock.ahead_seconds = 7 * DAY_SECONDS + 60
    await make_due(client, job)
    await cleaner.clean(job.id)
    note = await note_of(store, job)
    assert note.over
    assert {"file-train", "file-check", "file-in", "ft:ours", job.id} <= {remnant.id for remnant in note.left}
    assert await client.zscore(keys.DUE, f"cln:{job.id}") is None


async def test_one_provider_that_is_away_does_not_hold_up_the_others(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)

    class Desk(Account):
        def trainer(self, name: str) -> Any:
            raise JobFailed("not configured", code="provider_unavailable")

    desk = Desk()
    desk.__dict__.update(account.__dict__)
    note = await note_of(store, job)
    of_trainer = {"trained", "file", "files"}
    renamed = [msgspec.structs.replace(r, provider="gone") if r.kind in of_trainer else r for r in note.remnants]
    changed = msgspec.structs.replace(note, remnants=renamed)
    await client.hset(keys.cleanup(job.id), "row", msgspec.json.encode(changed))
    await a_cleaner(store, desk).clean(job.id)
    assert set(desk.files) == {"file-train", "file-check", "file-unnoted", "file-foreign"}
    assert {remnant.provider for remnant in (await note_of(store, job)).remnants} == {"gone"}


@pytest.mark.parametrize("refusal", [ProviderRejected("no", status=400), ProviderAuthFailed("no", status=403)])
async def test_what_the_provider_refuses_for_good_is_listed_and_holds_nothing_up(
    store: Store, client: Any, refusal: Exception
):
    account = Account()
    job = await a_deleted_job(store, account, delete_models=True)

    def refuse(call: str, what: str) -> None:
        if what in {"ft:ours", "file-train"}:
            raise refusal

    account.before = refuse
    await a_cleaner(store, account).clean(job.id)
    note = await note_of(store, job)
    assert note.over
    assert sorted(remnant.id for remnant in note.left) == ["file-train", "ft:ours"]
    assert set(account.files) == {"file-train", "file-foreign"}


async def test_a_key_that_is_refused_may_be_mended(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)

    def refuse(_call: str, _what: str) -> None:
        raise ProviderAuthFailed("no", status=401)

    account.before = refuse
    await a_cleaner(store, account).clean(job.id)
    assert not (await note_of(store, job)).over
    account.before = lambda _call, _what: None
    await cleaned(client, a_cleaner(store, account), store, job)
    assert "file-train" not in account.files


async def test_a_great_many_completions_go_in_slices_with_progress_between_them(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account, completions=950)
    cleaner = a_cleaner(store, account, slice_seconds=0.0)
    await cleaner.clean(job.id)
    assert account.calls == []
    some = a_cleaner(store, account, slice_seconds=0.02)
    looks = 0
    while not (note := await note_of(store, job)).over:
        left = len(account.stored)
        due = await client.zscore(keys.DUE, f"cln:{job.id}")
        assert due <= now_ms() + 50  # nothing is waited for while there is more to do
        await some.clean(job.id)
        looks += 1
        assert looks < 500
        assert len(account.stored) <= left
    assert note.deleted["stored_completions"] == 950
    assert set(account.stored) == FOREIGN[2]


async def test_deletions_in_flight_are_bounded_and_what_went_is_counted_when_one_fails(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account, completions=50)

    def fail_one(call: str, what: str) -> None:
        if what == "cmp-20":
            raise AWAY

    account.before = fail_one
    await a_cleaner(store, account).clean(job.id)
    note = await note_of(store, job)
    assert note.deleted["stored_completions"] == 49
    assert set(account.stored) == {*FOREIGN[2], "cmp-20"}
    account.before = lambda _call, _what: None
    assert (await cleaned(client, a_cleaner(store, account), store, job)).deleted["stored_completions"] == 50


@pytest.mark.parametrize("at_once", [True, False])
async def test_where_the_student_is_a_checkpoint_all_models_of_its_training_go_and_its_result_file(
    store: Store, client: Any, at_once: bool
):
    account = Account()
    job = await a_deleted_job(store, account, delete_models=at_once)
    account.models |= {"ft:whole", "ft:ours-early"}
    account.files["file-metrics"] = "step_metrics.csv"
    account.trainings = {"ftjob-1": a_training("succeeded", fine_tuned_model="ft:whole", result_files=["file-metrics"])}
    account.checkpoint_models = {"ftjob-1": ["ft:ours-early", "ft:ours"]}
    note = await cleaned(client, a_cleaner(store, account), store, job)
    assert set(account.files) == {"file-foreign"}
    if not at_once:
        assert sorted(model.id for model in note.left) == ["ft:ours", "ft:ours-early", "ft:whole"]
        assert await store.cleanups.want_models(job.id)
        note = await cleaned(client, a_cleaner(store, account), store, job)
    assert left_in(account) == FOREIGN
    assert (note.left, note.deleted["model"]) == ([], 3)


async def test_models_asked_for_before_the_training_was_looked_at_go_as_well(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)
    assert await store.cleanups.want_models(job.id)
    account.models |= {"ft:whole"}
    account.trainings = {"ftjob-1": a_training("succeeded", fine_tuned_model="ft:whole")}
    await cleaned(client, a_cleaner(store, account), store, job)
    assert left_in(account) == FOREIGN


async def test_a_training_that_cannot_be_asked_is_told_as_left_and_one_that_runs_is_waited_for(
    store: Store, client: Any
):
    account = Account()
    job = await a_deleted_job(store, account, delete_models=True)
    account.trainings = {"ftjob-1": a_training("running")}
    await a_cleaner(store, account).clean(job.id)
    assert [remnant.kind for remnant in (await note_of(store, job)).remnants] == ["trained"]

    def refuse(call: str, what: str) -> None:
        if what == "ftjob-1":
            raise ProviderRejected("no", status=400)

    account.before = refuse
    note = await cleaned(client, a_cleaner(store, account), store, job)
    assert [(remnant.kind, remnant.id) for remnant in note.left] == [("trained", "ftjob-1")]


async def test_what_shows_late_is_waited_for(store: Store, client: Any):
    account, clock = Account(), Clock()
    job = await a_deleted_job(store, account)
    cleaner = a_cleaner(store, account, clock, lag_seconds=120, look_seconds=30)
    await cleaner.clean(job.id)
    assert not (await note_of(store, job)).over
    assert 25_000 < (await client.zscore(keys.DUE, f"cln:{job.id}")) - now_ms() <= 30_000
    account.stored["cmp-late"] = {"distillation_job": job.id}
    clock.ahead_seconds = 125
    await make_due(client, job)
    await cleaner.clean(job.id)
    assert (await note_of(store, job)).over
    assert "cmp-late" not in account.stored


async def test_what_is_deleted_and_listed_all_the_same_is_not_deleted_in_circles(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)

    def comes_back(call: str, what: str) -> None:
        if call == "delete":
            account.stored[what] = {"distillation_job": job.id}

    account.after = comes_back
    await a_cleaner(store, account).clean(job.id)
    assert account.calls.count("delete") == 5
    assert not (await note_of(store, job)).over


async def test_what_still_runs_at_the_provider_is_stopped(store: Store, client: Any):
    account = Account()
    job = await a_deleted_job(store, account)
    running = msgspec.structs.replace(account.batches["batch-1"], state="running", output_file=None)
    account.batches = {"batch-1": running}
    del account.files["file-out"]
    await a_cleaner(store, account).clean(job.id)
    assert account.cancelled == ["batch-1"]
    await cleaned(client, a_cleaner(store, account), store, job)
    assert set(account.files) == {"file-foreign"}  # the output that came with the end went, too


async def test_while_one_worker_is_at_it_another_leaves_it_alone_and_a_slow_one_changes_nothing(
    store: Store, client: Any
):
    account = Account()
    job = await a_deleted_job(store, account)
    slow = await store.cleanups.claim(job.id, lease_seconds=30, now_ms=now_ms())
    assert slow is not None
    await a_cleaner(store, account).clean(job.id)
    assert account.calls == []
    await make_due(client, job)  # its lease has run out
    await a_cleaner(store, account).clean(job.id)
    assert not await store.cleanups.hold(*slow, lease_seconds=30)
    assert (await note_of(store, job)).over


async def test_the_note_holds_no_content(store: Store, client: Any):
    job = await accepted(
        store,
        a_job(spec=a_spec(store=True, name="canary", system_prompt="canary", metadata={"canary": "canary"})),
        prompts(3),
    )
    job = await standing_at(store, job, JobStatus.SUCCEEDED)
    await mark_deleted(store, job, delete_models=False, now_ms=now_ms())
    assert b"canary" not in await client.hget(keys.cleanup(job.id), "row")


async def test_a_full_store_lets_a_job_be_deleted_and_cleaned_up(real_store: Store, valkey_client: Any):
    account = Account()
    used = (await valkey_client.info("memory"))["used_memory"]
    job = await accepted(real_store, a_job(), prompts(3))
    job = await standing_at(real_store, job, JobStatus.SUCCEEDED)
    tune = FineTune(step="ended", training_file="file-train")
    await real_store.jobs.change(job, Change(set={"fine_tunes": [tune]}))
    job = await loaded(real_store, job.id)
    kept_by(account, job)
    await valkey_client.config_set("maxmemory", str(used // 2))
    with pytest.raises(StoreFull):
        await real_store.content.put_prompt_chunk(job.id, "source", 9, prompts(1))
    await mark_deleted(real_store, job, delete_models=False, now_ms=now_ms())
    await Janitor(real_store, Prices(None), {}, secret=b"s" * 32).purge(job.id)
    await a_cleaner(real_store, account).clean(job.id)
    receipt = await real_store.purging.receipt(job.tenant, job.id)
    assert receipt is not None
    assert receipt.complete
    assert "file-train" not in account.files
