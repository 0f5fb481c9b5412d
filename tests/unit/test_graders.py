"""How near an answer comes to its reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ValidationFailed
from shared.graders import (
    METRICS,
    JsonMatch,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    Ungradable,
    parse_graders,
)

CAT = "the cat is on the mat"
MILITARY = "It is a guide to action that ensures that the military will forever heed Party commands"
GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"


@pytest.mark.parametrize(
    ("operation", "output", "score"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("ne", "paris", 1),
        ("ne", "Paris", 0),
        ("like", "It is Paris.", 1),
        ("like", "It is PARIS.", 0),
        ("ilike", "It is PARIS.", 1),
        ("ilike", "Par", 0),  # the output contains the reference, not the other way round
    ],
)
def test_string_check(operation, output, score):
    assert StringCheck(operation=operation).grade(output, "Paris") == score


@pytest.mark.parametrize(
    ("metric", "output", "reference", "score"),
    [  # computed by rapidfuzz 3.14 (fuzz.ratio), sacrebleu 2.6 (sentence_bleu) and rouge_score 0.1.2 (fmeasure)
        ("fuzzy_match", "the cat sat on the mat", CAT, 0.930233),
        ("fuzzy_match", GUIDE, MILITARY, 0.751381),
        ("fuzzy_match", "hi there", "hello", 0.307692),
        ("bleu", "the the the the the the the", CAT, 0.078098),  # Papineni's example of clipped counts
        ("bleu", "the cat sat on the mat", CAT, 0.379918),
        ("bleu", GUIDE, MILITARY, 0.411804),  # the same paper's "candidate 1"
        ("bleu", "the gunman kill police", "police killed the gunman", 0.353553),
        ("bleu", "The dog bit the man.", "The dog bit the guy.", 0.537285),
        ("bleu", "hi there", "hello", 0),
        ("rouge_1", GUIDE, MILITARY, 0.705882),
        ("rouge_2", GUIDE, MILITARY, 0.5),
        ("rouge_l", GUIDE, MILITARY, 0.647059),
        ("rouge_2", "police kill the gunman", "police killed the gunman", 1 / 3),
        ("rouge_l", "police kill the gunman", "police killed the gunman", 3 / 4),  # Lin's S2
        ("rouge_l", "the gunman kill police", "police killed the gunman", 2 / 4),  # and S3
        ("rouge_2", "Hello!", "hello", 1),  # too short for a bigram, and the same words
        ("rouge_1", "猫在上", "猫在下", 2 / 3),  # no spaces between words
        ("fuzzy_match", "", "x", 0),
        ("bleu", "", "x", 0),
        ("rouge_l", "", "x", 0),
        ("rouge_l", "!", "?", 1),
    ],
)
def test_similarities_are_those_of_the_reference_implementations(metric, output, reference, score):
    assert TextSimilarity(evaluation_metric=metric).grade(output, reference) == pytest.approx(score, abs=1e-6)


@given(st.sampled_from(sorted(METRICS)), st.text("ab c.B猫"), st.text("ab c.B猫"))
def test_every_similarity_lies_between_0_and_1_and_is_1_for_the_same_text(metric, output, reference):
    grader = TextSimilarity(evaluation_metric=metric)

    assert 0 <= grader.grade(output, reference) <= 1
    assert METRICS[metric](reference, reference) == pytest.approx(1)


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_fuzzy_match_counts_the_longest_common_subsequence(one, other):
    lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if left == right else max(lengths[i][j + 1], lengths[i + 1][j])
    total = len(one) + len(other)

    assert METRICS["fuzzy_match"](one, other) == (2 * lengths[-1][-1] / total if total else 1.0)


@pytest.mark.parametrize(
    ("fields", "output", "reference", "score"),
    [
        (None, '{"a": 1, "b": [1, 2]}', '{"b": [1, 2], "a": 1.0}', 1),
        (None, '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 1 / 2),
        (None, '{"a": 1, "invented": 2}', '{"a": 1}', 1 / 2),
        (None, '{"a": true}', '{"a": 1}', 0),
        (None, '{"a": [{"b": true}]}', '{"a": [{"b": 1}]}', 0),
        (None, '{"a": null}', "{}", 0),
        (None, "{}", "{}", 1),
        (None, "[1]", "[1]", 1),
        (None, "[1]", '{"a": 1}', 0),
        (None, "Sure! {}", "{}", 0),
        (("a", "c"), '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 1),
        (("a", "b"), '{"a": 1}', '{"a": 1, "b": 3}', 1 / 2),
    ],
)
def test_json_match_is_the_share_of_equal_fields(fields, output, reference, score):
    assert JsonMatch(fields=fields).grade(output, reference) == score


@pytest.mark.parametrize("reference", ["not JSON", "[" * 100_000, "[1]"])
def test_a_reference_that_cannot_be_compared_gives_no_score(reference):
    with pytest.raises(Ungradable):
        JsonMatch(fields=("a",)).grade('{"a": 1}', reference)


# --- the request -----------------------------------------------------------------------------------------------------


def test_graders_are_built_in_their_order_with_their_defaults():
    graders = parse_graders(
        [
            {"type": "text_similarity"},
            {"type": "text_similarity", "name": "rouge", "evaluation_metric": "rouge_l"},
            {"type": "string_check", "operation": None},
            {"type": "json_match", "fields": ["category"]},
            {"type": "score_model", "provider": "openai", "model": "gpt-6-sol"},
        ]
    )

    assert graders == [
        TextSimilarity("text_similarity", "fuzzy_match"),
        TextSimilarity("rouge", "rouge_l"),
        StringCheck("string_check", "eq"),
        JsonMatch("json_match", ("category",)),
        ScoreModel("openai", "gpt-6-sol"),
    ]


@pytest.mark.parametrize(
    ("specs", "pointer", "code"),
    [
        ([], "", "wrong_length"),
        ([{"type": "string_check"}] * 9, "", "wrong_length"),
        ([{}], "/0/type", "required"),
        ([{"type": "s3cret"}], "/0/type", "unknown_grader"),
        ([{"type": ["s3cret"]}], "/0/type", "unknown_grader"),
        (["s3cret"], "/0", "wrong_type"),
        ([{"type": "text_similarity", "evaluation_metric": "meteor"}], "/0/evaluation_metric", "invalid_value"),
        ([{"type": "string_check", "operation": "s3cret"}], "/0/operation", "invalid_value"),
        ([{"type": "string_check", "operation": {}}], "/0/operation", "invalid_value"),
        ([{"type": "string_check", "reference": "s3cret"}], "/0/reference", "unknown_field"),
        ([{"type": "string_check", "a/b~c": 1}], "/0/a~1b~0c", "unknown_field"),
        ([{"type": "json_match", "fields": []}], "/0/fields", "invalid_value"),
        ([{"type": "json_match", "fields": [["s3cret"]]}], "/0/fields", "invalid_value"),
        ([{"type": "json_match", "fields": ["a", "a"]}], "/0/fields", "invalid_value"),
        ([{"type": "score_model", "provider": "openai"}], "/0/model", "required"),
        ([{"type": "score_model", "provider": "openai", "model": "s3cret\x00"}], "/0/model", "invalid_value"),
        ([{"type": "score_model", "provider": "s3cret\n", "model": "m"}], "/0/provider", "invalid_value"),
        ([{"type": "string_check", "name": "s3cret\x7f"}], "/0/name", "invalid_value"),
        ([{"type": "string_check"}, {"type": "string_check"}], "/1/name", "duplicate_name"),
    ],
)
def test_a_wrong_grader_is_refused_at_its_place_without_repeating_its_values(specs, pointer, code):
    with pytest.raises(ValidationFailed) as refusal:
        parse_graders(specs)

    assert [(fault.pointer, fault.code) for fault in refusal.value.faults] == [(f"/evaluation/graders{pointer}", code)]
    assert "s3cret" not in str(refusal.value)
    assert "s3cret" not in refusal.value.faults[0].detail


def test_every_fault_is_told_at_once_and_the_nearest_name_offered():
    with pytest.raises(ValidationFailed) as refusal:
        parse_graders([{"type": "string_check", "operatoin": "eq"}, {"type": "json_match", "name": ""}])

    assert [fault.pointer for fault in refusal.value.faults] == [
        "/evaluation/graders/0/operatoin",
        "/evaluation/graders/1/name",
    ]
    assert "did you mean operation?" in refusal.value.faults[0].detail
