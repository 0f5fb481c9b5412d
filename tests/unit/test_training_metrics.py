"""Points of training curves: read from whatever a provider writes, kept in bounded number."""

import base64

import pytest

from shared.models import MetricPoint
from shared.training_metrics import has_gaps, point_of, read_result_file, thinned, worth_keeping

CSV = (
    b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"
    b"1,1.5,0.25,,\n2,1.25,0.5,1.75,0.125\n3,1.0,0.75,nan,\n"
)
POINTS = [
    MetricPoint(step=1, train_loss=1.5, train_mean_token_accuracy=0.25),
    MetricPoint(
        step=2, train_loss=1.25, train_mean_token_accuracy=0.5, valid_loss=1.75, valid_mean_token_accuracy=0.125
    ),
    MetricPoint(step=3, train_loss=1.0, train_mean_token_accuracy=0.75),
]
WRAPPED = b"\n".join(base64.b64encode(CSV)[at : at + 60] for at in range(0, 400, 60))


@pytest.mark.parametrize(
    "content",
    [
        CSV,
        b"\xef\xbb\xbf" + CSV,
        CSV.replace(b"\n", b"\r\n"),
        base64.b64encode(CSV),
        base64.b64encode(CSV) + b"\n",
        WRAPPED,
    ],
    ids=["plain", "with a mark", "from Windows", "base64", "base64 and a line's end", "base64 in lines"],
)
def test_a_result_file_is_read_plain_or_in_base64(content):
    assert list(read_result_file(content)) == POINTS


def test_columns_are_known_by_their_names_in_any_order_and_strange_ones_left_out():
    content = b"colour,valid_loss, step ,full_valid_loss\nred,0.5,7,0.25\n"
    assert list(read_result_file(content)) == [MetricPoint(step=7, valid_loss=0.5, full_valid_loss=0.25)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01,\xff",
        b"<html>Not found</html>",
        b"step,train_loss\n",
        b"step,train_loss\nthree,0.5\n-1,0.5\n1.5,0.5\n4,\n1e300,2\n",
        b'step,train_loss\n"' + b"x" * 200_000,
        b"====",
    ],
)
def test_what_is_no_result_file_has_no_points(content):
    assert list(read_result_file(content)) == []


@pytest.mark.parametrize(
    ("data", "point"),
    [
        ({"step": 3, "total_steps": 9, "train_loss": 0.5}, MetricPoint(step=3, train_loss=0.5)),
        ({"step": 3.0, "train_loss": 1}, MetricPoint(step=3, train_loss=1.0)),
        ({"step": True, "train_loss": 0.5}, None),
        ({"train_loss": 0.5}, None),
        ({"step": 3}, None),
        ({"step": 3, "train_loss": float("nan")}, None),
        ({"step": 3, "train_loss": {"a": 1}}, None),
        ({"step": 10**30, "train_loss": 0.5}, None),
    ],
)
def test_an_event_is_a_point_when_it_has_a_step_and_a_measure(data, point):
    assert point_of(data) == point


@pytest.mark.parametrize(
    ("steps", "total", "gaps"),
    [
        ([], 10, True),
        ([1, 2, 3], 3, False),
        ([1, 2, 3], None, False),
        ([1, 3], 3, True),
        ([2, 4, 6], 7, False),
        ([1, 2, 4], 4, True),
        ([2, 3, 4], 4, True),
        ([1, 2, 3], 9, True),
        ([10, 20, 30], 30, False),
        ([10, 20, 30], 35, False),
        ([10, 30, 40], 40, True),
        ([5], 5, False),
    ],
)
def test_gaps_are_told_from_the_rhythm_of_the_reports(steps, total, gaps):
    assert has_gaps(steps, total) is gaps


@pytest.mark.parametrize("total", [1, 100, 2_000, 2_001, 12_345, 1_000_000])
def test_about_two_thousand_steps_are_kept_and_always_the_last(total):
    kept = [step for step in range(1, total + 1) if worth_keeping(step, total)]
    assert min(total, 1_000) <= len(kept) <= 2_001
    assert kept[-1] == total
    assert total == 1 or not has_gaps(kept[:-1], None)


def test_without_a_known_end_what_is_kept_stays_bounded():
    assert sum(worth_keeping(step, None) for step in range(1, 1_000_000)) < 16_000


@pytest.mark.parametrize(("count", "most"), [(0, 2), (1, 2), (500, 500), (501, 500), (100_000, 7)])
def test_points_are_thinned_evenly_with_both_ends(count, most):
    shown = thinned(range(count), most)
    assert len(shown) == min(count, most)
    assert shown == sorted(set(shown))
    if count:
        assert (shown[0], shown[-1]) == (0, count - 1)
