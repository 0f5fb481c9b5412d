"""The best of several answers, why the others are not kept, and what becomes of scores."""

import pytest
from builders import a_prompt
from hypothesis import given
from hypothesis import strategies as st

from shared.curation import Curator, Sample
from shared.models import Curation, Split
from shared.selection import agreement, choose

ALL_TRAIN = Split(validation=0, holdout=0)
JUDGE = {"type": "score_model", "provider": "lab", "model": "judge-1"}
SIMILARITY = {"type": "text_similarity"}


def said(*texts):
    return [None if text is None else Sample({"role": "assistant", "content": text}, "stop") for text in texts]


def decided(samples, *, rated=None, prompt=None, **spec):
    return Curator(Curation(**spec), ALL_TRAIN).decide_all(prompt or a_prompt(), samples, rated)


def reasons(decisions):
    return [None if decision is None else decision.reason for decision in decisions]


# --- the best of several ---------------------------------------------------------------------------------------------


def test_the_sample_with_the_best_rating_is_kept_and_the_others_say_why_not():
    decisions = decided(said("a", "b", "c"), rated={0: 0.2, 1: 0.9, 2: 0.5}, grader=JUDGE)

    assert reasons(decisions) == ["not_best", None, "not_best"]
    assert [decision.score for decision in decisions] == [0.2, 0.9, 0.5]


def test_of_equal_scores_the_lowest_number_wins():
    assert reasons(decided(said("a", "b"), rated={0: 0.5, 1: 0.5}, grader=JUDGE)) == [None, "not_best"]


def test_a_text_grader_holds_samples_against_the_reference():
    decisions = decided(said("no idea", "Paris"), prompt=a_prompt(reference="Paris"), grader=SIMILARITY)

    assert reasons(decisions) == ["not_best", None]


@pytest.mark.parametrize("grader", [None, SIMILARITY, JUDGE])
def test_without_any_score_the_answer_wins_that_the_others_agree_with(grader):
    """Neither reference nor rating: two say the same, and the odd one out loses wherever it stands."""
    assert reasons(decided(said("Lyon, I think", "Paris", "Paris."), grader=grader))[0] == "not_best"
    assert reasons(decided(said("Paris", "Paris.", "Lyon, I think"), grader=grader))[2] == "not_best"


def test_an_unusable_sample_takes_no_part_in_the_choice():
    refusal = Sample({"role": "assistant", "content": None, "refusal": "No."}, "stop")
    decisions = decided([refusal, *said("b", None), Sample(None)], rated={0: 1.0, 1: 0.1}, grader=JUDGE)

    assert reasons(decisions) == ["refused", None, None, None]
    assert decisions[0].score is None
    assert [decision and decision.status for decision in decisions] == ["rejected", "accepted", None, "failed"]


def test_a_sample_that_could_not_be_rated_is_not_taken_for_a_bad_one():
    assert reasons(decided(said("a", "b"), rated={1: 0.1}, grader=JUDGE)) == ["ungradable", None]


def test_the_kept_sample_of_a_prompt_that_was_asked_before_is_the_duplicate():
    curator = Curator(Curation(), ALL_TRAIN)
    curator.decide_all(a_prompt(), said("a", "a", "b"))

    assert reasons(curator.decide_all(a_prompt(), said("x", "y", "y"))) == ["not_best", "duplicate", "not_best"]


@given(st.lists(st.sampled_from(["a", "aa", "ab", "bb", ""]), min_size=2, max_size=8))
def test_agreement_is_a_share_and_minds_no_order(texts):
    scores = agreement(dict(enumerate(texts)))
    turned = agreement(dict(enumerate(reversed(texts))))

    assert all(0 <= score <= 1 for score in scores.values())
    assert sorted(scores.values()) == pytest.approx(sorted(turned.values()))


def test_long_answers_are_compared_within_a_moment():
    long = {n: " ".join(f"word{n * k % 97}" for k in range(9_000)) for n in range(1, 5)}
    assert set(agreement(long)) == set(long)


@given(
    st.dictionaries(st.integers(0, 7), st.floats(0, 1), min_size=1),
    st.none() | st.floats(0, 1),
)
def test_exactly_one_is_best_or_none_is_good_enough(scores, min_score):
    judge = Curator(Curation(grader=JUDGE), ALL_TRAIN)._grader
    choice = choose({n: f"answer {n}" for n in scores}, grader=judge, min_score=min_score, reference=None, rated=scores)

    assert set(choice.fates) | ({choice.best} - {None}) == set(scores)
    if choice.best is None:
        assert min_score is not None
        assert max(scores.values()) < min_score
    else:
        assert scores[choice.best] == max(scores.values())


# --- a score to reach ------------------------------------------------------------------------------------------------


def test_below_the_asked_score_nothing_is_kept():
    decisions = decided(said("a", "b", "c"), rated={0: 0.2, 1: 0.69, 2: 0.7}, grader=JUDGE, min_score=0.7)
    assert reasons(decisions) == ["below_threshold", "below_threshold", None]


@pytest.mark.parametrize(("similar", "reason"), [("Paris", None), ("Rome", "below_threshold")])
def test_one_answer_is_held_against_its_reference(similar, reason):
    (decision,) = decided(said(similar), prompt=a_prompt(reference="Paris"), grader=SIMILARITY, min_score=0.8)

    assert decision.reason == reason
    assert decision.score is not None


@pytest.mark.parametrize(("grader", "samples"), [(JUDGE, 1), (SIMILARITY, 1), (JUDGE, 3), (SIMILARITY, 3)])
def test_what_has_no_score_is_ungradable_and_not_below(grader, samples):
    decisions = decided(said(*["Paris"] * samples), grader=grader, min_score=0.1)
    assert reasons(decisions) == ["ungradable"] * samples


def test_a_score_without_a_threshold_is_told_and_decides_nothing_of_a_single_answer():
    (rated,) = decided(said("a"), rated={0: 0.1}, grader=JUDGE)
    (unrated,) = decided(said("a"), grader=JUDGE)

    assert (rated.status, rated.score) == ("accepted", 0.1)
    assert (unrated.status, unrated.score) == ("accepted", None)


def test_a_prompt_whose_first_answer_is_below_gives_a_later_copy_its_chance():
    curator = Curator(Curation(grader=JUDGE, min_score=0.5), ALL_TRAIN)

    first = curator.decide_all(a_prompt(), said("bad"), {0: 0.1})
    again = curator.decide_all(a_prompt(), said("good"), {0: 0.9})

    assert reasons(first + again) == ["below_threshold", None]
