"""A table is one value that the terminal and a page show alike."""

from dataclasses import replace
from io import StringIO
from math import inf

import pytest
from rich.console import Console
from support.run_folders import answers, write_run

from finetune.reporting.tables import (
    Table,
    best_prompt_table,
    describe_best_prompt,
    format_arm,
    format_duration,
    format_interval,
    harness_table,
    score_table,
    to_html,
    to_rich,
)
from finetune.runs.read import read_run
from finetune.runs.result import BestPrompt, HarnessScore, Interval, PromptRound

HOSTILE = "[red]<b>&amp;</b>"


def printed(table, width=80):
    console = Console(width=width, record=True, force_terminal=True, file=StringIO())
    console.print(to_rich(table))
    return console.export_text(styles=True)


def test_what_a_cell_holds_is_shown_as_it_is_in_the_terminal_and_on_a_page():
    table = Table(HOSTILE, ["name", HOSTILE], [["first", HOSTILE]])
    assert printed(table).count(HOSTILE) == 3
    assert to_html(table).count("[red]&lt;b&gt;&amp;amp;&lt;/b&gt;") == 3 and "<b>" not in to_html(table)


def test_numbers_are_never_wrapped_where_prose_can_be():
    table = Table("", ["run", "score"], [["a" * 40, "0.417 [0.35, 0.48]"]], prose=["run"])
    shown = printed(table, width=40)
    assert "0.417 [0.35, 0.48]" in shown and "a" * 40 not in shown
    assert to_html(table).count('class="text"') == 2


def test_a_row_and_a_column_can_be_bold():
    shown = printed(Table("", ["", "first", "second"], [["a", 1, 2], ["b", 3, 4]], bold_rows=[1], bold_column="second"))
    assert "\x1b[1m2" in shown.replace(" ", "") and "\x1b[1mb" in shown.replace(" ", "")
    assert to_html(Table("", ["x"], [[1], [2]], bold_rows=[1])).count('<tr class="bold"><td>2') == 1


def test_columns_can_be_left_out():
    table = Table("", ["a", "b", "c"], [[1, 2, 3]]).without("b")
    assert (table.header, table.rows) == (["a", "c"], [[1, 3]])


def test_the_scores_of_a_run_are_by_arm_with_the_difference_and_its_test(tmp_path):
    folder = write_run(tmp_path / "run", tuned=answers(range(30), 40), metrics=["exact_match", "valid_json"])
    evaluation = read_run(folder).result.evaluation
    table = score_table(evaluation, "zero_shot")
    assert table.header == ["metric", "zero-shot", "tuned", "tuned - zero-shot", "p", "test"]
    assert table.rows[0][0] == "exact_match" and str(table.rows[0][1]).startswith("0.000 [")
    assert str(table.rows[0][2]).startswith("0.750 [") and str(table.rows[0][3]).startswith("+0.750 [+0.")
    assert table.rows[0][5] == "McNemar" and list(table.bold_rows) == [0]
    assert table.title == "40 held-out test prompts"


def test_what_nobody_knows_of_a_harness_score_is_a_question_mark():
    scores = {"arc": {"acc": HarnessScore(0.41, 0.02, 0.5, None)}}
    assert harness_table(scores).rows == [["arc", "acc", "0.410 ± 0.020", "0.500 ± ?"]]


@pytest.mark.parametrize(
    ("interval", "sign", "shown"),
    [
        (Interval(0.4171, 0.351, 0.479), "", "0.417 [0.35, 0.48]"),
        (Interval(0.25, -inf, inf), "+", "+0.250 [?, ?]"),
        (Interval(-0.5, -0.6, -0.4), "+", "-0.500 [-0.60, -0.40]"),
    ],
)
def test_an_interval_is_a_value_and_its_ends(interval, sign, shown):
    assert format_interval(interval, sign) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (3569, "59 min"), (3600, "1 h 0 min"), (11100, "3 h 5 min")],
)
def test_a_duration_is_in_the_largest_units_that_say_enough(seconds, shown):
    assert format_duration(seconds) == shown


def test_an_arm_is_called_as_users_call_it(tmp_path):
    evaluation = read_run(write_run(tmp_path / "run", tuned=answers([], 9))).result.evaluation
    assert [format_arm(arm, evaluation) for arm in ("zero_shot", "few_shot", "tuned")] == [
        "zero-shot",
        "0-shot",
        "tuned",
    ]
    assert format_arm("tuned_few_shot", replace(evaluation, shots=2)) == "tuned 2-shot"


def test_the_choice_of_the_best_prompt_is_told_with_its_rounds_and_its_cost():
    scores = {"0-shot": 0.1, "3-shot, random": 0.2, "3-shot, nearest": 0.5}
    rounds = [PromptRound(10, scores), PromptRound(20, {"3-shot, random": 0.3, "3-shot, nearest": 0.4})]
    best = BestPrompt("3-shot, nearest", "", 1234.4, 60.6, 50, rounds, ["8-shot, random", "8-shot, nearest"])
    table = best_prompt_table(best)
    assert table.header == ["prompting", "10 prompts", "20 prompts"]
    assert table.rows == [
        ["3-shot, random", "0.200", "0.300"],
        ["3-shot, nearest", "0.500", "0.400"],
        ["0-shot", "0.100", ""],
    ]
    assert [table.rows[number][0] for number in table.bold_rows] == [best.name]
    assert describe_best_prompt(best) == (
        "Best prompt, chosen on validation prompts: 3-shot, nearest. A request has 1,234 tokens, that of the tuned "
        "model 61. Left out, as they do not fit the model's context: 8-shot, random; 8-shot, nearest."
    )
