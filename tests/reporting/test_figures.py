"""Figures show the numbers that they are given, each run in its colour, each axis where it reads best."""

from math import inf, nan

import pytest

from finetune.reporting import figures
from finetune.runs.result import Interval

HISTORY = [
    {"step": 1, "tokens": 10, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 2, "tokens": 20, "loss": 1.0, "learning_rate": 5e-4},
    {"step": 2, "tokens": 20, "eval_loss": 1.5},
]


def test_losses_of_training_and_validation_lie_over_their_axis():
    training, validation = figures.losses({"": HISTORY}, "tokens").data
    assert (training.name, training.x, training.y) == ("training", (10, 20), (2.0, 1.0))
    assert (validation.name, validation.x, validation.y) == ("validation", (20,), (1.5,))
    assert figures.losses({"": HISTORY}, "train_seconds").data[0].x == ()


def test_each_run_has_one_colour_and_many_have_their_legend_beside_the_figure():
    few, many = (figures.losses({f"run {i}": HISTORY for i in range(count)}, "step") for count in (2, 6))
    assert [trace.name for trace in few.data][:2] == ["run 0 training", "run 0 validation"]
    assert few.data[0].line.color == few.data[1].line.color != few.data[2].line.color
    assert few.layout.legend.orientation == "h" and many.layout.legend.orientation == "v"


def test_the_learning_rate_is_by_step():
    [rate] = figures.learning_rate(HISTORY).data
    assert (rate.x, rate.y) == ((1, 2), (1e-3, 5e-4))


def test_an_interval_whose_end_nobody_knows_has_no_bar_there():
    scores = {"known": Interval(0.5, 0.4, 0.7), "unknown": Interval(0.5, -inf, inf), "none": Interval(nan, -inf, inf)}
    [points] = figures.score_intervals("exact_match", scores).data
    assert points.error_x.array == pytest.approx((0.2, 0, 0)) and points.error_x.arrayminus == pytest.approx(
        (0.1, 0, 0)
    )


@pytest.mark.parametrize(("higher_is_better", "best"), [(True, (0.2, 0.5, 0.5)), (False, (0.2, 0.2, 0.1))])
def test_the_best_so_far_follows_the_metric_and_trials_without_a_score_lie_below(higher_is_better, best):
    figure = figures.trial_scores({4: 0.1, 0: 0.2, 2: 0.5}, {"failed": [1, 3]}, "loss", higher_is_better)
    complete, so_far, failed = figure.data
    assert (complete.x, complete.y) == ((0, 2, 4), (0.2, 0.5, 0.1)) and so_far.y == best
    assert failed.x == (1, 3) and max(failed.y) < 0.1


def test_settings_over_a_wide_range_are_logarithmic_and_texts_get_a_position_each():
    settings = {"rate": [1e-5, 1e-3, 1e-4], "rank": [4, 8, 8], "name": ["b", "a", "b"]}
    [lines] = figures.parallel_coordinates(settings, [0.1, 0.2, 0.3], "score").data
    rate, rank, name, score = lines.dimensions
    assert rate.values == pytest.approx((-5, -3, -4)) and rate.ticktext == ("1e-05", "0.0001", "0.001")
    assert rank.values == (4, 8, 8) and rank.ticktext is None
    assert (name.values, name.ticktext) == ((1, 0, 1), ("a", "b"))
    assert (score.label, score.values) == ("score", (0.1, 0.2, 0.3))


def test_an_axis_with_many_values_is_marked_at_round_numbers():
    [lines] = figures.parallel_coordinates({"rate": [i * 1e-4 for i in range(1, 30)]}, [0.0] * 29, "score").data
    assert lines.dimensions[0].ticktext == ("0.0001", "0.0002", "0.0005", "0.001", "0.002")


def test_bars_have_the_largest_on_top():
    [bars] = figures.bars("Importance", {"a": 0.2, "b": 0.7, "c": 0.1}).data
    assert (bars.y, bars.x) == (("c", "a", "b"), (0.1, 0.2, 0.7))
