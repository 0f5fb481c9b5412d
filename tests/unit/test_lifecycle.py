"""The table of moves, and what must be true of any such table."""

from shared.lifecycle import MOVES, TERMINAL, JobStatus, Stage, sources

S = JobStatus


def test_every_status_has_a_row():
    assert set(MOVES) == set(S)


def test_what_has_ended_stays_ended():
    assert {S.SUCCEEDED, S.FAILED, S.CANCELLED} == TERMINAL
    assert all(not MOVES[status] for status in TERMINAL)


def test_every_status_but_the_first_can_be_reached_and_left_for_an_end():
    assert all(sources(status) for status in set(S) - {S.QUEUED})
    reaching = set(TERMINAL)
    for _ in S:
        reaching |= {status for status, targets in MOVES.items() if targets & reaching}
    assert reaching == set(S)


def test_nothing_goes_back_to_the_queue():
    assert sources(S.QUEUED) == frozenset()


def test_stages_follow_each_other():
    assert [stage.following for stage in Stage] == [Stage.CURATING, Stage.TRAINING, Stage.EVALUATING, None]
