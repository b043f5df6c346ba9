"""Runs are ranked, and only those are told apart that differ beyond doubt."""

import pytest
from support.comparisons import compare, write_three_runs
from support.run_folders import answers, write_run

from finetune.comparison.compare import compare_runs
from finetune.errors import UserError
from finetune.evaluation.metrics import HIGHER_IS_BETTER
from finetune.runs.read import find_runs


@pytest.fixture
def three(tmp_path):
    return write_three_runs(tmp_path)


def test_two_seeds_are_in_one_group_and_the_worse_setting_is_below(three):
    [comparison] = compare_runs(find_runs([str(three)])[0])
    assert [run.name for run in comparison.runs] == ["first", "second", "worse"]
    assert comparison.groups == ["a", "a", "b"]
    assert comparison.to_best[2].mean == pytest.approx(-0.5) and comparison.to_best[2].high < 0
    assert comparison.settings == [{"adapter.r": r, "seed": seed} for r, seed in ((16, 1), (16, 2), (2, 42))]


def test_the_program_shows_ranking_correction_settings_cost_verdicts_and_disagreements(three):
    done = compare(three)
    assert done.returncode == 0 and done.stderr == ""
    words = " ".join(done.stdout.split())
    assert done.stdout.index("first") < done.stdout.index("second") < done.stdout.index("worse")
    for shown in ("0.750 [", "Holm", "3 paired tests", "adapter.r=2 seed=42", "1.00 GiB", "800", "10", "Tuning beats"):
        assert shown in words
    assert "differ on 34 prompts" in words and "Say 0" in words


def test_runs_on_other_prompts_are_listed_apart_and_never_paired(three):
    write_run(three / "elsewhere", tuned=answers(range(60), 60), system="Other.")
    found = compare_runs(find_runs([str(three)])[0])
    assert [[run.name for run in one.runs] for one in found] == [["first", "second", "worse"], ["elsewhere"]]
    done = compare(three)
    assert "2 different sets of prompts" in done.stdout and "elsewhere" in done.stdout


def test_unfinished_runs_are_named_counted_and_left_out(three):
    for name in ("begun", "other"):
        (three / name / "checkpoints").mkdir(parents=True)
    (three / "no_run").mkdir()
    done = compare(three)
    assert "Left out, as not complete: 2 runs (begun, other)." in done.stdout


def test_runs_are_found_by_folder_folder_of_runs_and_glob_once_each(three):
    runs, _ = find_runs([str(three / "first"), str(three), str(three / "w*")])
    assert [run.name for run in runs] == ["first", "second", "worse"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["README.md"], "README.md: is no folder"),
        (["conf"], "conf: holds no run"),
        ([], "the following arguments are required"),
        (["conf", "--metric"], "expected one argument"),
    ],
)
def test_a_mistake_is_told_without_a_stack(arguments, message):
    done = compare(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_metric_that_a_run_was_not_scored_by_is_named(three):
    runs, _ = find_runs([str(three)])
    with pytest.raises(UserError, match=r"--metric chrf: .* was not scored by it, but by exact_match"):
        compare_runs(runs, "chrf")


def test_a_broken_run_is_named(three):
    (three / "first" / "predictions.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"first: a file of the run cannot be read"):
        find_runs([str(three)])


@pytest.mark.parametrize("metric", ["macro_f1", "perplexity"])
def test_a_metric_of_the_whole_set_is_compared_too(tmp_path, metric):
    likelihoods = {"good": [(1.0 + i % 3, 4) for i in range(40)], "bad": [(6.0 + i % 4, 4) for i in range(40)]}
    for name, right in (("good", range(38)), ("bad", range(5))):
        write_run(tmp_path / name, tuned=answers(right, 40), metrics=[metric], likelihoods=likelihoods[name])
    [comparison] = compare_runs(find_runs([str(tmp_path)])[0])
    assert [run.name for run in comparison.runs] == ["good", "bad"] and comparison.groups == ["a", "b"]
    better = 1 if HIGHER_IS_BETTER[metric] else -1
    assert better * comparison.to_best[1].mean < 0


def test_perplexities_of_other_tokens_are_never_paired(tmp_path):
    for name, tokens in (("one_tokenizer", 4), ("another", 5)):
        write_run(tmp_path / name, tuned=answers([], 9), metrics=["perplexity"], likelihoods=[(2.0, tokens)] * 9)
    comparisons = compare_runs(find_runs([str(tmp_path)])[0])
    assert sorted(run.name for found in comparisons for run in found.runs) == ["another", "one_tokenizer"]
    assert len(comparisons) == 2


def test_with_many_runs_only_the_best_is_tested_against_the_others(tmp_path):
    for number in range(14):
        right = range(number, 60) if number < 3 else range(10)
        write_run(tmp_path / f"run{number:02}", f"seed={number}", tuned=answers(right, 60))
    [found] = compare_runs(find_runs([str(tmp_path)])[0])
    assert (
        found.groups == ["a"] * 3 + [""] * 11 and "the letter a" in found.correction and "13 paired" in found.correction
    )
