"""What a holdout tells of a student."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.graders import JsonMatch, ScoreModel, StringCheck, TextSimilarity
from shared.verdict import (
    FEWEST_PAIRS,
    Answer,
    Contestant,
    HoldoutExample,
    assemble,
    difference_interval95,
    mean_interval95,
    t_quantile,
    verdict,
    wilson_interval95,
)


def a_holdout(*teacher, references=None):
    return [
        HoldoutExample(
            prompt_key=f"t-{place}",
            messages=[{"role": "user", "content": f"question {place}"}],
            reference=references[place] if references else None,
            teacher=Answer(text, latency_ms=2_000, cost_nano=3_000_000),
        )
        for place, text in enumerate(teacher)
    ]


def base(*texts, student=0):
    return Contestant("base", "mini", student, [Answer(text) for text in texts])


def student(*texts, number=0, model="ft:mini"):
    return Contestant("student", model, number, [Answer(text) for text in texts])


def result(holdout, *contestants, graders=None, **options):
    return assemble(
        holdout=holdout,
        contestants=contestants,
        graders=graders or [StringCheck()],
        teacher_model="sol",
        holdout_sha256="ab" * 32,
        **options,
    )


def row(found, role, grader="string_check"):
    return next(row for row in found["rows"] if (row["role"], row["grader"]) == (role, grader))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_result_has_a_row_for_every_grader_and_model():
    found = result(a_holdout("a"), base("b"), student("a"), graders=[StringCheck(), TextSimilarity()])

    assert list(found) == ["object", "holdout", "rows", "students", "samples"]
    assert found["object"] == "distillation.result"
    assert found["holdout"] == {"examples": 1, "sha256": "ab" * 32}
    assert [(row["grader"], row["role"], row["model"], row["student"]) for row in found["rows"]] == [
        ("string_check", "teacher", "sol", None),
        ("string_check", "base", "mini", 0),
        ("string_check", "student", "ft:mini", 0),
        ("text_similarity", "teacher", "sol", None),
        ("text_similarity", "base", "mini", 0),
        ("text_similarity", "student", "ft:mini", 0),
    ]


def test_without_references_the_teacher_is_right_by_definition():
    teacher = row(result(a_holdout("a", "b"), student("a", "x")), "teacher")

    assert (teacher["score"], teacher["interval95"], teacher["by_definition"]) == (1.0, [1.0, 1.0], True)


def test_with_references_the_teacher_is_graded_like_the_others():
    found = result(a_holdout("a", "wrong", "c", references=["a", "b", None]), student("a", "b", "c"))

    assert (row(found, "teacher")["score"], row(found, "teacher")["examples"]) == (0.5, 2)
    assert row(found, "teacher")["by_definition"] is False
    assert row(found, "teacher")["complete"] is True
    assert (row(found, "student")["score"], row(found, "student")["examples"]) == (1.0, 3)


def test_a_failed_call_makes_a_row_incomplete_and_lowers_no_score():
    answered = row(result(a_holdout("a", "b"), student("a", None)), "student")

    assert (answered["score"], answered["examples"], answered["failures"], answered["complete"]) == (1.0, 1, 1, False)


def test_a_grader_that_fails_makes_a_row_incomplete_and_lowers_no_score():
    found = result(a_holdout('{"a": 1}', "no JSON"), student('{"a": 1}', "{}"), graders=[JsonMatch()])

    answered = row(found, "student", "json_match")
    assert (answered["score"], answered["failures"], answered["complete"]) == (1.0, 1, False)


def test_a_row_without_any_score_says_so():
    answered = row(result(a_holdout("a"), student(None)), "student")

    assert (answered["score"], answered["interval95"], answered["latency_p50_seconds"]) == (None, None, None)
    assert answered["cost_per_1k_calls_usd"] is None


def test_latency_and_cost_are_those_that_were_measured():
    answers = [Answer("a", latency_ms=100 * place, cost_nano=2_000 + place % 2) for place in range(1, 21)]
    measured = row(result(a_holdout(*"a" * 20), Contestant("student", "ft", 0, answers)), "student")

    assert measured["latency_p50_seconds"] == 1.0
    assert measured["latency_p95_seconds"] == 1.9
    assert measured["cost_per_1k_calls_usd"] == "0.0020005"
    assert row(result(a_holdout("a"), student("a")), "teacher")["cost_per_1k_calls_usd"] == "3"


def test_a_judges_scores_come_from_outside_and_count_like_any_other():
    judge = ScoreModel("openai", "sol")
    holdout, contestants = a_holdout("a", "b"), [base("x", "y"), student("a", "z")]

    silent = result(holdout, *contestants, graders=[judge])
    spoken = result(
        holdout, *contestants, graders=[judge], judged={"score_model": [[None, None], [0.1, 0.3], [1.0, None]]}
    )

    assert row(silent, "student", "score_model")["score"] is None
    assert row(silent, "teacher", "score_model")["score"] == 1.0
    assert row(spoken, "base", "score_model")["score"] == 0.2
    assert (row(spoken, "student", "score_model")["score"], row(spoken, "student", "score_model")["failures"]) == (
        1.0,
        1,
    )


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_texts", "student_texts", "expected"),
    [
        ("xxxxxxxxxx", "aaaaaaaaaa", "better"),
        ("aaaaaaaaaa", "xxxxxxxxxx", "worse"),
        ("aaaaaaaaaa", "aaaaaaaaaa", "inconclusive"),
        ("aaaaaaaaax", "aaaaaaaaaa", "inconclusive"),
        ("xxxxx", "aaaaa", "inconclusive"),  # five wins of five: chance does that one time in 16, up or down
        ("xxxxxx", "aaaaaa", "better"),
    ],
)
def test_a_student_is_better_only_when_chance_is_left_out(base_texts, student_texts, expected):
    found = result(a_holdout(*"a" * len(base_texts)), base(*base_texts), student(*student_texts))

    assert found["students"][0]["verdict"] == expected


def test_fewer_pairs_than_can_tell_decide_nothing():
    assert verdict((0.5, 1.0), FEWEST_PAIRS) == "better"
    assert verdict((0.5, 1.0), FEWEST_PAIRS - 1) == "inconclusive"
    assert verdict(None, 0) == "inconclusive"


def test_differences_are_taken_on_what_both_answered():
    found = result(a_holdout(*"aaaa"), base("x", None, "a", "x"), student("a", "a", None, "a"))

    assert found["students"][0]["difference"] == {
        "vs_base": 1.0,
        "vs_base_interval95": [-0.3487, 1.0],
        "vs_base_pairs": 2,
        "vs_teacher": 0.0,
        "vs_teacher_interval95": [-0.5544, 0.5544],
        "vs_teacher_pairs": 3,
    }


def test_each_student_is_held_against_its_own_base():
    found = result(
        a_holdout(*"a" * 8),
        base(*"x" * 8, student=0),
        student(*"a" * 8, number=0, model="one"),
        base(*"a" * 8, student=1),
        student(*"x" * 8, number=1, model="two"),
        student(*"a" * 8, number=2, model="without a base"),
    )

    assert [(item["model"], item["verdict"]) for item in found["students"]] == [
        ("one", "better"),
        ("two", "worse"),
        ("without a base", "inconclusive"),
    ]
    assert found["students"][2]["difference"]["vs_base"] is None


@pytest.mark.parametrize(("min_score", "expected"), [(None, None), (0.5, True), (0.51, False)])
def test_a_minimum_score_is_met_or_not(min_score, expected):
    found = result(a_holdout("a", "a"), student("a", "x"), min_score=min_score)

    assert found["students"][0]["meets_min_score"] is expected


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "graded", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_that_of_the_textbook(passed, graded, low, high):
    assert wilson_interval95(passed, graded) == pytest.approx((low, high), abs=5e-5)


def test_the_paired_t_interval_is_that_of_the_textbook():
    """Student's own example: the additional hours of sleep of ten patients (1908); here in tens of hours."""
    hours = [0.12, 0.24, 0.13, 0.13, 0.0, 0.10, 0.18, 0.08, 0.46, 0.14]

    assert difference_interval95(hours) == pytest.approx((0.0700, 0.2460), abs=5e-5)


def test_bonett_and_prices_interval_keeps_its_width_when_every_pair_agrees():
    low, high = difference_interval95([0.0] * 10)

    assert (low, high) == pytest.approx((-0.2310, 0.2310), abs=5e-5)


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (5, 2.5706), (30, 2.0423), (31, 2.0395), (100, 1.9840)])
def test_students_quantiles_are_those_of_the_table(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=1e-4)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0])))
def test_the_interval_of_a_mean_lies_between_0_and_1_and_holds_it(scores):
    interval = mean_interval95(scores)

    if scores:
        assert 0 <= interval[0] <= sum(scores) / len(scores) + 1e-9
        assert sum(scores) / len(scores) - 1e-9 <= interval[1] <= 1
    else:
        assert interval is None


@given(st.lists(st.floats(-1, 1) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=1))
def test_the_interval_of_a_difference_turns_round_with_its_sign(differences):
    low, high = difference_interval95(differences)
    turned = difference_interval95([-difference for difference in differences])

    assert -1 <= low <= high <= 1
    assert turned == pytest.approx((-high, -low))


# --- samples ---------------------------------------------------------------------------------------------------------


def test_three_samples_show_a_win_a_loss_and_what_is_typical():
    found = result(a_holdout(*"aaaaa"), base("a", "x", "a", "a", "x"), student("a", "x", "a", "x", "a"))

    assert [sample["prompt_key"] for sample in found["samples"]] == ["t-4", "t-3", "t-0"]
    assert found["samples"][0] == {
        "prompt_key": "t-4",
        "messages": [{"role": "user", "content": "question 4"}],
        "reference": None,
        "teacher": "a",
        "base": "x",
        "student": "a",
        "scores": {"string_check": {"teacher": 1.0, "base": 0.0, "student": 1.0}},
    }


def test_samples_are_different_and_of_the_best_student():
    found = result(
        a_holdout("a", "b"), student("x", "x", number=0), student("a", "x", number=1), base(*"xx", student=1)
    )

    assert sorted(sample["prompt_key"] for sample in found["samples"]) == ["t-0", "t-1"]
    assert {sample["student"] for sample in found["samples"]} == {"a", "x"}


def test_nothing_to_judge_with_is_no_error():
    found = result([], base(), student())

    assert found["samples"] == []
    assert found["students"][0]["verdict"] == "inconclusive"


texts = st.lists(st.sampled_from(["a", "ab", "abc", "xyz", None]), min_size=4, max_size=4)


@given(texts, texts, texts)
def test_the_same_answers_give_the_same_bytes(teacher, base_texts, student_texts):
    def bytes_of():
        return json.dumps(result(a_holdout(*teacher), base(*base_texts), student(*student_texts)), allow_nan=False)

    assert bytes_of() == bytes_of()
