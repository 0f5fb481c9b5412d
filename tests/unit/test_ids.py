"""Ids: typed, sorted by time, and, where they say where something lies, sealed."""

import time

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import (
    JobId,
    completion_id,
    event_id,
    is_id,
    locate_completion,
    locate_event,
    new_delivery_id,
    new_event_id,
    new_job_id,
    new_request_id,
)

SECRET = b"secret of the deployment"


def test_ids_speak_and_fit_their_kind_alone():
    made = {"job": new_job_id(), "evt": new_event_id(), "dlv": new_delivery_id(), "req": new_request_id()}

    for prefix, id_ in made.items():
        assert [kind for kind in made if is_id(kind, id_)] == [prefix]


def test_ids_made_later_sort_later():
    first = new_job_id()
    time.sleep(0.002)

    assert first < new_job_id()


@given(st.text())
def test_no_other_text_is_an_id(text):
    assert not is_id("job", text)
    assert not is_id("job", "job_" + text) or len(text) == 34


def test_an_id_with_a_line_break_is_none():
    assert not is_id("job", new_job_id() + "\n")


@given(st.integers(0, 2**15 - 1), st.integers(0, 2**35 - 1))
def test_a_completion_is_found_again_by_its_id(pass_number, index):
    job = JobId("job_1")
    made = completion_id(SECRET, job, pass_number, index)

    assert locate_completion(SECRET, job, made) == (pass_number, index)
    assert locate_completion(SECRET, JobId("job_2"), made) is None
    assert locate_completion(b"another secret", job, made) is None


@given(st.integers(1, 2**40))
def test_an_event_is_found_again_by_its_id(sequence):
    job = JobId("job_1")

    assert locate_event(SECRET, job, event_id(SECRET, job, sequence)) == sequence
    assert locate_event(SECRET, JobId("job_2"), event_id(SECRET, job, sequence)) is None
