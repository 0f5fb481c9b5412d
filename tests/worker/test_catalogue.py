"""The catalogue of models: read when it is due, by one worker, and never worse for a look that failed."""

from __future__ import annotations

import time

import pytest
from doubles import Lab

from shared.errors import ProviderAuthFailed, ProviderModelMissing, ProviderUnavailable
from shared.settings import ProviderSettings
from shared.store import keys
from worker.catalogue import Cataloguer

pytestmark = pytest.mark.anyio


@pytest.fixture
def lab():
    lab = Lab()
    lab.the_models.retire = {"gpt-4.1": "2027-01-14"}
    return lab


@pytest.fixture
def cataloguer(store, lab):
    return Cataloguer(store, lab, {"lab": ProviderSettings(base_url="http://lab.invalid/v1")})


async def due_in_seconds(client, provider="lab"):
    score = await client.zscore(keys.DUE, f"cat:{provider}")
    return None if score is None else score / 1000 - time.time()


async def test_a_starting_worker_makes_every_provider_due_and_the_sweep_hands_it_out(store, client, cataloguer):
    await cataloguer.begin()

    assert await store.due.sweep(grace_seconds=60, limit=10) == ["cat:lab"]
    await cataloguer.read("lab")
    found = await store.catalogues.get("lab")
    assert (found.outcome, found.today, found.models["gpt-4.1"].shutdown_date) == ("ok", "2026-11-22", "2027-01-14")
    assert 800 < await due_in_seconds(client) < 1_000
    assert 86_000 < await client.ttl(keys.catalogue("lab")) <= 86_400


async def test_a_worker_that_starts_just_after_another_reads_nothing_again(client, cataloguer):
    await cataloguer.read("lab")
    await cataloguer.begin()
    assert await due_in_seconds(client) > 800


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ProviderAuthFailed("No."), "auth_failed"),
        (ProviderUnavailable("Away."), "unreachable"),
    ],
)
async def test_a_look_that_fails_keeps_what_was_known_and_says_why(store, client, lab, cataloguer, error, outcome):
    await cataloguer.read("lab")
    before = await store.catalogues.get("lab")
    lab.the_models.faults["listed"] = error

    await cataloguer.read("lab")

    after = await store.catalogues.get("lab")
    assert after.outcome == outcome
    assert (after.models, after.read_at_ms, after.today) == (before.models, before.read_at_ms, before.today)
    assert 800 < await due_in_seconds(client) < 1_000


@pytest.mark.parametrize("error", [ProviderModelMissing("404", status=404), None])
async def test_a_server_that_lists_nothing_has_an_empty_catalogue(store, lab, cataloguer, error):
    await cataloguer.read("lab")
    lab.the_models.retire = {}
    if error is not None:
        lab.the_models.faults["listed"] = error

    await cataloguer.read("lab")

    found = await store.catalogues.get("lab")
    assert (found.outcome, found.models, found.read_at_ms) == ("unlisted", {}, None)


async def test_while_it_is_read_no_other_worker_begins_and_after_a_crash_one_does(store, client, lab, cataloguer):
    lab.the_models.faults["listed"] = KeyboardInterrupt()  # as kill -9: nothing is caught
    with pytest.raises(KeyboardInterrupt):
        await cataloguer.read("lab")
    assert 60 < await due_in_seconds(client) <= 90


async def test_a_provider_that_is_no_longer_configured_is_not_read_for_ever(store, client, cataloguer):
    await store.catalogues.due_in("gone", 0)
    await cataloguer.read("gone")
    assert await due_in_seconds(client, "gone") is None
