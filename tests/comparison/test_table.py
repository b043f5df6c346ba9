"""The tables of a comparison: ranking, cost, and answers side by side."""

import pytest
from support.comparisons import write_three_runs

from finetune.comparison.compare import compare_runs
from finetune.comparison.table import cost_table, format_settings, ranking_table, show_comparisons
from finetune.runs.read import find_runs


@pytest.fixture
def comparison(tmp_path):
    return compare_runs(find_runs([str(write_three_runs(tmp_path))])[0])[0]


def test_the_ranking_has_group_score_difference_and_settings_of_as_many_runs_as_asked_for(comparison):
    table = ranking_table(comparison, 2)
    assert table.title == "3 runs on 60 test prompts by exact match"
    (group, name, score, difference, p, settings), second = table.rows
    assert (group, name, difference, p, settings) == ("a", "first", "best", "", "adapter.r=16 seed=1")
    assert str(score).startswith("0.750 [") and second[1] == "second" and str(second[3]).startswith("-0.033 [")


def test_the_cost_of_each_run_is_in_seconds_tokens_and_memory(comparison):
    assert cost_table(comparison).rows[0] == ["first", "10", "800", "1.00 GiB"]


def test_settings_are_spelled_as_on_the_command_line():
    settings = {"trainer.learning_rate": 0.00012345, "adapter.r": 8, "data.group": None, "model": "a b"}
    assert format_settings(settings) == "trainer.learning_rate=0.0001234 adapter.r=8 data.group=null model=a b"


def test_the_answers_on_which_runs_differ_most_are_shown_with_their_scores(comparison, tmp_path, capsys):
    show_comparisons([comparison], [tmp_path / "begun"], prompts=1)
    words = " ".join(capsys.readouterr().out.split())
    assert "differ on 34 prompts; the 1 with the largest difference: prompt Say 0 reference 0 first 1.00 0" in words
    assert "worse 1.00 0" in words and "second 0.00 no" in words and "prompt Say 1" not in words
    assert words.endswith("Left out, as not complete: 1 run (begun).")
